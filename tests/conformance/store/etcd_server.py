"""A real etcd of this test run's own, on loopback or a unix socket, that a test may kill and start again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from pathlib import Path

PROGRAM = shutil.which("etcd")


class EtcdServer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client_port, self.peer_port = free_ports(2)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    def start(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self.client_port, self.peer_port))
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(PROGRAM), "--name", "weft", "--data-dir", str(self.folder / "data"),
                    "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
                    "--initial-advertise-peer-urls", peer, "--initial-cluster", f"weft={peer}",
                    "--heartbeat-interval", "50", "--election-timeout", "500",
                ],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def end(self, sign: signal.Signals = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(sign)
            self._process.wait(timeout=20)
            self._process = None


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
