"""Two fabrics in one process, each with an API server and what asks linked clusters, for tests of links between them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.link_proxy import LinkProxy
from tests.scenario.api_lab import ApiLab

from weft.client.answer import raise_problem
from weft.client.cluster.peer import PeerLink, ask_hello
from weft.client.cluster.witness import ask_witness
from weft.controllers.asking import run_asking
from weft.controllers.cluster import controller, plan
from weft.controllers.cluster.controller import Clusters
from weft.controllers.cluster.requests import in_thread
from weft.controllers.failover import controller as witness_controller
from weft.controllers.failover.controller import Witnesses
from weft.informer.cache import Cache
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import make_view
from weft.kinds.cluster import TOKEN
from weft.kinds.secret import place_of
from weft.protocol.link import HelloAnswer


class Side(ApiLab):
    """One fabric; ``proxy`` is how the other one reaches it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__(folder)
        self.proxy = LinkProxy("127.0.0.1", self.port)
        self.ask: Callable[[PeerLink], HelloAnswer] = ask_hello
        self.ask_witness = ask_witness
        self.asking = asyncio.run_coroutine_threadsafe(self._ask_all(), self.loop)

    async def _ask_all(self) -> None:
        cache = Cache(self.store, make_view(), self.clock)
        lease = LeaderLease(self.store, cache, self.journal, self.clock, "controllers", "lab", None)
        async with asyncio.TaskGroup() as group:
            group.create_task(cache.run())
            await lease.begin()
            group.create_task(lease.keep())
            clusters = Clusters(
                lease,
                self.settings.seal_keys.unseal,
                lambda link: in_thread(lambda: self.ask(link)),
            )
            group.create_task(run_asking(clusters, lease))
            witnesses = Witnesses(
                lease,
                self.settings.seal_keys.unseal,
                lambda link, requests: in_thread(lambda: self.ask_witness(link, requests)),
            )
            group.create_task(run_asking(witnesses, lease))

    def link_token(self, name: str, **terms: Any) -> str:
        made = self.client.create({"kind": "token", "spec": {"use": "link", "link": {"name": name, **terms}}})
        return str(made["secret"])

    def link(self, name: str, other: Side, token: str, **terms: Any) -> dict[str, Any]:
        body = {"url": other.proxy.url, "token": token, "own_url": self.proxy.url, **terms}
        answer = self.client.http.request("POST", f"/v1/clusters/{name}:link", body)
        raise_problem(answer)
        return dict(answer.json())

    def cluster(self, name: str) -> dict[str, Any]:
        return self.client.get("cluster", name)

    def wait_for(self, name: str, until: Callable[[dict[str, Any]], bool], seconds: float = 30.0) -> dict[str, Any]:
        """The status of that cluster once it is so."""
        ends = time.monotonic() + seconds
        while not until(status := self.cluster(name)["status"]):
            assert time.monotonic() < ends, status
            time.sleep(0.02)
        return dict(status)

    def bearer(self, name: str) -> str:
        """The token with which this side asks the other."""
        return self.peer(name).token

    def peer(self, name: str) -> PeerLink:
        spec = self.cluster(name)["spec"]
        token = self.settings.seal_keys.unseal(spec["sealed"]["token"], place_of(None, name, TOKEN, "cluster"))
        return PeerLink(name, spec["url"], spec["ca"], token.decode())

    def close(self) -> None:
        self.asking.cancel()
        with contextlib.suppress(BaseException):
            self.asking.result(10)
        self.proxy.close()
        super().close()


@contextlib.contextmanager
def two_sides(folder: Path) -> Iterator[tuple[Side, Side]]:
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(controller, "ASK_SECONDS", 0.2)
        patch.setattr(plan, "SILENCE_SECONDS", 1.0)
        patch.setattr(witness_controller, "RENEW_SECONDS", 0.2)
        sides = [Side(folder / name) for name in ("east", "west")]
        for side in sides:
            stack.callback(side.close)
        yield sides[0], sides[1]
