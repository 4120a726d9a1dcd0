"""How witnesses are asked: many VMs, and one witness that is slow."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import cast

import msgspec
import pytest

from weft.client.answer import ClientAnswer
from weft.client.cluster import hold
from weft.client.cluster import witness as client
from weft.client.cluster.witness import WitnessLink
from weft.contracts.clock import SystemClock
from weft.controllers.asking import run_asking
from weft.controllers.failover import controller
from weft.controllers.failover.automatic import Automatics
from weft.controllers.failover.facts import Group
from weft.controllers.failover.hold import HeldGuest
from weft.informer.leader_lease import LeaderLease, LeadershipLost
from weft.informer.view import Item
from weft.kinds.cluster import CLUSTER, ClusterSpec
from weft.kinds.fields.cluster.link import ClusterWitness, WitnessToken
from weft.objects.errors import Unavailable
from weft.protocol.failover.claim import Claim, Generation, Promised
from weft.protocol.failover.witness import WitnessAnswer, WitnessRequest

FIRST = Claim(Generation(1, "a"), "east")
LINK = WitnessLink("https://192.0.2.7:7443", WitnessToken("east", "a" * 64, "b" * 64))
REQUESTS = [
    WitnessRequest(peer="west", group=f"g{number}", what="claim", claim=FIRST, seconds=38.0) for number in range(170)
]


def test_many_requests_go_over_some_connections_and_the_answers_keep_their_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []

    def ask(link: WitnessLink, requests: Sequence[WitnessRequest]) -> list[WitnessAnswer]:
        sizes.append(len(requests))
        return [WitnessAnswer(answer=Promised(FIRST), epoch=one.group, is_armed=True) for one in requests]

    monkeypatch.setattr(controller, "ask_witness", ask)
    heard = asyncio.run(controller.ask_in_thread(LINK, REQUESTS))
    assert [one.epoch for one in heard if isinstance(one, WitnessAnswer)] == [one.group for one in REQUESTS]
    assert len(sizes) == 4 and max(sizes) <= controller.REQUESTS_OF_THREAD


def test_a_witness_that_takes_too_long_for_all_is_asked_no_more_in_this_round(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class SlowHttp:
        def __init__(self, *_: object, **__: object) -> None: ...

        def request(self, *_: object) -> ClientAnswer:
            now[0] += 7.0
            found = WitnessAnswer(answer=Promised(FIRST), epoch="e", is_armed=True)
            return ClientAnswer(200, {}, msgspec.json.encode(found))

        def close(self) -> None: ...

    monkeypatch.setattr(client, "fetch_ca", lambda *_, **__: "")
    monkeypatch.setattr(client, "Http", SlowHttp)
    monkeypatch.setattr(client, "read_boot_time", lambda: now[0])
    heard = client.ask_witness(LINK, REQUESTS)
    assert len(heard) == len(REQUESTS) and now[0] < 38.0
    assert isinstance(heard[0], WitnessAnswer) and isinstance(heard[-1], Unavailable)


class Leadership:
    """With the clusters west, whose witness never answers, and south."""

    def __init__(self) -> None:
        self.clock, self.cache, self.view = SystemClock(), self, self
        witness = ClusterWitness(url="https://192.0.2.7:7443", peer="x")
        self.clusters = {
            item.key: item
            for name in ("west", "south")
            for item in [Item(CLUSTER.make(name, ClusterSpec(url="https://x", ca="", witness=witness), 1.0, uid=name))]
        }

    def of_kind(self, kind: str) -> dict[str, Item]:
        return self.clusters if kind == CLUSTER.name else {}

    def get(self, key: str) -> Item | None:
        return self.clusters.get(key)

    def subscribe(self, *_: object) -> Callable[[], None]:
        return lambda: None


def test_nodes_get_their_stamps_while_the_other_cluster_keeps_a_review_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "RENEW_SECONDS", 0.01)
    asked, reviews = Counter[str](), Counter[str]()

    class Reviewed(controller.Witnesses):
        async def _speak(self, cluster: Item) -> tuple[list[Group], list[controller.WitnessResponse]]:
            asked[cluster.uid] += 1
            if asked["west"] == 5:
                raise LeadershipLost("over")
            return [], []

    class Slow:
        async def review(self, cluster: Item, *_: object) -> None:
            reviews[cluster.uid] += 1
            await asyncio.Event().wait()

    async def run() -> None:
        witnesses = Reviewed(cast(LeaderLease, Leadership()), None)
        witnesses._automatics = cast(Automatics, Slow())
        leadership = cast(LeaderLease, Leadership())
        with pytest.raises(ExceptionGroup) as lost:
            await asyncio.wait_for(run_asking(witnesses, leadership), 60.0)
        assert lost.group_contains(LeadershipLost)

    asyncio.run(run())
    assert asked["west"] == 5 and reviews == {"west": 1, "south": 1}


async def test_what_the_witness_confirmed_waits_for_nobody_else() -> None:
    given = asyncio.Event()

    class Store:
        async def grant(self, name: str, *_: object) -> None:
            assert name.endswith("n1")
            given.set()

    leadership = Leadership()
    leadership.store = Store()  # type: ignore[attr-defined]
    witnesses = controller.Witnesses(cast(LeaderLease, leadership), None)
    web, db = (
        HeldGuest(name, name, hold.Hold("p", name, name, "p"), {f"n{at}": "boot/1"})
        for at, name in ((1, "a"), (2, "b"))
    )
    silent: asyncio.Task[list[bool]] = asyncio.create_task(asyncio.sleep(3600.0, [True, True]))
    confirming = asyncio.create_task(
        witnesses._confirm(leadership.clusters["/cluster/-/west"], [web, db], [db], silent)
    )
    await asyncio.wait_for(given.wait(), 60.0)
    for task in (confirming, silent):
        task.cancel()
