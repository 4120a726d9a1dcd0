"""Three etcd members and some API servers as processes on loopback, which are killed, frozen and cut off while others ask them."""

from __future__ import annotations

import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from tests.conformance.store.etcd_server import EtcdServer
from tests.link_proxy import LinkProxy
from tests.scenario.server.test_api_process import ApiProcess
from weft.client.context import Context, read_context

SHARED = ("ca.key", "ca.crt", "seal.key", "ticket.key")  # what makes servers those of one fabric
OPTIONS = ("--grpc-keepalive-min-time", "1s")


class Servers:
    """``start`` returns once all answer; ``context`` knows all of them. Everything ends with ``stack``. ``before`` is Python that
    each API server runs first."""

    def __init__(self, folder: Path, stack: ExitStack, count: int, before: str = "") -> None:
        self.members = [EtcdServer(folder / name, name, OPTIONS) for name in ("m1", "m2", "m3")]
        self._stack = stack
        self._proxies: list[list[LinkProxy]] = []
        self.servers: list[ApiProcess] = []
        for number in range(1, count + 1):
            ways = [LinkProxy(*_split(member.endpoint)) for member in self.members]
            for way in ways:
                stack.callback(way.close)
            store = f"etcd://{','.join(f'127.0.0.1:{way.port}' for way in ways)}"
            self._proxies.append(ways)
            options = ("--server", f"s{number}", "--store", store)
            self.servers.append(stack.enter_context(ApiProcess(folder / f"s{number}", *options, before=before)))
        self.context = Context(server="")

    def start(self) -> None:
        everyone = {member.name: member.peer for member in self.members}
        for member in self.members:
            member.members = everyone
            member.start()
            self._stack.callback(member.end)
        first, *others = self.servers
        first.start()
        first.connect().close()
        for server in others:
            server.state.mkdir()
            for name in SHARED:
                shutil.copy(first.state / name, server.state / name)
            server.start()
            server.connect().close()
        known = read_context(first.state / "context.json")
        self.context = msgspec.structs.replace(known, others=[self.url(at) for at in range(1, len(self.servers))])

    def url(self, at: int) -> str:
        return f"https://127.0.0.1:{self.servers[at].port}"

    def kill_member(self, at: int) -> Callable[[], None]:
        self.members[at].end()
        return self.members[at].start

    def freeze_member(self, at: int) -> Callable[[], None]:
        self.members[at].send(signal.SIGSTOP)
        return lambda: self.members[at].send(signal.SIGCONT)

    def kill_server(self, at: int) -> Callable[[], None]:
        process = self.servers[at].processes[-1]
        process.kill()
        process.wait()
        return lambda: self.servers[at].start() and None

    def freeze_server(self, at: int) -> Callable[[], None]:
        process = self.servers[at].processes[-1]
        process.send_signal(signal.SIGSTOP)
        return lambda: process.send_signal(signal.SIGCONT)

    def cut_off(self, at: int) -> Callable[[], None]:
        """No packet goes between this server and etcd, or connections break."""
        for way in self._proxies[at]:
            way.freeze() if at % 2 else way.cut()

        def mend() -> None:
            for way in self._proxies[at]:
                way.mend()

        return mend


class Outages(threading.Thread):
    """One after the other, while it runs; ``count`` says how many of each there were. ``most_seconds`` is the longest of one."""

    def __init__(self, servers: Servers, seed: int, most_seconds: float) -> None:
        super().__init__(name="outages")
        self._servers, self._draw, self._most_seconds = servers, random.Random(seed), most_seconds
        self._over = threading.Event()
        self.count: Counter[str] = Counter()
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._over.wait(self._draw.uniform(0.2, 1.0)):
                self._befall()
        except BaseException as problem:
            self.problem = problem

    def end(self) -> None:
        self._over.set()
        self.join()
        if self.problem is not None:
            raise self.problem

    def _befall(self) -> None:
        servers, draw = self._servers, self._draw
        member, server = draw.randrange(len(servers.members)), draw.randrange(len(servers.servers))
        acts = {
            "etcd member killed": lambda: servers.kill_member(member),
            "etcd member frozen": lambda: servers.freeze_member(member),
            "server killed": lambda: servers.kill_server(server),
            "server frozen": lambda: servers.freeze_server(server),
            "server cut off from etcd": lambda: servers.cut_off(server),
        }
        least = min(self.count[name] for name in acts)  # all of them, however short it is
        name = draw.choice([name for name in acts if self.count[name] == least])
        undo = acts[name]()
        self.count[name] += 1
        time.sleep(draw.uniform(0.3, self._most_seconds))
        undo()


def _split(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host, int(port)
