"""A link between two network namespaces that is as fast as one says, and what carries unix sockets over it: for QEMU alone as
little as can be, for weft its agents' own way.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from tests.node_key import make_node_key

from weft.contracts.clock import SystemClock
from weft.trust.ca import Authority, read_csr

RELAY, CARRIER = (Path(__file__).with_name(name) for name in ("relay.py", "carrier.py"))
PORT = 7000


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Link:
    """Two namespaces, ``a`` and ``b``, whose keys go into ``folder``. ``close`` takes all of it away."""

    def __init__(self, folder: Path) -> None:
        mark = os.getpid() % 100000
        self.names = {side: f"weft-bench-{mark}{side}" for side in "ab"}
        self.links = {side: f"wb{mark}{side}" for side in "ab"}
        self._relays: dict[str, list[subprocess.Popen[str]]] = {}
        for name in self.names.values():
            _ip("netns", "add", name)
        _ip("link", "add", self.links["a"], "type", "veth", "peer", "name", self.links["b"])
        for number, side in enumerate("ab", 1):
            _ip("link", "set", self.links[side], "netns", self.names[side])
            _ip("-n", self.names[side], "addr", "add", f"10.99.7.{number}/24", "dev", self.links[side])
            for link in (self.links[side], "lo"):
                _ip("-n", self.names[side], "link", "set", link, "up")
        authority = Authority(folder / "authority", SystemClock())
        self._carriers = {side: self._start_carrier(side, folder / f"node-{side}", authority) for side in "ab"}

    def _start_carrier(self, side: str, folder: Path, authority: Authority) -> subprocess.Popen[str]:
        folder.mkdir(parents=True)
        signed = authority.sign_node(read_csr(make_node_key(folder / "node.key")), side)
        (folder / "node.crt").write_text(signed)
        (folder / "ca.crt").write_text(authority.ca)
        command = ["ip", "netns", "exec", self.names[side], sys.executable, str(CARRIER), str(folder)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _tell(self, side: str, *words: str) -> str:
        carrier = self._carriers[side]
        assert carrier.stdin is not None and carrier.stdout is not None
        print(*words, file=carrier.stdin, flush=True)
        return carrier.stdout.readline().strip()

    def shape(self, megabits: int | None) -> None:
        """``None``: as fast as it goes."""
        for side in "ab":
            base = ["tc", "-n", self.names[side], "qdisc"]
            subprocess.run([*base, "del", "dev", self.links[side], "root"], capture_output=True)
            if megabits:
                rate = ["tbf", "rate", f"{megabits}mbit", "burst", f"{max(64, megabits // 4)}kb", "latency", "50ms"]
                subprocess.run([*base, "add", "dev", self.links[side], "root", *rate], check=True)

    def carry(self, side: str, here: str, there: str, *, alone: bool, connections: int) -> None:
        """What connects to ``here`` (a unix socket, made beside ``side``) gets to the unix socket ``there``, over the link.
        One path for each side; a new one takes the place of the old one. ``alone``: without weft; ``connections``: how many there
        will be."""
        self.drop(side)
        other, number = ("b", 2) if side == "a" else ("a", 1)
        if not alone:
            address = self._tell(other, "door", "migration", side, f"10.99.7.{number}", there)
            assert self._tell(side, "line", "migration", other, address, here, str(connections)) == "ready"
            return
        address = f"tcp:10.99.7.{number}:{PORT}"
        self._relays[side] = []
        for name, ends in (
            (self.names[other], (address, f"unix:{there}")),
            (self.names[side], (f"unix:{here}", address)),
        ):
            command = ["ip", "netns", "exec", name, sys.executable, str(RELAY), *ends]
            relay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            self._relays[side].append(relay)
            assert relay.stdout is not None
            assert relay.stdout.readline() == "ready\n"

    def drop(self, side: str) -> None:
        for relay in self._relays.pop(side, []):
            relay.kill()
            relay.wait()
        for carrier in "ab":
            self._tell(carrier, "close")

    def sent_bytes(self, side: str) -> int:
        """What has left this side's interface so far."""
        told = [
            "ip",
            "netns",
            "exec",
            self.names[side],
            "cat",
            f"/sys/class/net/{self.links[side]}/statistics/tx_bytes",
        ]
        return int(subprocess.run(told, check=True, capture_output=True, text=True).stdout)

    def close(self) -> None:
        for side in list(self._relays):
            self.drop(side)
        for carrier in self._carriers.values():
            carrier.kill()
            carrier.wait()
        for name in self.names.values():
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)
