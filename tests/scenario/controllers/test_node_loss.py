"""Nodes that fall silent, and guests that go on elsewhere only once they have certainly ended; time moved by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
from tests.scenario.controllers.test_power import Bmc, call_here
from tests.scenario.controllers_lab import GIB, Lab, VirtualClock

from weft.contracts.store import Lease
from weft.controllers.loss.outlook import PROMISE_SECONDS
from weft.informer.loss.renewals import PROMPT_SECONDS, Renewals
from weft.kinds.allocation import AllocationSpec, AllocationStatus
from weft.kinds.node import NodePool, NodeRuntime, NodeSpec, NodeStatus
from weft.kinds.parts.node.loss import confirm_off
from weft.kinds.parts.node.orphan import OrphanCopy
from weft.objects.envelope import decode_part, merge_part
from weft.objects.errors import IllegalTransition, StoreUnavailable

RUNS = [NodeRuntime(name="oci", kinds=["container"], isolations=["container"]), NodeRuntime(name="qemu", kinds=["vm"])]


async def put_guests(lab: Lab, *names: str, **spec: Any) -> None:
    for name in names:
        await lab.put_container(name, on_node_loss="restart", **spec)
    for name in names:
        await lab.until_phase(name, "Running", kind="container")


async def where(lab: Lab, name: str) -> list[tuple[str, int, str]]:
    found = [one for one in await lab.allocations() if one.workload.name == name]
    return sorted((one.node, one.incarnation, one.role) for one in found)


async def until_on(lab: Lab, name: str, node: str, seconds: float) -> float:
    """Until it runs there; the seconds that took."""
    began = lab.clock.elapsed()

    async def there() -> bool:
        status = await lab.status(name, "container")
        return (status.phase, status.node) == ("Running", node)

    await lab.until(there, seconds)
    return lab.clock.elapsed() - began


async def make_nodes(lab: Lab, count: int, **report: Any) -> None:
    """Guests go to n0, since the others are cordoned until ``open_nodes``."""
    for index in range(count):
        await lab.add_node(f"n{index}", runtimes=RUNS, **report)
    for index in range(1, count):
        await lab.ask(f"n{index}", "node", None, cordoned=True)
    await lab.pass_time(2.0)


async def open_nodes(lab: Lab, count: int) -> None:
    for index in range(1, count):
        await lab.ask(f"n{index}", "node", None, cordoned=False)


async def confirm(lab: Lab, name: str) -> None:
    node = await lab.get(f"/node/-/{name}")
    assert node is not None
    parts = {part: msgspec.json.decode(getattr(node, part)) for part in ("status", "report")}
    whole = {"name": name, "now": lab.clock.now(), **parts}
    await lab.ask(name, "node", None, **confirm_off(whole, None))


async def test_guests_that_the_guard_holds_go_on_elsewhere_and_are_released_by_the_returning_node(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 4)
        names = [f"web{index}" for index in range(10)]
        await put_guests(lab, *names, cpu=0.5)
        await lab.put_container("patient")
        await lab.until_phase("patient", "Running", kind="container")
        await open_nodes(lab, 4)
        await lab.nodes["n0"].die()
        began = lab.clock.elapsed()
        await lab.until_phase("web0", "Unknown", kind="container")
        said = (await lab.status("web0", "container")).message
        assert "it restarts elsewhere at " in said and said.endswith("if the node isn't heard of before")
        assert (await lab.status("patient", "container")).message.endswith("may still run there; waiting for the node")

        async def all_elsewhere() -> bool:
            found = [await lab.status(name, "container") for name in names]
            return all(one.phase == "Running" and one.node != "n0" for one in found)

        await lab.until(all_elsewhere, 120.0)
        took = lab.clock.elapsed() - began
        assert PROMISE_SECONDS - 5.0 <= took <= 90.0, took
        (lost, there) = await where(lab, "web0")
        assert lost == ("n0", 1, "lost") and there[1:] == (2, "active")
        place = next(
            one for one in await lab.every("allocation") if decode_part(one.spec, AllocationSpec).role == "lost"
        )
        ended = decode_part(place.status, AllocationStatus).ended_by
        assert ended is not None and ended.by == "guard" and "was not heard for" in ended.message
        assert "NodeLost" in lab.journal.reasons("web0")
        assert (await where(lab, "patient")) == [("n0", 1, "active")]
        assert "NodeLost" not in lab.journal.reasons("patient")
        node = await lab.get("/node/-/n0")
        assert node is not None and (found := node.condition("GuestsGoOn")) is not None
        assert found.message == "1 wait: container/patient (its on_node_loss is wait)"
        await lab.nodes["n0"].start()

        async def is_over() -> bool:
            node = await lab.get("/node/-/n0")
            gone = all([len(await where(lab, name)) == 1 for name in names])
            return gone and node is not None and node.condition("GuestsGoOn").status == "True"  # type: ignore[union-attr]

        await lab.until(is_over, 60.0)
        assert (await lab.status("patient", "container")).phase == "Running"


async def test_what_nobody_ends_waits_until_a_person_confirms_that_the_node_is_off(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 4)
        lab.nodes["n0"].guards = False
        await put_guests(lab, "web")
        await open_nodes(lab, 4)
        with pytest.raises(IllegalTransition, match="node/n0 is Ready"):
            await confirm(lab, "n0")
        await lab.nodes["n0"].die()
        await lab.pass_time(600.0)
        assert await where(lab, "web") == [("n0", 1, "active")]
        assert "once the node is known to be off" in (await lab.status("web", "container")).message
        await confirm(lab, "n0")
        await lab.pass_time(10.0)
        assert (await where(lab, "web"))[0] == ("n0", 1, "lost")
        assert (await lab.status("web", "container")).phase == "Running"


async def test_a_confirmation_holds_only_for_the_silence_that_it_was_given_in(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 4)
        lab.nodes["n0"].guards = False
        await put_guests(lab, "web")
        await lab.nodes["n0"].die()
        await lab.pass_time(60.0)
        await lab.kill_controllers()
        await confirm(lab, "n0")
        await lab.nodes["n0"].start()  # before anybody acted on it
        lab.start_controllers("another")
        await lab.until_phase("web", "Running", kind="container")
        await open_nodes(lab, 4)
        await lab.nodes["n0"].die()
        await lab.pass_time(600.0)
        assert await where(lab, "web") == [("n0", 1, "active")]


async def test_a_held_guest_is_not_freed_before_its_time_even_if_a_person_confirms(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 4)
        await put_guests(lab, "web")
        await open_nodes(lab, 4)
        await lab.nodes["n0"].die()
        began = lab.clock.elapsed()
        await lab.until_phase("web", "Unknown", kind="container")
        await confirm(lab, "n0")
        await lab.pass_time(PROMISE_SECONDS - 45.0)
        assert await where(lab, "web") == [("n0", 1, "active")]
        await lab.pass_time(40.0)
        assert (await where(lab, "web"))[0] == ("n0", 1, "lost") and lab.clock.elapsed() - began > PROMISE_SECONDS - 5.0


@pytest.mark.parametrize("silence", [44.0, PROMISE_SECONDS - 2.0])
async def test_a_new_leader_and_a_node_that_returns_begin_the_time_anew(tmp_path: Path, silence: float) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 4)
        await put_guests(lab, "web")
        await open_nodes(lab, 4)
        await lab.nodes["n0"].die()
        await lab.pass_time(silence - 5.0)
        await lab.kill_controllers()
        lab.start_controllers("another")
        await lab.pass_time(PROMISE_SECONDS - 15.0)
        assert await where(lab, "web") == [("n0", 1, "active")]
        await lab.nodes["n0"].start()
        await lab.pass_time(30.0)
        await lab.nodes["n0"].die()
        await lab.pass_time(PROMISE_SECONDS - 6.0)
        assert await where(lab, "web") == [("n0", 1, "active")]
        await lab.pass_time(20.0)
        assert (await where(lab, "web"))[0] == ("n0", 1, "lost")


async def test_many_silent_nodes_free_nothing_until_people_confirm_each(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 5)
        await put_guests(lab, "web")
        await open_nodes(lab, 5)
        await lab.nodes["n0"].die()
        await lab.nodes["n1"].die()
        await lab.pass_time(1200.0)
        assert await where(lab, "web") == [("n0", 1, "active")]
        node = await lab.get("/node/-/n0")
        assert node is not None and (found := node.condition("GuestsGoOn")) is not None
        assert found.reason == "massLoss" and found.message.startswith("2 of 5 nodes are silent together: ")
        assert lab.journal.reasons("n0").count("NodeLossHeld") == 1
        assert "weft node confirm-off n0" in (await lab.status("web", "container")).message
        await confirm(lab, "n0")
        await lab.pass_time(10.0)
        assert (await where(lab, "web"))[0] == ("n0", 1, "lost")


async def test_nodes_that_die_one_after_the_other_are_not_many(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 5)
        await lab.nodes["n1"].die()
        await lab.pass_time(1200.0)
        await put_guests(lab, "web")
        await open_nodes(lab, 5)
        await lab.nodes["n0"].die()
        await lab.pass_time(90.0)
        assert (await where(lab, "web"))[0] == ("n0", 1, "lost")


async def test_a_node_with_autonomy_is_not_lost_before_that_ends(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 4)
        await lab.change(
            "/node/-/n0", lambda node: setattr(node, "spec", merge_part(node.spec, NodeSpec(autonomy_seconds=300.0)))
        )
        await put_guests(lab, "web")
        await open_nodes(lab, 4)
        await lab.nodes["n0"].die()
        await lab.pass_time(300.0 + PROMISE_SECONDS - 10.0)  # its guard ends it so much later
        assert await where(lab, "web") == [("n0", 1, "active")]
        await lab.pass_time(25.0)
        assert (await where(lab, "web"))[0] == ("n0", 1, "lost")


async def test_a_jump_of_the_clock_ends_no_pause(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 4)
        await put_guests(lab, "web")
        await open_nodes(lab, 4)
        await lab.ask("n0", "node", None, guard_paused_until=lab.clock.now() + 600.0)
        await lab.pass_time(5.0)
        with mock.patch.object(VirtualClock, "now", lambda clock: 1_700_003_600.0 + clock.elapsed()):
            await lab.nodes["n0"].die()
            await lab.pass_time(590.0 + PROMISE_SECONDS)
            assert await where(lab, "web") == [("n0", 1, "active")]
            await lab.pass_time(15.0)
            assert (await where(lab, "web"))[0] == ("n0", 1, "lost")


async def test_what_has_its_data_on_the_node_waits_and_says_so(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 4)
        await lab.put_vm("db", on_node_loss="restart")
        await lab.until_phase("db", "Running")
        await lab.put_container("once", on_node_loss="restart", node="n0")
        await lab.until_phase("once", "Running", kind="container")
        await open_nodes(lab, 4)
        await lab.nodes["n0"].die()
        await lab.pass_time(300.0)
        assert (await where(lab, "db")) == [("n0", 1, "active")]
        assert (await lab.status("db")).message.endswith(
            "it waits for the node: its root disk is in local, on that node"
        )
        assert (await lab.status("once", "container")).message.endswith(
            "it waits for the node: its spec names that node"
        )


async def test_a_guest_without_capacity_elsewhere_waits_freed(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 4)
        await put_guests(lab, "big", cpu=8.0)
        await lab.nodes["n0"].die()  # the others stay cordoned
        await lab.pass_time(100.0)
        assert await where(lab, "big") == [("n0", 1, "lost")]
        assert (await lab.status("big", "container")).phase == "Pending"
        await open_nodes(lab, 4)
        await lab.until_phase("big", "Running", kind="container")


async def test_a_change_of_on_node_loss_reaches_the_allocation(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n0", runtimes=RUNS)
        await lab.put_container("web")
        await lab.until_phase("web", "Running", kind="container")
        assert [one.loss_guard for one in await lab.allocations()] == [0]
        for asked, counter in (("restart", 1), ("wait", 2), ("restart", 3)):
            await lab.change_spec("web", "container", on_node_loss=asked)
            await lab.pass_time(2.0)
            assert [one.loss_guard for one in await lab.allocations()] == [counter]
        await lab.change(
            "/node/-/n0", lambda node: setattr(node, "spec", merge_part(node.spec, NodeSpec(autonomy_seconds=60.0)))
        )
        await lab.pass_time(2.0)
        assert [(one.loss_guard, one.loss_after) for one in await lab.allocations()] == [(5, 60.0)]


async def test_power_that_is_off_frees_within_seconds(tmp_path: Path) -> None:
    bmc = Bmc()
    with mock.patch("weft.controllers.power.controller.in_thread", call_here):
        async with Lab(tmp_path) as lab:
            await lab.kill_controllers()
            lab.start_controllers("power", unseal=lambda sealed, place: sealed.encode(), open_bmc=bmc.open)
            await lab.put("secret", "bmc", {"sealed": {"user": "admin", "password": "secret"}})
            await make_nodes(lab, 4)
            spec = {"power": "redfish://bmc", "power_secret": "default/bmc"}
            await lab.change("/node/-/n0", lambda node: setattr(node, "spec", merge_part(node.spec, spec)))
            lab.nodes["n0"].guards = False
            await put_guests(lab, "web")
            await open_nodes(lab, 4)
            await lab.nodes["n0"].die()
            await lab.pass_time(120.0)
            assert await where(lab, "web") == [("n0", 1, "active")]  # the BMC says on: it may run
            await lab.nodes["n0"].start()
            await lab.pass_time(10.0)
            await lab.nodes["n0"].die()
            bmc.state = "off"
            began = lab.clock.elapsed()

            async def is_elsewhere() -> bool:
                status = await lab.status("web", "container")
                return status.phase == "Running" and status.node != "n0"

            await lab.until(is_elsewhere, 60.0)
            assert lab.clock.elapsed() - began <= 15.0
            node = await lab.get("/node/-/n0")
            assert node is not None and decode_part(node.status, NodeStatus).phase == "NotReady"
            await lab.nodes["n0"].start()
            bmc.state = "on"
            await lab.pass_time(10.0)
            node = await lab.get("/node/-/n0")
            assert node is not None and decode_part(node.status, NodeStatus).phase == "Ready"
            assert bmc.reads < 80


async def test_one_missing_heartbeat_is_enough_to_ask_the_bmc_of_a_node_whose_guests_are_held(tmp_path: Path) -> None:
    bmc = Bmc()
    with mock.patch("weft.controllers.power.controller.in_thread", call_here):
        async with Lab(tmp_path) as lab:
            await lab.kill_controllers()
            lab.start_controllers("power", unseal=lambda sealed, place: sealed.encode(), open_bmc=bmc.open)
            await lab.put("secret", "bmc", {"sealed": {"user": "admin", "password": "secret"}})
            await make_nodes(lab, 4)
            spec = {"power": "redfish://bmc", "power_secret": "default/bmc"}
            await lab.change("/node/-/n0", lambda node: setattr(node, "spec", merge_part(node.spec, spec)))
            await put_guests(lab, "web")
            await open_nodes(lab, 4)
            reads = bmc.reads
            await lab.pass_time(60.0)
            assert bmc.reads == reads, "it is heard"
            await lab.nodes["n0"].heartbeat()
            await lab.nodes["n0"].die()
            bmc.state = "off"
            began = lab.clock.elapsed()

            async def is_freed() -> bool:
                return (await where(lab, "web"))[0][2] == "lost"

            await lab.until(is_freed, 60.0)
            assert lab.clock.elapsed() - began <= PROMPT_SECONDS + 3.0


class Leases:
    """A store that knows only what its leases have left."""

    def __init__(self) -> None:
        self.left: dict[str, float] = {}
        self.is_away = False

    async def leases(self, prefix: str, **_: Any) -> list[Lease]:
        if self.is_away:
            raise StoreUnavailable("away")
        return [Lease(f"{prefix}{uid}", uid, 1, left) for uid, left in self.left.items()]


async def test_silence_is_counted_from_the_latest_that_a_node_may_have_been_heard() -> None:
    clock, store = VirtualClock(), Leases()
    renewals = Renewals(store, clock)  # type: ignore[arg-type]
    clock.advance(100.0)
    assert renewals.count_silence("a") == 0.0 and renewals.is_live("a")  # nothing was read yet
    store.left = {"a": 20.0}
    await renewals.observe()
    assert renewals.count_silence("a") == 9.0  # 10 s ago by the store, which may be wrong by one
    assert renewals.count_silence("b") == 29.0 and not renewals.is_live("b")  # its lease may have ended before that
    store.left = {}
    clock.advance(30.0)
    assert renewals.count_silence("a") == 0.0  # the last read is old
    await renewals.observe()
    assert renewals.count_silence("a") == 29.0 and list(renewals.list_silent(28.0)) == ["a"]
    store.is_away = True
    clock.advance(1.0)
    await renewals.observe()
    assert renewals.count_silence("a") == 30.0
    clock.advance(1.5)
    assert renewals.count_silence("a") == 0.0 and renewals.is_live("a")
    store.is_away = False
    await renewals.observe()
    renewals.note_report("a")
    assert renewals.count_silence("a") == 0.0 and not renewals.is_live("a")


async def test_a_node_may_have_been_heard_while_the_leases_could_not_be_read() -> None:
    clock, store = VirtualClock(), Leases()
    renewals = Renewals(store, clock)  # type: ignore[arg-type]
    clock.advance(10.0)
    store.left = {"a": 30.0}
    await renewals.observe()
    store.is_away = True
    clock.advance(100.0)
    await renewals.observe()
    store.is_away, store.left = False, {}
    await renewals.observe()  # a lease that was renewed 31 s ago would be over, too
    assert [renewals.count_silence(uid) for uid in ("a", "b")] == [29.0, 29.0]
    clock.advance(1.0)
    await renewals.observe()
    assert [renewals.count_silence(uid) for uid in ("a", "b")] == [30.0, 30.0]


async def test_a_guest_that_got_no_other_place_is_taken_back_where_it_was(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await make_nodes(lab, 4)
        await put_guests(lab, "big", cpu=8.0)
        await lab.nodes["n0"].die()  # the others stay cordoned
        await lab.pass_time(100.0)
        assert await where(lab, "big") == [("n0", 1, "lost")]
        node, (place,) = lab.nodes["n0"], await lab.every("allocation")
        copy = OrphanCopy(place.uid, decode_part(place.spec, AllocationSpec), "here", runs=False)
        orphan = f"{place.uid} container/default/big 1"
        await node.write_report(orphans=[orphan], orphan_allocations=[msgspec.json.encode(copy).decode()])
        await node.start()
        await lab.until_phase("big", "Running", kind="container")
        assert await where(lab, "big") == [("n0", 1, "active")]
        assert "Adopted" in lab.journal.reasons("big")


SAN, OTHER = (
    NodePool("san", "id-of-the-san", 100 * GIB, 50 * GIB),
    NodePool("san", "id-of-another", 100 * GIB, 50 * GIB),
)


async def test_a_vm_in_a_shared_pool_goes_on_with_its_disk_where_the_same_storage_is(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n0", runtimes=RUNS, pools=[SAN])
        await lab.put_vm("db", on_node_loss="restart", pool="san", disk=2 * GIB)
        await lab.until_phase("db", "Running")
        await lab.add_node("n1", runtimes=RUNS, pools=[OTHER])
        await lab.add_node("n2", runtimes=RUNS)
        await lab.nodes["n0"].die()
        await lab.pass_time(200.0)
        assert (await lab.status("db")).message.endswith(
            "its root disk is in san, which no other node that is ready has"
        )
        await lab.add_node("n3", runtimes=RUNS, pools=[SAN])
        await lab.pass_time(10.0)
        assert await where(lab, "db") == [("n0", 1, "lost"), ("n3", 2, "active")]
        first, second = sorted(
            await lab.every("allocation"), key=lambda one: decode_part(one.spec, AllocationSpec).incarnation
        )
        found = decode_part(second.spec, AllocationSpec)
        assert (found.pool_id, found.continues) == (SAN.id, [first.uid])
        await lab.add_node("n4", runtimes=RUNS, pools=[SAN])
        await lab.nodes["n3"].die()
        await lab.pass_time(100.0)  # two of five, but one after the other
        assert (await where(lab, "db"))[-1] == ("n4", 3, "active")
        third = max(await lab.allocations(), key=lambda one: one.incarnation)
        assert third.continues == [second.uid, first.uid]


async def test_a_vm_waits_for_what_a_node_that_is_back_reports_of_its_disk(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n0", runtimes=RUNS, pools=[SAN])
        await lab.put_vm("db", on_node_loss="restart", pool="san")
        await lab.until_phase("db", "Running")
        for name in ("n1", "n2", "n3"):
            await lab.add_node(name, runtimes=RUNS, pools=[SAN])
            await lab.ask(name, "node", None, cordoned=True)
        await lab.nodes["n0"].die()
        await lab.pass_time(100.0)
        assert await where(lab, "db") == [("n0", 1, "lost")]
        lab.nodes["n0"].slow = True  # it has not followed its allocations yet
        await lab.nodes["n0"].start()
        await lab.pass_time(5.0)
        await open_nodes(lab, 4)
        await lab.pass_time(30.0)
        assert await where(lab, "db") == [("n0", 1, "lost")]
        assert (await lab.status("db")).reason == "nodeReturns"
        await lab.nodes["n0"].die()  # again, before it has said anything
        await lab.pass_time(60.0)
        assert [one[1:] for one in await where(lab, "db")] == [(1, "lost"), (2, "active")]
