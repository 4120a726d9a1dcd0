"""Two servers of one fabric over a real etcd, and nodes whose guests pretend."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.conformance.store.etcd_server import EtcdServer
from tests.scenario.agent_lab import BUNDLE
from tests.scenario.cli_lab import FAKES, NODE
from tests.scenario.server.servers_lab import WEFT, Fabric, Server, fabric_in, read_servers, tried
from tests.scenario.server.test_server_log import until
from tests.shelf import SHELF

from weft.client.context import Context, write_context


class FabricWithNodes:
    """``first`` and ``second`` are its servers; ``client`` asks the second one."""

    def __init__(self, fabric: Fabric, stack: ExitStack) -> None:
        self.folder, self._stack = fabric.folder, stack
        self._agents, self._processes = dict[str, list[str]](), dict[str, subprocess.Popen[bytes]]()
        fabric.begin()
        fabric.join(2)
        self.first, self.second = fabric.servers.values()
        self.context, self.client = fabric.context, fabric.client("s2")
        self._places = {server: self._write_context(server) for server in (self.first, self.second)}

    def revive(self) -> None:
        """Start the first server again if it was killed."""
        if self.first.process.poll() is not None:
            self.first.start()
        until(lambda: tried(lambda: {phase for phase, _ in read_servers(self.client).values()} == {"Ready"}))
        until(lambda: tried(lambda: self.first.connect(self.context).get("server", "s1")))

    def _write_context(self, server: Server) -> Path:
        path = self.folder / f"context-{server.state.name}.json"
        context = Context(
            server=server.url, ca=self.context.ca, token=self.context.token, server_name=self.context.server_name
        )
        write_context(path, context)
        return path

    def spawn(self, server: Server, *words: str) -> subprocess.Popen[bytes]:
        """A command of a person whose context names that server."""
        env = {**os.environ, "WEFT_CONTEXT": str(self._places[server])}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([*WEFT, *words], env=env, **pipes)
        self._stack.callback(process.kill)
        return process

    def weft(self, server: Server, *words: str, seconds: float = 60.0) -> str:
        """What a command prints. Raises AssertionError if it fails."""
        process = self.spawn(server, *words)
        out, err = process.communicate(timeout=seconds)
        assert process.returncode == 0, (words, out, err.decode())
        return out.decode()

    def add_node(self, name: str, server: Server, *options: str) -> None:
        """A node that joins at ``server`` and runs until the end."""
        line = self.weft(server, "token", "create", "--join", "--node", name).split()
        state = ["--state", str(self.folder / name)]
        subprocess.run([*WEFT, *line[1:], *state], check=True, capture_output=True, timeout=60)
        run_dir = str(self.folder / f"r{name}")
        self._agents[name] = [*WEFT, "agent", name, *state, "--run-dir", run_dir, *FAKES, *NODE, *options]
        self.start_node(name)
        self.weft(server, "wait", f"node/{name}", "--for=phase=Ready", "--timeout", "60s")

    def start_node(self, name: str) -> None:
        """Start its agent, again if it runs."""
        if (before := self._processes.get(name)) is not None:
            before.terminate()
            before.wait(30)
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(self._agents[name], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._processes[name] = process
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)

    def add_image(self, server: Server) -> None:
        (self.folder / "tiny.tar").write_bytes(BUNDLE)
        self.weft(server, "image", "add", "tiny", str(self.folder / "tiny.tar"))

    def read_enrolment(self, node: str) -> Any:
        return json.loads((self.folder / node / "node.json").read_bytes())


@contextmanager
def start_fabric() -> Iterator[FabricWithNodes]:
    """A fabric of two servers, in a folder with a short path: sockets live in it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wf-", dir=SHELF)))
        etcd = stack.enter_context(EtcdServer(folder / "etcd"))
        options = ("--allow-fetch", str(folder))
        yield FabricWithNodes(stack.enter_context(fabric_in(folder, etcd.url, options)), stack)
