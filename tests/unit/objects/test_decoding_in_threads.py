"""Threads that decode a type for the first time in the same moment: an agent's feeds and reporter do so when it starts."""

import subprocess
import sys

ROUNDS = 40
PROGRAM = f"""
import sys, threading, msgspec

def make(number):
    fields = [(f"field{{f}}", list[dict[str, int]] | None, None) for f in range(8)]
    parts = [msgspec.defstruct(f"Part{{n}}", fields) for n in range(6)]
    return msgspec.defstruct("Whole", [(f"part{{n}}", part | None, None) for n, part in enumerate(parts)])

sys.setswitchinterval(1e-6)
body = msgspec.json.encode({{f"part{{n}}": {{f"field{{f}}": [{{"a": 1}}] for f in range(8)}} for n in range(6)}})
for number in range({ROUNDS}):
    whole, together = make(number), threading.Barrier(8)
    def decode():
        together.wait()
        assert msgspec.json.decode(body, type=whole).part5.field7 == [{{"a": 1}}]
    threads = [threading.Thread(target=decode) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print("all decoded")
"""


def test_types_are_read_by_many_threads_at_first() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "all decoded\n", "")
