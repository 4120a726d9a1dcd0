"""A witness's machine for tests: its folder, its two sites, and the process."""

from __future__ import annotations

import contextlib
import io
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from weft.client.tls import fetch_ca
from weft.kinds.fields.cluster.link import WitnessToken, read_witness_token
from weft.launch.witness.main import main
from weft.objects.errors import WeftError

WEFT = str(Path(sys.executable).with_name("weft"))


class WitnessPlace:
    """The witness's machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "witness"
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            self.port, self.metrics = one.getsockname()[1], other.getsockname()[1]
        self.config = folder / "witness.yaml"
        self.config.write_text(
            f"state: {self.folder}\nlisten: 127.0.0.1:{self.port}\nmetrics: 127.0.0.1:{self.metrics}\n"
        )
        self.tokens = {name: self.add(name) for name in ("east", "west")}
        self.process: subprocess.Popen[bytes] | None = None
        self.ca = ""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def weft(self, *words: str) -> tuple[int, str]:
        """``weft witness …`` in this process: its exit code, and what it prints."""
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
            return main([*words, "--config", str(self.config)]), out.getvalue()

    def add(self, name: str) -> WitnessToken:
        code, text = self.weft("add-site", name)
        token = read_witness_token(text)
        assert code == 0 and token is not None and token.site == name, text
        return token

    def start(self) -> None:
        self.process = subprocess.Popen([WEFT, "witness", "--config", str(self.config)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120.0
        while True:
            try:
                self.ca = fetch_ca(self.url, self.tokens["east"].ca_sha256)
                return
            except WeftError:
                assert self.process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
