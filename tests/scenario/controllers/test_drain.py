"""A node is drained, with the controllers over a store in memory and nodes that only pretend: nothing is stopped, what can't leave
is told, and a drain outlives whoever leads it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from tests.scenario.migration_lab import MIB, MigratingNode, MovingLab, World
from tests.scenario.scheduler.test_reservations import reserve, until_state

from weft.contracts.trace.context import Context, make_mark, read_ended
from weft.controllers.node.drain_plan import AT_ONCE
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.kinds.migration import ENDED, MigrationSpec, MigrationStatus
from weft.kinds.node import Gpu, NodeRuntime
from weft.kinds.report import Leaving, ReportStatus
from weft.objects.envelope import Condition, Envelope, decode_part, merge_part

GIB = 1024**3
T4 = Gpu("Tesla T4", 16 * GIB, "0000:86:00.0")


async def mark(lab: MovingLab, node: str, **asked: object) -> None:
    await lab.ask(node, "node", None, **asked)


async def drain(lab: MovingLab, node: str) -> None:
    await mark(lab, node, drain=True, cordoned=True)


async def told(lab: MovingLab, node: str) -> Condition | None:
    envelope = await lab.get(f"/node/-/{node}")
    assert envelope is not None
    return envelope.condition("Drained")


async def until_told(lab: MovingLab, node: str, reason: str, seconds: float = 200.0) -> str:
    async def there() -> bool:
        condition = await told(lab, node)
        return condition is not None and condition.reason == reason

    await lab.until(there, seconds)
    condition = await told(lab, node)
    assert condition is not None
    return condition.message


async def rehearse(lab: MovingLab, node: str, **spec: object) -> list[Leaving]:
    return (await preview(lab, node, **spec)).leaving


async def preview(lab: MovingLab, node: str, **spec: object) -> ReportStatus:
    name = f"ask-{len(await lab.every('report'))}"
    await lab.put("report", name, {"subject": "drain", "node": node, **spec}, project=None)

    async def done() -> bool:
        envelope = await lab.get(f"/report/-/{name}")
        return envelope is not None and decode_part(envelope.status, ReportStatus).phase == "Done"

    await lab.until(done)
    envelope = await lab.get(f"/report/-/{name}")
    assert envelope is not None
    return decode_part(envelope.status, ReportStatus)


async def fill(lab: MovingLab, count: int, **spec: object) -> None:
    """VMs on n1, and then two more nodes."""
    await lab.add_node("n1")
    await lab.pass_time(2)
    for number in range(count):
        await lab.put_vm(f"vm-{number}", **{"memory": GIB, "cpu": 0.5, "node": None, **spec})
    for number in range(count):
        await lab.until_phase(f"vm-{number}", "Running")


async def write_mark(lab: MovingLab, key: str, letter: str) -> str:
    """Leave the mark of a person's write there, as the API server does."""
    text = make_mark(Context(letter * 32, letter * 16), lab.clock.now())

    def change(envelope: Envelope) -> None:
        envelope.trace = text

    await lab.change(key, change)
    return text


async def test_what_a_drain_migrates_is_in_the_drain_s_trace_and_a_vm_s_creation_ends_with_the_vm_running(
    tmp_path: Path,
) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1")
        await lab.put_vm("web", memory=GIB, cpu=0.5)
        created = await write_mark(lab, "/vm/default/web", "a")
        await lab.until_phase("web", "Running")
        assert [place.trace for place in await lab.every("allocation")] == [created]
        vm = await lab.vm("web")
        assert read_ended(vm.trace) == Context("a" * 32, "a" * 16)
        await lab.add_node("n2")
        asked = await write_mark(lab, "/node/-/n1", "b")
        await drain(lab, "n1")
        await until_told(lab, "n1", "Drained")
        assert [one.trace for one in await lab.every("migration")] == [asked]
        assert [place.trace for place in await lab.every("allocation")] == [asked]
        assert read_ended((await lab.vm("web")).trace) == Context("a" * 32, "a" * 16)


async def places(lab: MovingLab) -> dict[str, str]:
    return {place.workload.name: place.node for place in await lab.allocations() if place.role == "active"}


async def test_all_that_is_on_a_node_leaves_a_few_at_a_time_and_nothing_comes_back(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await fill(lab, 5)
        for name in ("n2", "n3"):
            await lab.add_node(name)
        await drain(lab, "n1")
        most = 0

        async def empty() -> bool:
            nonlocal most
            statuses = [decode_part(item.status, MigrationStatus) for item in await lab.every("migration")]
            most = max(most, sum(status.phase not in (*ENDED, "Switching", "Finishing") for status in statuses))
            condition = await told(lab, "n1")
            return condition is not None and condition.status == "True"

        await lab.until(empty, 300)
        assert most <= AT_ONCE
        assert set((await places(lab)).values()) == {"n2", "n3"}
        assert len(await lab.every("migration")) == 5
        await lab.pass_time(60)
        assert "n1" not in (await places(lab)).values()
        assert len(await lab.every("migration")) == 5


async def test_what_can_go_nowhere_is_told_and_stays_and_goes_when_there_is_room(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await fill(lab, 1)
        await lab.put_vm("big", memory=3 * GIB, node=None)
        await lab.until_phase("big", "Running")
        await lab.add_node("n2", memory=2 * GIB)
        await drain(lab, "n1")
        message = await until_told(lab, "n1", "Blocked")
        assert message.startswith("1 left; vm/big can't leave: insufficientResources: ")
        assert (await places(lab)) == {"vm-0": "n2", "big": "n1"}
        assert (await lab.status("big")).phase == "Running"
        await lab.add_node("n3")
        await until_told(lab, "n1", "Drained")
        assert (await places(lab))["big"] == "n3"


async def test_a_move_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await fill(lab, 1)
        await lab.add_node("n2")
        lab.begin = [World(fails_at="migrating")] * 3
        await drain(lab, "n1")
        assert "vm/vm-0 can't leave: " in await until_told(lab, "n1", "Blocked")
        await until_told(lab, "n1", "Drained")
        assert await places(lab) == {"vm-0": "n2"}
        assert len(await lab.every("migration")) == 2


async def test_what_is_just_coming_leaves_again_before_the_node_counts_as_drained(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await fill(lab, 1)
        await lab.add_node("n2")
        lab.begin = [World(stops_at="switching")]
        await lab.migrate("vm-0", "there", to="n2")
        await lab.until_migration("Switching", "there")
        await drain(lab, "n2")
        await lab.pass_time(5)
        condition = await told(lab, "n2")
        assert condition is not None and condition.status == "False"
        next(iter(lab.worlds.values())).stops_at = ""
        n1 = lab.nodes["n1"]
        for uid in list(n1.specs):
            await n1.act(f"/allocation/-/{n1.uid}.{uid}")
        await until_told(lab, "n2", "Drained")
        assert await places(lab) == {"vm-0": "n1"}


async def test_within_its_window_workloads_leave_and_neither_before_nor_after(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await fill(lab, 1)
        await lab.add_node("n2")
        await lab.pass_time(2)
        begin = lab.clock.now() + 3600
        await mark(lab, "n1", drain=True, cordoned=True, drain_not_before=begin, drain_not_after=begin + 60)
        await lab.pass_time(3000)
        assert "1 left; the drain starts at 20" in await until_told(lab, "n1", "Waiting")
        assert await places(lab) == {"vm-0": "n1"}
        await until_told(lab, "n1", "Drained", 1000)
        await mark(lab, "n2", drain=True, cordoned=True, drain_not_after=lab.clock.now() - 1)
        assert "the drain window is over" in await until_told(lab, "n2", "Waiting")
        await lab.pass_time(60)
        assert await places(lab) == {"vm-0": "n2"}


async def test_a_drain_goes_on_after_its_controllers_died_and_moves_nothing_twice(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await fill(lab, 4)
        await lab.add_node("n2")
        await drain(lab, "n1")
        for round_ in range(4):
            left = 4 - round_

            async def fewer(left: int = left) -> bool:
                return sum(node == "n1" for node in (await places(lab)).values()) < left

            await lab.until(fewer, 200)
            await lab.kill_controllers()
            lab.start_controllers(f"next-{round_}")
        await until_told(lab, "n1", "Drained")
        assert set((await places(lab)).values()) == {"n2"}
        assert len(await lab.every("migration")) == 4


async def test_a_rehearsal_counts_each_beside_those_before_it_and_changes_nothing(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await fill(lab, 2)
        await lab.add_node("n2", memory=GIB + GIB // 2)  # each would fit by itself
        await lab.pass_time(2)
        answers = [await rehearse(lab, "n1") for _ in range(2)]
        assert answers[0] == answers[1]
        one, other = answers[0]
        assert {one.workload, other.workload} == {"vm/vm-0", "vm/vm-1"}
        assert (one.to, one.mode) == ("n2", "live")
        assert (other.to, other.reason) == ("", "insufficientResources")
        assert await places(lab) == {"vm-0": "n1", "vm-1": "n1"}
        assert await lab.every("migration") == []


async def test_a_node_that_returns_keeps_what_has_not_left_and_says_no_more_of_it(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await fill(lab, 2)
        await drain(lab, "n1")  # there is no other node
        await until_told(lab, "n1", "Blocked")
        await mark(lab, "n1", drain=False, cordoned=False)

        async def over() -> bool:
            statuses = [decode_part(item.status, MigrationStatus) for item in await lab.every("migration")]
            return await told(lab, "n1") is None and all(status.phase == "Cancelled" for status in statuses)

        await lab.until(over)
        await lab.add_node("n2")
        await lab.pass_time(60)
        assert await places(lab) == {"vm-0": "n1", "vm-1": "n1"}
        assert (await lab.status("vm-0")).phase == "Running"


async def test_a_drain_of_a_silent_node_begins_nothing_before_it_is_back(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await fill(lab, 2)
        await lab.add_node("n2")
        node = lab.nodes["n1"]
        await node.die()
        await lab.until_phase("vm-0", "Unknown", 90)
        silence = "the node sends no heartbeat, so nothing migrates before it is back"
        shown = await preview(lab, "n1")
        assert (shown.message, [one.to for one in shown.leaving]) == (silence, ["n2", "n2"])
        await drain(lab, "n1")
        assert await until_told(lab, "n1", "Waiting") == f"{silence}; 2 left"
        await lab.pass_time(30)
        assert await lab.every("migration") == []
        await node.start()
        await until_told(lab, "n1", "Drained")
        assert (await preview(lab, "n1")).message == ""
        assert set((await places(lab)).values()) == {"n2"}


async def test_leases_that_have_not_begun_begin_elsewhere_in_the_preview_as_in_the_drain(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1")
        for name, cpu, seconds in (("class", 6.0, 600), ("large", 8.0, 900)):
            await lab.put_vm(name, cpu=cpu, lease={"start": lab.clock.now() + seconds, "duration": 100.0})
            await lab.until_lease(name, "Scheduled")
        await lab.add_node("n2")
        await lab.put_vm("busy", cpu=1.0, node="n2")
        await lab.until_phase("busy", "Running")
        shown = {one.workload: (one.to, one.mode, one.reason) for one in await rehearse(lab, "n1")}
        assert shown == {"vm/class": ("n2", "later", ""), "vm/large": ("", "live", "leaseConflict")}
        await drain(lab, "n1")

        async def is_there() -> bool:
            return (await places(lab))["class"] == "n2"

        await lab.until(is_there)
        assert (await places(lab))["large"] == "n1"


async def test_slots_go_elsewhere_with_what_has_not_begun_in_them_in_the_preview_as_in_the_drain(
    tmp_path: Path,
) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1")
        for name, cpu, seconds in (("now", 1.0, None), ("room", 4.0, 600.0), ("hall", 8.0, 900.0)):
            start = lab.clock.now() + seconds if seconds else None
            await reserve(lab, name, cpu=cpu, memory=GIB, start=start, duration=200.0)
            await until_state(lab, name, "Scheduled" if seconds else "Active")
            await lab.put_vm(f"in-{name}", cpu=1.0, reservation=name)
            await lab.until_lease(f"in-{name}", "Scheduled" if seconds else "Active")
        await lab.put_vm("also-in-room", cpu=3.0, reservation="room")
        await lab.until_lease("also-in-room", "Scheduled")
        await lab.add_node("n2")
        await lab.put_vm("busy", cpu=1.0, node="n2")
        await lab.until_phase("busy", "Running")
        leaving = {one.workload: one for one in await rehearse(lab, "n1")}
        assert {name: (one.to, one.mode, one.reason) for name, one in leaving.items()} == {
            "vm/in-now": ("", "live", "inReservation"),
            "vm/in-room": ("n2", "later", ""),
            "vm/also-in-room": ("n2", "later", ""),
            "vm/in-hall": ("", "live", "reservationFull"),
        }
        assert leaving["vm/in-room"].message.endswith("with its slot")
        assert leaving["vm/in-hall"].message.startswith("its slot can't leave: no node has 8 free cores")
        await drain(lab, "n1")

        async def there() -> bool:
            found = await places(lab)
            return found["in-room"] == found["also-in-room"] == "n2"

        await lab.until(there)
        assert (await places(lab))["in-hall"] == (await places(lab))["in-now"] == "n1"


async def test_a_drain_after_a_return_begins_at_once(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await fill(lab, 1)
        await drain(lab, "n1")  # there is no other node
        await until_told(lab, "n1", "Blocked")
        await mark(lab, "n1", drain=False, cordoned=False)

        async def over() -> bool:
            [first] = await lab.every("migration")
            ended = decode_part(first.status, MigrationStatus).phase == "Cancelled"
            return ended and await told(lab, "n1") is None

        await lab.until(over)
        await drain(lab, "n1")
        said = []

        async def again() -> bool:
            condition = await told(lab, "n1")
            said.append(condition.message if condition is not None else "")
            return len(await lab.every("migration")) == 2

        await lab.until(again)
        assert not [message for message in said if "cancelled" in message]


async def test_what_is_bound_to_a_node_is_told_to_be(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await fill(lab, 1, node="n1")
        await lab.add_node("n2")
        await drain(lab, "n1")
        told_ = await until_told(lab, "n1", "Blocked")
        assert (
            told_
            == "1 left; vm/vm-0 can't leave: pinned: vm/vm-0 is bound to node n1 (spec.node), so it can't go to another"
        )


class TimedLab(MovingLab):
    """Its guests take time to get ready, to go over a link that all of them share, and to be cleared away."""

    READY_SECONDS, CLEAR_SECONDS, GUEST_SECONDS, TICK = 2.5, 1.5, 4.0, 0.25

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.since: dict[str, float] = {}
        self.left: dict[str, float] = {}  # by move, in seconds of the whole link
        self.most = 0

    def _is_over(self, what: str, seconds: float) -> bool:
        return self.clock.elapsed() - self.since.setdefault(what, self.clock.elapsed()) >= seconds

    def _step_source(
        self, spec: AllocationSpec, migration: AllocatedMigration, world: World, old: AllocationReport, deleting: bool
    ) -> AllocationReport:
        if deleting:
            over = self._is_over(f"clear {migration.key}", self.CLEAR_SECONDS)
            return super()._step_source(spec, migration, world, old, deleting) if over else old
        if migration.address and not self._is_over(f"ready {migration.key}", self.READY_SECONDS):
            return old
        left = self.left.setdefault(migration.key, self.GUEST_SECONDS) if migration.address else 0.0
        if left <= 0 or old.migration is None or old.migration.phase != "migrating":
            return super()._step_source(spec, migration, world, old, deleting)
        share = MIB // sum(one > 0 for one in self.left.values())
        gone = int((self.GUEST_SECONDS - left) * MIB)
        progress = {"sent_bytes": gone, "remaining_bytes": int(left * MIB), "bytes_per_second": share}
        return msgspec.structs.replace(old, migration=msgspec.structs.replace(old.migration, **progress))

    async def tick(self, node: MigratingNode) -> None:
        while True:
            await self.clock.sleep(self.TICK)
            going = [key for key, left in self.left.items() if left > 0]
            self.most = max(self.most, len(going))
            for key in going:
                self.left[key] -= self.TICK / len(going)
            for uid in list(node.specs):
                await node.act(f"/allocation/-/{node.uid}.{uid}")


async def test_twenty_guests_leave_about_as_fast_as_the_link_allows(tmp_path: Path) -> None:
    async with TimedLab(tmp_path) as lab:
        await fill(lab, 20, cpu=0.1, memory=GIB // 8)
        for name in ("n2", "n3"):
            await lab.add_node(name)
        await lab.pass_time(3)
        node = lab.nodes["n1"]
        assert isinstance(node, MigratingNode)
        ticking = asyncio.ensure_future(lab.tick(node))
        began = lab.clock.elapsed()
        await drain(lab, "n1")
        await until_told(lab, "n1", "Drained", 1000)
        ticking.cancel()
        assert lab.clock.elapsed() - began <= 1.15 * 20 * lab.GUEST_SECONDS
        assert lab.most <= 2 * AT_ONCE


async def test_a_guest_with_a_gpu_stays_and_runs_and_both_drain_and_rehearsal_say_why(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", gpus=[T4], cpu=32.0, memory=64 * GIB)
        await lab.pass_time(2)
        await lab.put_vm("bound", node=None, gpus=1, memory=GIB)
        await lab.put_vm("free", node=None, memory=2 * GIB, cpu=0.5)
        for name in ("bound", "free"):
            await lab.until_phase(name, "Running")
        await lab.add_node("n2", gpus=[T4], cpu=32.0, memory=64 * GIB)
        await lab.pass_time(2)
        [bound, free] = await rehearse(lab, "n1")
        assert (bound.workload, bound.to, bound.reason) == ("vm/bound", "", "gpusStay")
        assert (
            bound.message
            == "vm/bound uses a GPU of n1, which can't migrate with a running guest; migrate it with --cold"
        )
        assert (free.workload, free.to) == ("vm/free", "n2")
        await drain(lab, "n1")
        message = await until_told(lab, "n1", "Blocked")
        assert message == f"1 left; vm/bound can't leave: gpusStay: {bound.message}"
        assert await places(lab) == {"bound": "n1", "free": "n2"}
        assert (await lab.status("bound")).phase == "Running"


async def test_why_one_cannot_leave_speaks_of_the_other_nodes(tmp_path: Path) -> None:
    async with MovingLab(tmp_path) as lab:
        await fill(lab, 1, memory=4 * GIB)
        await lab.add_node("n2", memory=2 * GIB)
        await lab.add_node("n3")
        await mark(lab, "n3", cordoned=True)
        await drain(lab, "n1")
        message = await until_told(lab, "n1", "Blocked")
        assert message.endswith("needs 4.0 GiB memory, largest free is 2.0 GiB (n2); 1 cordoned")
        [leaving] = await rehearse(lab, "n1")
        assert leaving.message in message
        await mark(lab, "n2", cordoned=True)
        await lab.pass_time(30)
        [leaving] = await rehearse(lab, "n1")
        assert leaving.message == "no node other than n1 can take it: of 2, 2 cordoned"


async def test_containers_leave_cold_and_what_runs_once_is_waited_for(tmp_path: Path) -> None:
    runs = [NodeRuntime(name="crun", kinds=["container"], isolations=["container"])]
    async with MovingLab(tmp_path) as lab:
        await lab.add_node("n1", runtimes=runs)
        await lab.pass_time(2)
        await lab.put_container("web")
        await lab.put_container("try", once=True)
        for name in ("web", "try"):
            await lab.until_phase(name, "Running", kind="container")
        await lab.add_node("n2")  # which runs none
        await lab.add_node("n3", runtimes=runs)
        await lab.pass_time(2)
        assert {one.workload: (one.mode, one.to, one.reason) for one in await rehearse(lab, "n1")} == {
            "container/web": ("cold", "n3", ""),
            "container/try": ("cold", "", "runsOnce"),
        }
        await drain(lab, "n1")

        async def has_left() -> bool:
            return (await places(lab)).get("web") == "n3"

        await lab.until(has_left)
        await lab.pass_time(30)
        condition = await told(lab, "n1")
        assert condition is not None and condition.message == "1 left; 1 runs once, and ends here"
        assert (await places(lab))["try"] == "n1"
        (made,) = await lab.every("migration")
        spec = decode_part(made.spec, MigrationSpec)
        assert (spec.workload, spec.mode) == ("container/web", "best")
        await lab.delete("/container/default/try")
        await until_told(lab, "n1", "Drained")


async def test_a_container_that_failed_for_good_neither_leaves_nor_stays_until_it_is_started_again(
    tmp_path: Path,
) -> None:
    runs = [NodeRuntime(name="crun", kinds=["container"], isolations=["container"])]
    async with MovingLab(tmp_path) as lab:
        node = await lab.add_node("n1", runtimes=runs)
        await lab.pass_time(2)
        await lab.put_container("web")
        await lab.put_container("broken")
        for name in ("web", "broken"):
            await lab.until_phase(name, "Running", kind="container")
        ((uid, _),) = [(uid, spec) for uid, spec in node.specs.items() if spec.workload.name == "broken"]
        node.slow = True  # what it says next is said here

        async def say(**word: object) -> None:
            def change(target: Envelope) -> None:
                report = msgspec.structs.replace(decode_part(target.report, AllocationReport), **word)
                target.report = merge_part(target.report, report)

            await lab.change(f"/allocation/-/{node.uid}.{uid}", change)

        await say(state="failed", reason="exited", ended=True, exit_code=3, ready=None)
        await lab.until_phase("broken", "Failed", kind="container")
        assert [one.workload for one in await rehearse(lab, "n1")] == ["container/web"]
        await drain(lab, "n1")
        assert (await until_told(lab, "n1", "Blocked")).startswith("1 left; container/web can't leave")
        await lab.delete("/container/default/web")
        node.slow = False
        await until_told(lab, "n1", "Drained")
        assert (await places(lab))["broken"] == "n1"
        await say(state="running", reason="", ended=False, exit_code=None, ready=True)
        assert (await until_told(lab, "n1", "Blocked")).startswith("1 left; container/broken can't leave")
