"""Servers as the processes they are, each with a process group of its own."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.conformance.store.etcd_server import free_ports
from tests.scenario.server.test_server_log import until

from weft.client.api import Client
from weft.client.context import Context, hash_ca, read_context
from weft.launch.process.supervisor import PR_SET_PDEATHSIG
from weft.launch.server.membership.init import begin
from weft.launch.server.membership.join import join
from weft.launch.store.member import read_member
from weft.objects.errors import WeftError
from weft.protocol.server.join import MemberPlace

WEFT = [sys.executable, str(Path(sys.executable).with_name("weft"))]


def end_with_parent() -> None:
    """Ask the kernel to end this process with the test's, however that ends (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """``weft server`` with all its processes; ``enter``: words before its command, like those that lead into a namespace."""

    def __init__(self, state: Path, *options: str, host: str = "127.0.0.1", enter: Sequence[str] = ()) -> None:
        ports = free_ports(3)
        places = zip(("--listen", "--gateway", "--functions"), ports, strict=True)
        self.url = f"https://{host}:{ports[0]}"
        self.gateway, self.functions = f"{host}:{ports[1]}", f"{host}:{ports[2]}"
        self.state = state
        self._words = [
            *(*enter, *WEFT, "server", "--state", str(state), "--metrics", "off", *options),
            *(word for flag, port in places for word in (flag, f"{host}:{port}")),
        ]
        self.start()

    def start(self) -> None:
        self._log = (self.state.parent / f"{self.state.name}.log").open("ab")
        self.process = subprocess.Popen(
            self._words, stdout=self._log, stderr=self._log, start_new_session=True, preexec_fn=end_with_parent
        )

    def kill(self, sign: signal.Signals = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, sign)
        if sign is signal.SIGKILL:
            self.process.wait()
            self._log.close()

    def find_process(self, name: str) -> int:
        """The pid of its process of that name, like gateway, or etcd for its member of the store."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = path.read_bytes().decode().split("\0")
                is_member = words[0].endswith(name) and str(self.state / "etcd" / "data") in words
                if is_member or ("server" in words and name in words and str(self.state) in words):
                    return int(path.parent.name)
        raise AssertionError(f"{self.state} has no {name}")

    def read_log(self) -> str:
        return (self.state.parent / f"{self.state.name}.log").read_text(errors="replace")

    def connect(self, context: Context) -> Client:
        return Client(Context(server=self.url, ca=context.ca, token=context.token, server_name=context.server_name))


def tried(call: Callable[[], Any]) -> Any:
    """What ``call`` gives, once the server answers."""
    try:
        return call()
    except (WeftError, OSError, KeyError):
        return None


def make_token(client: Client, name: str) -> str:
    made = client.create({"kind": "token", "name": name, "spec": {"use": "server"}})
    return str(made["secret"])


def run_weft(context: Path, *words: str) -> list[str]:
    """The names that a list of the command line has."""
    said = subprocess.run(
        [*WEFT, *words, "-o", "name", "--context", str(context)], capture_output=True, text=True, check=True
    )
    return [line.rpartition("/")[2] for line in said.stdout.splitlines()]


def read_servers(client: Client) -> dict[str, tuple[str, list[str]]]:
    return {one["name"]: (one["status"]["phase"], one["status"]["leads"]) for one in client.list("server").items}


class Fabric:
    """Servers over the store ``store``, or with a member of it each, at addresses of loopback that no other test has, or in the net
    ``net``. ``options`` are those of all servers, and ``enter`` gives the words before a server's command."""

    def __init__(
        self,
        folder: Path,
        net: str = "",
        enter: Callable[[str], Sequence[str]] = lambda _: (),
        options: Sequence[str] = (),
        store: str = "",
    ) -> None:
        self.folder, self.servers, self._store = folder, dict[str, Server](), store
        self._net = net or f"127.{random.randrange(1, 255)}.{random.randrange(255)}"
        self._enter, self._options = enter, options
        self.context: Context

    def place(self, number: int) -> MemberPlace:
        return MemberPlace(f"{self._net}.{number}")

    def begin(self) -> None:
        if self._store:
            self._start(1, "--store", self._store)
        else:
            begin(self.folder / "s1", "s1", self.place(1))
            self._start(1)
        self.context = until(lambda: tried(lambda: read_context(self.folder / "s1" / "context.json")))
        until(lambda: tried(lambda: read_servers(self.client("s1")).get("s1") == ("Ready", ["controllers"])))

    def join(self, number: int, by: str = "s1") -> None:
        """Let server sNUMBER join, and start it."""
        self.take_in(number, by)
        self.start(number, by)

    def take_in(self, number: int, by: str = "s1") -> None:
        name = f"s{number}"
        token = make_token(self.client(by), f"for-{name}-{random.randbytes(3).hex()}")
        member = None if self._store else self.place(number)
        join(self.folder / name, self.servers[by].url, token, hash_ca(self.context.ca), name, member)

    def start(self, number: int, by: str = "s1") -> None:
        """Start server sNUMBER, which has joined, and wait until it serves and its member has a vote."""
        name = f"s{number}"
        self._start(number)
        if not self._store:
            until(lambda: b'"has_vote": true' in (self.folder / name / "etcd" / "member.json").read_bytes())
            until(lambda: name in read_member(self.folder / by).others)  # it has heard of it
        client = self.client(name)
        until(lambda: tried(lambda: read_servers(client)[name][0] == "Ready"))

    def client(self, name: str) -> Client:
        return self.servers[name].connect(self.context)

    def follow(self) -> Client:
        """A client that goes to another server when its own is gone, as the command line does."""
        context = read_context(self.folder / "s1" / "context.json")
        context.others = [server.url for name, server in self.servers.items() if name != "s1"]
        return Client(context)

    def _start(self, number: int, *options: str) -> None:
        name = f"s{number}"
        self.servers[name] = Server(
            self.folder / name,
            *("--server", name, *self._options, *options),
            host=self.place(number).host,
            enter=self._enter(name),
        )


@contextmanager
def fabric_in(folder: Path, store: str = "", options: Sequence[str] = ()) -> Iterator[Fabric]:
    fabric = Fabric(folder, store=store, options=options)
    try:
        yield fabric
    finally:
        for server in fabric.servers.values():
            server.kill()
