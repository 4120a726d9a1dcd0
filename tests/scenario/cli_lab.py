"""A whole fabric for the command's scenarios: real server and agents as processes, with guests that only pretend."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.commands import run_command
from tests.scenario.agent_lab import BUNDLE
from tests.shelf import SHELF

from weft.cli.app import run
from weft.contracts.clock import SystemClock

WEFT = [str(Path(sys.executable).with_name("weft"))]
FAKES = ["--runtime", "fake", "--network", "fake", "--volume", "fake"]
NODE = ["--cpu", "4", "--memory", "8G", "--disk", "50G"]


class Said(NamedTuple):
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


class Fabric:
    """``weft`` runs commands in this process, ``spawn`` in one of their own."""

    def __init__(self, folder: Path, agent_options: Sequence[str] = (), server_options: Sequence[str] = ()) -> None:
        self.folder, self._agent_options, self._server_options = folder, agent_options, server_options
        self.context = folder / "context.json"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ports = _free_ports(3)

    def start_server(self, source: Path | None = None) -> None:
        """Start the server, of the weft in ``source`` if that is given, and wait until it answers."""
        flags = zip(("--listen", "--gateway", "--functions"), self._ports, strict=True)
        places = [word for flag, port in flags for word in (flag, f"127.0.0.1:{port}")]
        argv = ["server", "--state", str(self.folder / "server"), *places, "--context", str(self.context)]
        argv += ["--allow-fetch", str(self.folder), *self._server_options] if source is None else []
        self.server = self._launch("server", *argv, source=source)
        self.weft_until("node", "list")

    def stop_server(self) -> None:
        self.server.terminate()
        self.server.wait(15)

    def start(self) -> None:
        self.start_server()
        for node in ("n1", "n2"):
            line = self.weft("token", "create", "--join", "--node", node).out.split()
            state = ["--state", str(self.folder / node)]
            joined = run_command(*line[1:], *state, timeout=30)
            assert joined.returncode == 0, joined.stderr
            run_dir = ["--run-dir", str(self.folder / f"r{node}")]
            self._launch(node, "agent", node, *state, *run_dir, *FAKES, *NODE, *self._agent_options)
        for node in ("n1", "n2"):
            said = self.weft("wait", f"node/{node}", "--for=phase=Ready", "--timeout", "30s")
            assert said.code == 0, said.err + self.logs()
        (self.folder / "tiny.tar").write_bytes(BUNDLE)
        assert self.weft("image", "add", "tiny", str(self.folder / "tiny.tar")).code == 0

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert "never retrieved" not in self.logs(), self.logs()

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("*.log")))

    def weft(self, *argv: str, stdin: str = "") -> Said:
        """One command in this process."""
        out, err = io.StringIO(), io.StringIO()
        source = io.TextIOWrapper(io.BytesIO(stdin.encode()))
        before = sys.stdin
        sys.stdin = source
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = run(["--context", str(self.context), *argv], SystemClock)
        finally:
            sys.stdin = before
        return Said(code, out.getvalue(), err.getvalue())

    def weft_until(self, *argv: str) -> None:
        """Repeat a command until it succeeds: the server is starting."""
        said = self.weft(*argv)
        for _ in range(300):
            if said.code == 0:
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.server.wait(0.1)
            said = self.weft(*argv)
        raise AssertionError(said.err + self.logs())

    def spawn(self, *argv: str, **more: object) -> subprocess.Popen[str]:
        """One command as a process of its own, with pipes."""
        env = {**os.environ, "WEFT_CONTEXT": str(self.context), "PYTHONUNBUFFERED": ""}  # it flushes what must be seen
        pipes: dict[str, object] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*WEFT, *argv], env=env, text=True, **{**pipes, **more})  # type: ignore[call-overload, no-any-return]

    def _launch(self, name: str, *argv: str, source: Path | None = None) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PYTHONPATH": str(source)} if source else None
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen([*WEFT, *argv], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env)
        self._processes.append(process)
        return process


@contextlib.contextmanager
def start_fabric(
    around: Callable[[Path], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    agent_options: Sequence[str] = (),
    server_options: Sequence[str] = (),
) -> Iterator[Fabric]:
    """A fabric in a folder with a short path (sockets live in it), gone at the end; it lives within ``around(folder)``."""
    with tempfile.TemporaryDirectory(prefix="wf-", dir=SHELF) as folder, around(Path(folder)):
        fabric = Fabric(Path(folder), agent_options, server_options)
        try:
            fabric.start()
            yield fabric
        finally:
            fabric.stop()


def _free_ports(count: int) -> Sequence[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]
