"""Two namespaces with a link between them that tbf shapes, and a node in each."""

from __future__ import annotations

import secrets
import subprocess
import sys
import uuid
from pathlib import Path

from weft.trust.probe.echo import node_key, pair_key

HERE = Path(__file__).parent
SECRET = b"s" * 32
ADDRESSES = ("10.97.0.1", "10.97.0.2")


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


class ShapedLab:
    """``measure`` gives what one node knows of the path to the other."""

    def __init__(self) -> None:
        tag = secrets.token_hex(3)
        self.names = f"ws{tag}a", f"ws{tag}b"
        self.uids = str(uuid.uuid4()), str(uuid.uuid4())
        for name in self.names:
            run("ip", "netns", "add", name)
        one, other = self.names
        run("ip", "-n", one, "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", other)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "up0")
            run("ip", "-n", name, "link", "set", "up0", "up")

    def shape(self, megabits: int, burst_bytes: int = 6000) -> None:
        """Both directions."""
        for name in self.names:
            how = ["tbf", "rate", f"{megabits}mbit", "burst", str(burst_bytes), "limit", "400000"]
            run("ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", "up0", "root", *how)

    def measure(self, trains: int) -> list[tuple[float, bool]]:
        """After each train, of 12 at most: Mbit/s, and whether that is but the least."""
        answering = self._start(1, 0)
        try:
            out, _ = self._start(0, trains).communicate(timeout=60)
        finally:
            answering.kill()
            answering.communicate()
        words = [line.split() for line in out.splitlines()]
        return [(float(line[0]), line[1] == "True") for line in words if len(line) == 2]

    def close(self) -> None:
        for name in self.names:
            run("ip", "netns", "del", name)

    def _start(self, own: int, trains: int) -> subprocess.Popen[str]:
        other = 1 - own
        key = pair_key(node_key(SECRET, self.uids[other]), self.uids[own])
        node = [self.uids[own], ADDRESSES[own], node_key(SECRET, self.uids[own]).hex()]
        peer = [self.uids[other], ADDRESSES[other], key.hex(), str(trains)]
        argv = ["ip", "netns", "exec", self.names[own], sys.executable, str(HERE / "shaped_node.py"), *node, *peer]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process
