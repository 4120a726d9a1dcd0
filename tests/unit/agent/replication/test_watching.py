"""A node asks after replicas that get no points for a while, and reports only what ends that."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import msgspec
import pytest

from weft.agent.image.cache import ImageCache
from weft.agent.replication import sender as module
from weft.agent.replication.sender import Sender
from weft.agent.server.client import Server
from weft.agent.volume.pools import Pools
from weft.contracts.clock import SystemClock
from weft.kinds.fields.replication.work import SendOrder
from weft.objects.errors import IllegalTransition, Unavailable, WeftError
from weft.protocol.report import OpenedLink


class _Server:
    def read_link(self, node: str, cluster: str) -> OpenedLink:
        return OpenedLink("", "", "")


class There:
    """The other cluster, as one question after the other finds it; the last again and again."""

    def __init__(self, patch: pytest.MonkeyPatch, *found: WeftError | None) -> None:
        self.found, self.asked, self.closed, self._lock = list(found), list[tuple[str, str]](), 0, threading.Lock()
        there = self

        class Line:
            def __init__(self, *_: object) -> None: ...

            def check_standby(self, name: str, origin: str) -> None:
                with there._lock:
                    there.asked.append((name, origin))
                    found = there.found.pop(0) if len(there.found) > 1 else there.found[0]
                if found is not None:
                    raise found

            def close(self) -> None:
                there.closed += 1

        patch.setattr(module, "Peer", Line)
        patch.setattr(module, "ASK_EVERY_SECONDS", 0.001)


def make_order(**changes: Any) -> SendOrder:
    order = SendOrder(uid="r", node_uid="n", attempt=3, cluster="west", project="lab", replica="web")
    return msgspec.structs.replace(order, **changes)


async def test_it_asks_again_until_the_replica_was_promoted(monkeypatch: pytest.MonkeyPatch) -> None:
    promoted = IllegalTransition("it was promoted", reason="staleGeneration", hint="look there")
    there = There(monkeypatch, None, Unavailable("no line"), None, promoted)
    server, told = cast(Server, _Server()), asyncio.Event()
    sender = Sender("n1", server, cast(Pools, None), cast(ImageCache, None), SystemClock(), told.set)
    sender.put_orders([make_order()])
    assert not sender.has_orders and sender.report() == []  # it is nothing to report often for
    async with asyncio.timeout(30):
        await told.wait()
    [report] = sender.report()
    assert (report.uid, report.attempt, report.phase, report.reason) == ("r", 3, "failed", "staleGeneration")
    assert (report.message, there.asked, there.closed) == ("it was promoted; look there", [("web", "r")] * 4, 4)
    await sender.close()


async def test_it_asks_no_more_once_the_order_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    there = There(monkeypatch, None)
    sender = Sender(
        "n1", cast(Server, _Server()), cast(Pools, None), cast(ImageCache, None), SystemClock(), lambda: None
    )
    sender.put_orders([make_order()])
    async with asyncio.timeout(30):
        while len(there.asked) < 3:
            await asyncio.sleep(0.001)
    sender.put_orders([])
    await asyncio.sleep(0)  # the task ends at its next step
    asked = len(there.asked)
    await sender.close()
    await asyncio.sleep(0.05)
    assert len(there.asked) <= asked + 1  # one may have been on its way
