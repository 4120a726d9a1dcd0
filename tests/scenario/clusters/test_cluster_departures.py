"""A VM that migrates to another cluster, and one that comes from there, each with the other cluster as asked only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from tests.scenario.migration_lab import MovingLab, World

from weft.client.cluster.peer import PeerLink
from weft.controllers.departure.controller import Departures
from weft.controllers.departure.perform import DeparturePlace, Seen
from weft.controllers.departure.seen import ArrivalAct, SeenArrival
from weft.kinds.allocation import AllocationSpec
from weft.kinds.arrival import FROM_ARRIVAL, ArrivalSpec, ArrivalStatus
from weft.kinds.cluster import TOKEN, ClusterSpec, ClusterStatus
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope, decode_part, merge_part
from weft.objects.errors import AlreadyExists, Unavailable, WeftError
from weft.objects.identity import object_key

SPEC = ClusterSpec(url="https://10.0.0.1:6443", ca="their CA", projects={"default": "lab"}, sealed={TOKEN: "s"})
CAME = ArrivalSpec(of="vm/web", origin="o", key="k", node="e1", node_uid="n", allocation="s", volumes={"data": 1 << 20})


class Elsewhere:
    """A node of the other cluster, of which nothing is known here."""

    def __init__(self) -> None:
        self.specs: dict[str, Any] = {}
        self.alive = True

    async def die(self) -> None:
        pass


async def test_a_vm_leaves_for_another_cluster_with_all_that_it_had(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        there: dict[str, SeenArrival] = {}

        async def ask(link: PeerLink, places: Sequence[DeparturePlace]) -> list[Seen]:
            for name, seen in there.items():
                (world,) = lab.worlds.values() if lab.worlds else (None,)
                if world is not None and world.handed_over:
                    world.taken_over = True
                    there[name] = msgspec.structs.replace(seen, phase="Arrived", pause_ms=21)
            return [there.get(name) for _, name, _ in places]

        async def perform(link: PeerLink, acts: Sequence[ArrivalAct]) -> list[SeenArrival | WeftError]:
            answers: list[SeenArrival | WeftError] = []
            for act in acts:
                if act.what == "create":
                    waiting = SeenArrival("a", "Waiting", "w1", "x", "t", "10.0.0.9:7000")
                    there[act.name] = waiting
                    await lab.change("/vm/default/web", attach)
                    answers.append(AlreadyExists("it exists"))  # as if the first answer had been lost
                else:
                    there.pop(act.name, None)
                    answers.append(SeenArrival())
            return answers

        def attach(envelope: Envelope) -> None:
            """As by someone who was faster than the refusal."""
            spec = decode_part(envelope.spec, VmSpec)
            envelope.spec = merge_part(envelope.spec, msgspec.structs.replace(spec, volumes=["data", "extra"]))
            envelope.generation += 1

        await lab.kill_controllers()
        await lab.put("volume", "extra", {"size": 1 << 20}, finalizers=("volume",))
        await lab.put("cluster", "west", SPEC, project=None, status=ClusterStatus(phase="Linked"))
        await lab.put("volume", "data", {"size": 1 << 20}, finalizers=("volume",))
        lab.start_controllers(more=[lambda lease: Departures(lease, lambda *_: b"t", ask, perform)])
        await lab.add_node("n1")
        lab.nodes["west/w1"] = Elsewhere()  # type: ignore[assignment]
        await lab.put_vm("web", volumes=["data"], networks=["default"], publish=["8080:80"])
        await lab.until_phase("web", "Running")
        await lab.migrate("web", cluster="west")
        over = await lab.until_migration("Succeeded")
        assert (
            (over.target, over.source) == ("west/w1", "n1") and over.actual is not None and over.actual.pause_ms == 21
        )
        await lab.until_phase("web", "Stopped")
        assert decode_part((await lab.vm("web")).marks, WorkloadMarks).departed == "west/lab/web"
        await lab.until_gone("/volume/default/data")

        async def empty() -> bool:
            return not [*await lab.allocations(), *await lab.endpoints(), *await lab.every("publishedport"), *there]

        await lab.until(empty)
        extra = await lab.get("/volume/default/extra")
        assert extra is not None and extra.deleting_since is None  # it never went


async def test_a_guest_is_not_let_go_on_here_by_an_old_report_that_it_stays(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        there: dict[str, SeenArrival] = {}
        cut, asked, answers = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def ask(link: PeerLink, places: Sequence[DeparturePlace]) -> list[Seen]:
            if not cut.is_set():
                return [there.get(name) for _, name, _ in places]
            asked.set()
            await answers.wait()
            return [Unavailable("no answer in time") for _ in places]

        async def perform(link: PeerLink, acts: Sequence[ArrivalAct]) -> list[SeenArrival | WeftError]:
            there.update({act.name: SeenArrival("a", "Waiting", "w1", "x", "t", "10.0.0.9:7000") for act in acts})
            return [SeenArrival()] * len(acts)

        lab.begin.append(World(stops_at="migrating", fails_at="switching"))
        await lab.kill_controllers()
        await lab.put("cluster", "west", SPEC, project=None, status=ClusterStatus(phase="Linked"))
        lab.start_controllers(more=[lambda lease: Departures(lease, lambda *_: b"t", ask, perform)])
        node = await lab.add_node("n1")
        lab.nodes["west/w1"] = Elsewhere()  # type: ignore[assignment]
        await lab.put_vm("web", networks=["default"])
        await lab.until_phase("web", "Running")
        await lab.migrate("web", cluster="west")
        await lab.until_migration("Migrating")
        (world,), (allocation,) = lab.worlds.values(), await lab.every("allocation")
        cut.set()
        world.stops_at = ""
        await node.act(allocation.key)  # it reports that it failed

        async def is_asked() -> bool:
            return asked.is_set()

        await lab.until(is_asked)
        world.fails_at = ""  # an agent that remembers nothing of it sends anew
        node.running[allocation.uid] = msgspec.structs.replace(node.running[allocation.uid], migration=None)
        for _ in range(3):
            await node.act(allocation.key)
        assert world.handed_over
        world.taken_over = True
        answers.set()

        async def is_reread() -> bool:
            return (await lab.migration()).reason == "clusterUnreachable" or (await lab.migration()).phase == "Failed"

        await lab.until(is_reread)
        found = await lab.get(allocation.key)
        assert found is not None and decode_part(found.spec, AllocationSpec).role == "source"


async def test_a_vm_comes_from_another_cluster_or_nothing_of_it_stays(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.put("cluster", "east", msgspec.structs.replace(SPEC, grants=["migrate"]), project=None)
        await lab.add_node("n1")
        lab.nodes["east/e1"] = Elsewhere()  # type: ignore[assignment]

        async def come(name: str, key: str) -> Envelope:
            lab.creator = "cluster:east"
            spec = msgspec.structs.replace(CAME, of=f"vm/{name}", key=key, volumes={f"data-{name}": 1 << 20})
            arrival = await lab.put("arrival", f"{name}-m", spec, finalizers=("arrival",))
            lab.creator = ""
            volume = await lab.put("volume", f"data-{name}", {"size": 1 << 20}, finalizers=("volume",))
            made_with_it = {FROM_ARRIVAL: f"{name}-m"}
            await lab.change(volume.key, lambda envelope: setattr(envelope, "labels", made_with_it))
            marks = WorkloadMarks(arrives=f"{name}-m")
            await lab.put_vm(name, marks=marks, networks=["default"], volumes=[f"data-{name}"])
            return arrival

        async def status(arrival: Envelope) -> ArrivalStatus:
            found = await lab.get(arrival.key)
            assert found is not None
            return decode_part(found.status, ArrivalStatus)

        async def until(arrival: Envelope, phase: str) -> ArrivalStatus:
            async def there() -> bool:
                return (await status(arrival)).phase == phase

            await lab.until(there)
            return await status(arrival)

        web = await come("web", "k")
        waiting = await until(web, "Waiting")
        assert (waiting.address, waiting.node) == ("10.0.0.9:7000", "n1")
        (place,) = await lab.allocations()
        assert place.role == "target" and place.migration is not None
        assert (place.migration.peer, place.migration.peer_ca) == ("east/e1", "their CA")
        assert (await lab.status("web")).phase == "Pending"
        lab.world("k").handed_over = True
        await lab.nodes["n1"].act(f"/allocation/-/{lab.nodes['n1'].uid}.{waiting.allocation}")
        assert (await until(web, "Arrived")).pause_ms == 21
        await lab.until_phase("web", "Running")
        assert decode_part((await lab.vm("web")).marks, WorkloadMarks).arrives == ""
        await lab.ask(web.name, "arrival", settled=True)
        await lab.until_gone(web.key)

        shop = await come("shop", "l")
        await until(shop, "Waiting")
        await lab.ask(shop.name, "arrival", cancel=True)
        assert (await until(shop, "Cancelled")).never_ran
        await lab.until_gone("/vm/default/shop")
        await lab.until_gone("/volume/default/data-shop")

        mail = await come("mail", "m")
        await until(mail, "Waiting")

        def rename(envelope: Envelope) -> None:
            spec = msgspec.structs.replace(SPEC, grants=["migrate"], projects={"other": "lab"})
            envelope.spec = merge_part(envelope.spec, spec)
            envelope.generation += 1

        await lab.change(object_key("cluster", None, "east"), rename)
        over = await until(mail, "Failed")
        assert over.reason == "notLinked" and "has project default no more" in over.message
