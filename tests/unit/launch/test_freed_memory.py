"""What a process gives back goes to the system: a dozen threads that carried a move leave next to nothing behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Large buffers of threads that hold them at the same time, with something small that stays beside each.
PROGRAM = """
import sys, threading
if sys.argv[1] == "bounded":
    from weft.launch.process.limits import bound_free_memory
    bound_free_memory()

stays = []

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

together = threading.Barrier(12)

def carry():
    for _ in range(4):
        buffers = []
        for _ in range(8):
            buffers.append(bytearray(b"x") * (256 << 10))
            stays.append(bytes(1000))
        together.wait()
        buffers.clear()

before = resident()
for _ in range(6):
    threads = [threading.Thread(target=carry) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print((resident() - before) >> 20)
"""


def measure(how: str) -> int:
    """MiB that stay resident."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_large_buffers_of_many_threads_are_given_back_to_the_system() -> None:
    assert measure("bounded") < 8


# As a read from TLS does: it asks for much, and keeps little of it.
READS = """
import os, resource, sys
if sys.argv[1] == "reads":
    from weft.launch.process.limits import bound_free_memory
    bound_free_memory(reads_tls=True)
there, here = os.pipe()

def read(count):
    for _ in range(count):
        os.write(here, b"a request")
        os.read(there, 256 << 10)

read(100)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
read(1000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages that the system hands out")
def test_reading_requests_asks_the_system_for_no_memory() -> None:
    done = subprocess.run([sys.executable, "-c", READS, "reads"], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 100
