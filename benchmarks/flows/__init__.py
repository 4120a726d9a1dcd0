"""What it costs a node to record its workloads' flows, and how exactly.

Ten thousand connections between two guests are open; the agent's recorder reads the kernel's table as it does all the time. What it
recorded is compared with what the guest's tap has counted.
"""

from __future__ import annotations

import subprocess
import sys

import msgspec
from tests.host.network_lab import Guest, Lab, make_port, make_segment

from benchmarks.flows.recorder import NETWORK
from benchmarks.measurement import Figure, Measurement
from weft.objects.identity import short_id

FLOWS, MOST_SHARE, MOST_ERROR = 10_000, 0.03, 0.01
ECHO = """
import socket
ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ear.bind(("", 7))
print("ready", flush=True)
while True: ear.sendto(*ear.recvfrom(65535))
"""
OPEN = """
import socket, sys
for first in range(20000, 20000 + int(sys.argv[2]), 20):
    mouths = []
    for port in range(first, first + 20):
        mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        mouth.bind(("", port))
        mouth.settimeout(0.2)
        mouth.connect((sys.argv[1], 7))
        mouth.send(bytes(1000))
        mouths.append(mouth)
    for mouth in mouths:
        try: mouth.recv(2000)
        except OSError: pass
        mouth.close()
"""


def measure() -> Measurement:
    lab = Lab(1, most_connections=200_000)
    try:
        figures = _measure(lab)
    finally:
        lab.close()
    return Measurement("flows", (__doc__ or "").split("\n\n")[1].replace("\n", " "), figures)


def _measure(lab: Lab) -> list[Figure]:
    (node,) = lab.nodes
    segment = make_segment(1, "net", {"one": node, "two": node}, id=short_id(NETWORK))
    plain = msgspec.to_builtins(segment)
    node._ask("ensure_segment", plain)
    guests: list[Guest] = [node.plug_guest(name, make_port(segment, name)) for name in ("one", "two")]
    for guest in guests:
        guest.lease()
    addresses = [endpoint.address for endpoint in segment.endpoints]
    enter = ["nsenter", f"--net=/run/netns/{guests[1].namespace}", sys.executable, "-S", "-E", "-c"]
    lab.start([*enter, ECHO])
    recorder = lab.start(
        [
            *(
                "nsenter",
                f"--net=/run/netns/{node.namespace}",
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "benchmarks.flows.recorder",
            ),
            msgspec.json.encode(node.host).decode(),
            msgspec.json.encode(plain).decode(),
            make_port(segment, "one").id,
        ],
        stdin=subprocess.PIPE,
    )
    open_all = [*enter[:1], f"--net=/run/netns/{guests[0].namespace}", *enter[2:], OPEN, addresses[1], str(FLOWS)]
    subprocess.run(open_all, check=True)
    assert recorder.stdin is not None and recorder.stdout is not None
    recorder.stdin.write("measure\n")
    recorder.stdin.flush()
    found = msgspec.json.decode(recorder.stdout.readline())
    share, error = found["share"], abs(found["recorded"] / found["counted"] - 1)
    return [
        Figure(
            f"recording {found['flows']:,} open flows",
            f"{found['cpu'] * 1000:.0f} ms of CPU every {found['every']:.0f} s",
            ratio=f"{share:.1%} of a core",
            goal=f"≤ {MOST_SHARE:.0%}",
            kept=found["flows"] >= FLOWS and share <= MOST_SHARE,
        ),
        Figure(
            "bytes recorded against the tap's counters",
            f"{found['recorded']:,}",
            f"{found['counted']:,}",
            ratio=f"{error:.2%} off",
            goal=f"≤ {MOST_ERROR:.0%}",
            kept=error <= MOST_ERROR,
        ),
    ]
