"""A real etcd of this test run's own, on loopback, that a test may kill and start again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from pathlib import Path

PROGRAM = shutil.which("etcd")


class EtcdServer:
    """One member; ``members`` are the peer addresses of all, by name, once they are known."""

    def __init__(self, folder: Path, name: str = "weft", options: tuple[str, ...] = (), scheme: str = "http") -> None:
        self.folder = folder
        self.name = name
        client_port, peer_port = free_ports(2)
        self.endpoint = f"127.0.0.1:{client_port}"
        self.peer = f"http://127.0.0.1:{peer_port}"
        self.members = {name: self.peer}
        self._options = options
        self._scheme = scheme
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """It as a server's store."""
        return f"etcd://{self.endpoint}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        client = f"{self._scheme}://{self.endpoint}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(PROGRAM), "--name", self.name, "--data-dir", str(self.data),
                    "--listen-client-urls", client, "--advertise-client-urls", client,
                    "--listen-peer-urls", self.peer, "--initial-advertise-peer-urls", self.peer,
                    "--initial-cluster", ",".join(f"{name}={peer}" for name, peer in self.members.items()),
                    "--heartbeat-interval", "50", "--election-timeout", "500", *self._options,
                ],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def __enter__(self) -> EtcdServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def send(self, sign: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(sign)

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
