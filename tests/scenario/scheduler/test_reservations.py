"""Reservations on a fabric in one process: what is kept for a project is there for its workloads, once, whoever is killed."""

from __future__ import annotations

import math
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.long import mark_seeds
from tests.scenario.controllers_lab import GIB, Lab
from tests.scenario.scheduler.test_scheduler_answers import ask

from weft.contracts.store import Delete
from weft.kinds.allocation import AllocationSpec
from weft.kinds.reservation import RESERVATION, ExtendInput, ReservationSpec, ReservationStatus, check_reservation
from weft.objects.envelope import Envelope, decode_part, merge_part
from weft.objects.errors import IllegalTransition
from weft.objects.identity import object_key
from weft.objects.quantity import format_time
from weft.scheduler.allocation.lease import format_earliest
from weft.scheduler.lease.lead import SHORTEST_SECONDS


async def reserve(lab: Lab, name: str, project: str = "default", **spec: Any) -> None:
    full = ReservationSpec(**{"cpu": 4.0, "memory": 4 * GIB, "grace": 5.0, **spec})
    check_reservation(full)
    await lab.put("reservation", name, full, finalizers=("reservation",), project=project)


async def status_of(lab: Lab, name: str) -> ReservationStatus:
    envelope = await lab.get(object_key("reservation", "default", name))
    assert envelope is not None, name
    return decode_part(envelope.status, ReservationStatus)


async def until_state(lab: Lab, name: str, state: str, seconds: float = 60.0) -> ReservationStatus:
    async def reached() -> bool:
        return (await status_of(lab, name)).state == state

    await lab.until(reached, seconds)
    return await status_of(lab, name)


async def refusal(lab: Lab, name: str, reason: str) -> str:
    await lab.until_refused(name, reason)
    placed = await lab.placed(name)
    assert placed is not None
    return placed.message


async def share(lab: Lab, name: str, *projects: str, project: str = "physics") -> None:
    def change(envelope: Envelope) -> None:
        spec = decode_part(envelope.spec, ReservationSpec)
        envelope.spec = merge_part(envelope.spec, msgspec.structs.replace(spec, shared_with=list(projects)))
        envelope.generation += 1

    await lab.change(f"/reservation/{project}/{name}", change)


async def extend(lab: Lab, name: str, seconds: float) -> None:
    """As the API does it: by the verb, on what is stored."""
    verb = RESERVATION.verb("extend")
    assert verb is not None and verb.change is not None
    change_spec = verb.change

    def change(envelope: Envelope) -> None:
        whole = msgspec.json.decode(msgspec.json.encode(envelope))
        new = msgspec.convert(change_spec(whole, ExtendInput(by=seconds)), ReservationSpec)
        envelope.spec = merge_part(envelope.spec, new)
        envelope.generation += 1

    await lab.change(object_key("reservation", "default", name), change)


async def until_end(lab: Lab, name: str, end: float) -> None:
    async def reached() -> bool:
        return (await status_of(lab, name)).end == end

    await lab.until(reached)


async def until_told(lab: Lab, name: str, part: str) -> None:
    async def told() -> bool:
        return part in (await status_of(lab, name)).message

    await lab.until(told)


async def remove(lab: Lab, key: str) -> None:
    await lab.store.commit([Delete(key)])


async def slots(lab: Lab) -> list[AllocationSpec]:
    return [spec for spec in await lab.allocations() if spec.role == "reserved"]


async def test_a_workload_runs_in_its_reservation_on_a_node_that_is_otherwise_full(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")  # 8 cores
        await reserve(lab, "class", cpu=3.0, duration=200.0)
        status = await until_state(lab, "class", "Active")
        assert status.slots == {"n1": 1} and status.free == {"cpu": 3.0, "memory": 4 * GIB, "gpus": 0.0}
        await lab.put_vm("filler", cpu=5.0)
        await lab.until_phase("filler", "Running")
        await lab.put_vm("outside", cpu=1.0)
        await lab.until_refused("outside", "insufficientResources")
        await lab.put_vm("inside", cpu=2.0, memory=GIB, reservation="class", grace=1.0)
        await lab.until_phase("inside", "Running")
        placed = await lab.placed("inside")
        assert placed is not None and placed.message == "on n1, in reservation/class"
        lease = await lab.lease("inside")
        assert (lease.state, lease.end) == ("Active", status.end)
        await lab.put_vm("second", cpu=2.0, reservation="class")
        refused = await refusal(lab, "second", "reservationFull")
        assert "reservation/class is full: 2 cores" in refused and "at most 1 core," in refused
        assert (await status_of(lab, "class")).used["cpu"] == 2.0
        await lab.delete("/vm/default/inside")
        await lab.until_phase("second", "Running")  # what becomes free goes to the next one in it
        await until_state(lab, "class", "Done", 400)
        await lab.until_lease("second", "Done")
        await lab.until_phase("outside", "Running")  # its capacity is everyone's again

        async def empty() -> bool:
            return not await slots(lab) and (await status_of(lab, "class")).slots == {}

        await lab.until(empty)


async def test_a_workload_that_comes_early_starts_with_its_reservation(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        start = lab.clock.now() + 300
        await reserve(lab, "later", cpu=8.0, memory=8 * GIB, start=start, duration=100.0)
        await until_state(lab, "later", "Scheduled")
        await lab.put_vm("for-good", cpu=1.0)
        await lab.until_refused("for-good", "insufficientResources")
        await lab.put_vm("short", cpu=8.0, grace=0.0, lease={"mode": "immediate", "duration": 60.0})
        await lab.until_lease("short", "Active")  # there is time before it
        await lab.put_vm("early", cpu=8.0, grace=30.0, reservation="later")
        lease = await lab.until_lease("early", "Scheduled")
        assert (lease.start, lease.end) == (start, start + 100 - 25)  # it shuts down within the reservation's grace
        await lab.until_lease("early", "Active", 400)
        assert start <= lab.clock.now() <= start + 2
        await lab.until_lease("early", "Done", 200)
        await until_state(lab, "later", "Done", 100)
        await lab.put_vm("late", cpu=1.0, reservation="later")
        assert "is over since" in await refusal(lab, "late", "reservationOver")
        await lab.until_phase("for-good", "Running")


async def test_the_nearest_time_of_many_slots_is_named_however_many_leases_end_before(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1", cpu=24.0, memory=64 * GIB)
        for number in range(24):
            lease = {"mode": "immediate", "duration": 1000.0 + 60 * number}
            await lab.put_vm(f"vm-{number}", memory=GIB, grace=0.0, lease=lease)
        for number in range(24):
            await lab.until_lease(f"vm-{number}", "Active")
        end = (await lab.lease("vm-23")).end
        assert end is not None
        await reserve(lab, "all", cpu=1.0, memory=GIB, count=24, duration=100.0)
        message = (await until_state(lab, "all", "Rejected")).message
        assert message.startswith("no node has 1 free core and ") and message.endswith(
            f"; earliest: {format_earliest(math.ceil(end + SHORTEST_SECONDS))}"
        )


async def test_a_question_about_a_workload_in_a_reservation_is_answered_by_its_slots(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await reserve(lab, "class", cpu=6.0, duration=2000.0)
        await until_state(lab, "class", "Active")
        await lab.add_node("n2", cpu=4.0)
        given = {"image": "tiny", "memory": "1G", "reservation": "class"}
        said = await ask(lab, "fits", kind="vm", changes={**given, "cpu": 5})  # more than any node has beside its slots
        assert (said.phase, said.best, said.reason) == ("Done", "n1", "")
        assert "of slot 1 of 1 of reservation/class on n1" in said.notes[0]
        await lab.put_vm("web", cpu=5.0, memory=GIB, reservation="class")
        await lab.until_phase("web", "Running")
        full = await ask(lab, "full", kind="vm", changes={**given, "cpu": 2})  # n2 would have it, and is no slot
        assert (full.phase, full.best, full.reason) == ("Done", "", "reservationFull")
        assert (await ask(lab, "own", workload="vm/web")).best == "n1"
        await lab.pass_time(1)
        assert (await status_of(lab, "class")).used["cpu"] == 5.0


async def test_a_reservation_that_does_not_fit_is_refused_whole_with_the_nearest_time(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name)
        await lab.put_vm("there", cpu=6.0, grace=0.0, node="n1", lease={"mode": "immediate", "duration": 500.0})
        end = (await lab.until_lease("there", "Active")).end
        assert end is not None
        await reserve(lab, "three", cpu=4.0, count=4, duration=100.0)
        status = await until_state(lab, "three", "Rejected")
        assert status.message.startswith("only 2 of 4 slots of 4 cores and 4.0 GiB fit from")
        assert "; earliest: " in status.message and await slots(lab) == []
        await lab.put_vm("in-it", cpu=1.0, reservation="three")
        await lab.until_refused("in-it", "reservationRefused")
        await reserve(lab, "large", cpu=64.0, duration=100.0)
        message = (await until_state(lab, "large", "Rejected")).message
        assert message.startswith("no node has 64 free cores and ") and "; most free: " in message
        await reserve(lab, "then", cpu=4.0, count=4, duration=100.0, start=end + 61)
        assert (await until_state(lab, "then", "Scheduled")).slots == {"n1": 2, "n2": 2}
        await reserve(lab, "elsewhere", cpu=4.0, duration=100.0, start=end + 61, node="n1")
        message = (await until_state(lab, "elsewhere", "Rejected")).message
        assert "; earliest: " in message
        for name in ("then", "three", "large", "elsewhere"):
            await lab.delete(object_key("reservation", "default", name))
            await lab.until_gone(object_key("reservation", "default", name))
        assert await slots(lab) == []


async def test_its_slots_go_at_its_end_and_when_it_is_deleted(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await reserve(lab, "short", cpu=2.0, duration=30.0)
        await reserve(lab, "long", cpu=2.0, duration=3000.0)
        await until_state(lab, "long", "Active")
        await lab.put_vm("inside", cpu=1.0, memory=GIB, reservation="short", grace=1.0)
        await lab.until_lease("inside", "Active")
        await until_state(lab, "short", "Done", 100)
        await lab.delete(object_key("reservation", "default", "long"))
        await lab.until_gone(object_key("reservation", "default", "long"))

        async def empty() -> bool:
            return not await slots(lab) and (await status_of(lab, "short")).slots == {}

        await lab.until(empty)
        assert (await lab.lease("inside")).state == "Done"


async def test_an_extension_is_for_all_of_its_slots_and_for_what_is_in_them(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name)
        await reserve(lab, "class", cpu=6.0, count=2, duration=300.0)
        end = (await until_state(lab, "class", "Active")).end
        assert end is not None
        for name in ("a", "b"):
            await lab.put_vm(name, cpu=5.0, reservation="class", grace=30.0)
            await lab.until_lease(name, "Active")
        await extend(lab, "class", 200.0)
        await until_end(lab, "class", end + 200)

        async def longer() -> bool:
            return {(await lab.lease(name)).end for name in ("a", "b")} == {end + 200 - 25}

        await lab.until(longer)
        assert {spec.lease.end for spec in await slots(lab) if spec.lease} == {end + 200}
        await lab.put_vm("late", cpu=1.0, reservation="class", grace=1.0)
        await lab.until_lease("late", "Active")
        assert (await lab.lease("late")).end == end + 200
        await lab.until_lease("a", "Done", 500)
        assert end + 175 <= lab.clock.now() <= end + 200
        await until_state(lab, "class", "Done", 60)
        with pytest.raises(IllegalTransition) as over:
            await extend(lab, "class", 60.0)
        assert over.value.token == "leaseOver"


async def test_an_extension_that_others_were_promised_is_refused_with_the_latest_end_and_a_shorter_one_is_not(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name)  # 8 cores each
        await reserve(lab, "class", cpu=6.0, count=2, duration=300.0)
        first = await until_state(lab, "class", "Active")
        end = first.end
        assert end is not None and first.slots == {"n1": 1, "n2": 1}
        await reserve(lab, "next", cpu=4.0, node="n2", start=end + 200, duration=100.0)
        begins = [spec.lease.prepare_at for spec in await slots(lab) if spec.lease and spec.workload.name == "next"]
        if not begins:
            await until_state(lab, "next", "Scheduled")
            begins = [spec.lease.prepare_at for spec in await slots(lab) if spec.lease and spec.workload.name == "next"]
        await extend(lab, "class", 3600.0)
        await until_told(lab, "class", "cannot extend to ")
        status = await status_of(lab, "class")
        latest = begins[0] - 5.0  # its grace comes after its end
        assert status.end == end and f"; the latest possible end is {format_time(latest)}" in status.message
        assert {spec.lease.end for spec in await slots(lab) if spec.lease and spec.workload.name == "class"} == {end}
        envelope = await lab.get(object_key("reservation", "default", "class"))
        placed = envelope.condition("Placed") if envelope is not None else None
        assert placed is not None and (placed.status, placed.reason) == ("True", "leaseConflict")
        await extend(lab, "class", latest - end)  # instead of the one that was refused
        await until_end(lab, "class", latest)
        assert (await status_of(lab, "class")).message == ""
        await extend(lab, "class", 60.0)
        await until_told(lab, "class", f"the latest possible end is {format_time(latest)}")
        await lab.delete(object_key("reservation", "default", "next"))
        await until_end(lab, "class", latest + 60)  # made after all


async def test_an_extension_is_made_though_the_controllers_were_killed_before_it_or_in_the_middle(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await reserve(lab, "class", cpu=6.0, duration=400.0)
        end = (await until_state(lab, "class", "Active")).end
        assert end is not None
        await lab.put_vm("inside", cpu=5.0, reservation="class", grace=1.0)
        await lab.until_lease("inside", "Active")
        await lab.kill_controllers()
        await extend(lab, "class", 100.0)
        await lab.pass_time(20)
        lab.start_controllers("second")
        await until_end(lab, "class", end + 100)
        await lab.kill_controllers()  # its slot may have the end already, and the workload in it not

        def shorten(envelope: Envelope) -> None:
            spec = decode_part(envelope.spec, AllocationSpec)
            assert spec.lease is not None
            lease = msgspec.structs.replace(spec.lease, end=end)
            envelope.spec = merge_part(envelope.spec, msgspec.structs.replace(spec, lease=lease))
            envelope.generation += 1

        for envelope in await lab.every("allocation"):
            if decode_part(envelope.spec, AllocationSpec).slot is not None:
                await lab.change(envelope.key, shorten)
        await lab.pass_time(20)
        lab.start_controllers("third")

        async def longer() -> bool:
            return (await lab.lease("inside")).end == end + 100

        await lab.until(longer)


@pytest.mark.parametrize("seed", mark_seeds(6))
async def test_of_an_extension_and_the_next_reservation_never_both_get_the_capacity(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    async with Lab(tmp_path, slow=seed) as lab:
        await lab.add_node("n1")
        await reserve(lab, "first", cpu=6.0, duration=300.0)
        end = (await until_state(lab, "first", "Active")).end
        assert end is not None

        async def then() -> None:
            await reserve(lab, "then", cpu=4.0, start=end + 30, duration=100.0)

        both = [then(), extend(lab, "first", 100.0)]
        rng.shuffle(both)
        for one in both:
            await one
            await lab.pass_time(rng.choice([0.0, 0.01, 0.1]))
        if rng.random() < 0.5:
            await lab.kill_controllers()
            await lab.pass_time(20)
            lab.start_controllers("again")

        async def decided() -> bool:
            first, other = await status_of(lab, "first"), await status_of(lab, "then")
            return other.state != "Requested" and (first.end != end or bool(first.message))

        await lab.until(decided)
        first, other = await status_of(lab, "first"), await status_of(lab, "then")
        assert (first.end == end + 100, other.state == "Scheduled") in ((True, False), (False, True))


async def test_a_gang_takes_slots_on_several_nodes_together_or_none(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name)
        await reserve(lab, "class", cpu=6.0, count=2, duration=900.0)
        assert (await until_state(lab, "class", "Active")).slots == {"n1": 1, "n2": 1}
        await lab.put_vm("alone", cpu=3.0, memory=GIB, reservation="class", grace=1.0)
        await lab.until_lease("alone", "Active")
        for name in ("a", "b"):
            await lab.put_vm(name, cpu=4.0, memory=GIB, reservation="class", gang="web:2", grace=1.0)
        message = await refusal(lab, "a", "reservationFull")
        assert message.startswith(
            "gang web: vm/b has no slot when 1 of 2 members have theirs: reservation/class is full"
        )
        assert await refusal(lab, "b", "reservationFull") == message
        assert Counter([spec.workload.name for spec in await lab.allocations()]) == {"class": 2, "alone": 1}
        await lab.delete("/vm/default/alone")  # what becomes free is both members'
        for name in ("a", "b"):
            await lab.until_lease(name, "Active")
        nodes = {spec.workload.name: spec.node for spec in await lab.allocations() if spec.slot is not None}
        assert sorted(nodes.values()) == ["n1", "n2"]

        for name, reservation in (("c", "later"), ("d", "later"), ("e", None)):
            await lab.put_vm(name, cpu=1.0, memory=GIB, reservation=reservation, gang="mixed:3")
        await lab.until_refused("e", "gangIncomplete")
        placed = await lab.placed("e")
        assert placed is not None and "give one to all of its members, or to none" in placed.message


async def test_a_gang_whose_members_need_each_other_out_of_the_way_finds_its_slots(tmp_path: Path) -> None:
    """The first choice of each would leave the last one without a place."""
    async with Lab(tmp_path) as lab:
        for name in ("n1", "n2", "n3"):
            await lab.add_node(name)
        await reserve(lab, "class", cpu=6.0, count=3, duration=900.0)
        await until_state(lab, "class", "Active")
        for name in ("a", "b", "c"):  # each on a node of its own, though one slot would take all of them
            await lab.put_vm(
                name, cpu=2.0, memory=GIB, reservation="class", gang="db:3", anti_affinity_groups=["db"], grace=1.0
            )
        for name in ("a", "b", "c"):
            await lab.until_lease(name, "Active")
        assert {spec.node for spec in await lab.allocations() if spec.slot is not None} == {"n1", "n2", "n3"}
        # With 4 cores left in each slot, 3 and 1 go together, and nothing else does.
        for name, cpu in (("e", 1.0), ("f", 1.0), ("g", 3.0), ("h", 3.0), ("i", 3.0), ("j", 1.0)):
            await lab.put_vm(name, cpu=cpu, memory=GIB // 4, reservation="class", gang="full:6", grace=1.0)
        for name in "efghij":
            await lab.until_lease(name, "Active")
        held: Counter[str] = Counter()
        for spec in await lab.allocations():
            if spec.slot is not None:
                held[spec.slot] += round(spec.resources.cpu)
        assert set(held.values()) == {6}


@pytest.mark.parametrize("seed", mark_seeds(4))
async def test_gangs_in_a_reservation_are_whole_or_wait_while_controllers_are_killed(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    async with Lab(tmp_path, slow=seed) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name)
        await reserve(lab, "class", cpu=4.0, count=3, duration=2000.0)
        await until_state(lab, "class", "Active")
        sizes = [rng.choice([2, 2, 3]) for _ in range(5)]
        for gang, size in enumerate(sizes):
            for member in range(size):
                await lab.put_vm(
                    f"vm-{gang}-{member}",
                    cpu=float(rng.choice([1, 2, 3])),
                    memory=GIB // 4,
                    reservation="class",
                    gang=f"gang-{gang}:{size}",
                    grace=1.0,
                )
                await lab.pass_time(rng.choice([0.0, 0.05, 1.0]))
            if rng.random() < 0.4:
                await lab.kill_controllers()
                await lab.pass_time(20)
                lab.start_controllers(f"again-{gang}")
        await lab.pass_time(30)
        there: Counter[int] = Counter()
        held: Counter[str] = Counter()
        for spec in await lab.allocations():
            if spec.slot is not None:
                there[int(spec.workload.name.split("-")[1])] += 1
                held[spec.slot] += round(spec.resources.cpu)
        assert all(cores <= 4 for cores in held.values())
        assert there and all(there[gang] in (0, size) for gang, size in enumerate(sizes)), (there, sizes)


async def test_two_workloads_race_for_the_last_slot_and_one_waits(tmp_path: Path) -> None:
    async with Lab(tmp_path, slow=3) as lab:
        await lab.add_node("n1", gpus=[])
        await reserve(lab, "one", cpu=2.0, count=2, duration=500.0)
        await until_state(lab, "one", "Active")
        for number in range(5):
            await lab.put_vm(f"vm-{number}", cpu=2.0, reservation="one")

        async def settled() -> bool:
            phases = Counter([(await lab.status(f"vm-{number}")).phase for number in range(5)])
            return phases["Running"] == 2 and phases["Pending"] == 3

        await lab.until(settled)
        used = [spec.slot for spec in await lab.allocations() if spec.slot is not None]
        assert len(set(used)) == 2


async def test_the_gpus_of_a_slot_are_given_once(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        gpu = {"model": "T4", "memory": 16 * GIB}
        await lab.add_node("n1", gpus=[gpu, gpu])
        await reserve(lab, "ml", cpu=4.0, gpus=1, duration=500.0)
        await until_state(lab, "ml", "Active")
        (slot,) = await slots(lab)
        kept = slot.gpus[0].index
        await lab.put_vm("other", cpu=1.0, gpus=1)
        await lab.until_phase("other", "Running")
        await lab.put_vm("second", cpu=1.0, gpus=1)
        await lab.until_refused("second", "insufficientResources")
        await lab.put_vm("in-it", cpu=1.0, gpus=1, reservation="ml")
        await lab.until_phase("in-it", "Running")
        devices = {spec.workload.name: [gpu.index for gpu in spec.gpus] for spec in await lab.allocations()}
        assert devices["in-it"] == [kept] and devices["other"] == [1 - kept]
        await lab.put_vm("third", cpu=1.0, gpus=1, reservation="ml")
        assert "0 GPUs free" in await refusal(lab, "third", "reservationFull")


async def test_a_slot_that_is_lost_with_its_node_is_made_again(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")
        await reserve(lab, "kept", cpu=4.0, count=2, duration=2000.0, start=lab.clock.now() + 300)
        assert (await until_state(lab, "kept", "Scheduled")).slots == {"n1": 2}
        for entry in await lab.every("allocation"):
            await remove(lab, entry.key)
        await remove(lab, "/node/-/n1")

        async def told() -> bool:
            return "2 of 2 slots were lost: no node" in (await status_of(lab, "kept")).message

        await lab.until(told)
        await lab.add_node("n2")

        async def again() -> bool:
            status = await status_of(lab, "kept")
            return status.slots == {"n2": 2} and status.message == ""

        await lab.until(again, 120)


@pytest.mark.parametrize("seed", mark_seeds(4))
async def test_nothing_is_given_twice_and_reservations_are_kept_while_controllers_are_killed(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    async with Lab(tmp_path, slow=seed) as lab:
        for name in ("n1", "n2"):
            await lab.add_node(name)
        names, kept = list[str](), dict[str, tuple[float, float]]()

        async def check() -> None:
            """A plain sum at this moment: of each node what runs there outside slots, and its slots; of each slot what is in it."""
            held: Counter[str] = Counter()
            within: Counter[str] = Counter()
            sizes: dict[str, float] = {}
            now = lab.clock.now()
            for envelope in await lab.every("allocation"):
                spec = decode_part(envelope.spec, AllocationSpec)
                if spec.role == "reserved":
                    assert spec.lease is not None
                    sizes[envelope.name] = spec.resources.cpu
                    held[spec.node] += round(spec.resources.cpu) if now >= spec.lease.prepare_at else 0
                    continue
                report = lab.nodes[spec.node].running.get(envelope.uid)
                if report is None or report.state not in ("preparing", "starting", "running", "stopping"):
                    continue
                if spec.slot is not None:
                    within[spec.slot] += round(spec.resources.cpu)
                else:
                    held[spec.node] += round(spec.resources.cpu)
            assert all(cores <= 8 for cores in held.values()), held
            assert all(cores <= sizes[slot] for slot, cores in within.items()), (within, sizes)
            for name in names:
                status = await status_of(lab, name)
                if status.start is not None and status.end is not None:
                    before = kept.setdefault(name, (status.start, status.end))
                    assert before[0] == status.start and before[1] <= status.end
                    kept[name] = status.start, status.end
                    if now < status.end and status.state != "Done":
                        assert sum(status.slots.values()) > 0

        for number in range(16):
            what = rng.random()
            if what < 0.35:
                names.append(f"kept-{number}")
                start = lab.clock.now() + rng.choice([0, 20, 90])
                await reserve(
                    lab,
                    names[-1],
                    cpu=float(rng.choice([2, 4])),
                    memory=GIB,
                    count=rng.choice([1, 2]),
                    start=start if start > lab.clock.now() else None,
                    duration=float(rng.choice([30, 120])),
                )
            elif what < 0.45 and names:
                with suppress(IllegalTransition):
                    await extend(lab, rng.choice(names), float(rng.choice([10, 60])))
            elif what < 0.7 and names:
                cpu, reservation = float(rng.choice([1, 2])), rng.choice(names)
                await lab.put_vm(f"vm-{number}", cpu=cpu, memory=GIB // 4, grace=1.0, reservation=reservation)
            else:
                lease = rng.choice([None, {"mode": "immediate", "duration": 30.0}, {"duration": 20.0}])
                await lab.put_vm(f"vm-{number}", cpu=float(rng.choice([2, 4])), memory=GIB, grace=1.0, lease=lease)
            for _ in range(rng.choice([1, 4, 12])):
                await lab.pass_time(rng.choice([0.3, 1.0]))
                await check()
            if rng.random() < 0.3:
                await lab.kill_controllers()
                await lab.pass_time(rng.choice([1, 20]))
                lab.start_controllers(f"again-{number}")
        for _ in range(40):
            await lab.pass_time(10)
            await check()
        assert kept
        assert {(await status_of(lab, name)).state for name in names} <= {"Done", "Rejected"}
        assert await slots(lab) == []


async def test_what_another_project_reserved_and_shared_takes_its_workloads_and_after_that_no_new_ones(
    tmp_path: Path,
) -> None:
    async with Lab(tmp_path) as lab:
        await lab.add_node("n1")  # 8 cores
        await reserve(lab, "class", "physics", cpu=4.0, duration=300.0)
        await lab.put_vm("early", cpu=1.0, reservation="physics/class", grace=1.0)
        await lab.put_vm("lost", cpu=1.0, reservation="physics/none")
        refused = await refusal(lab, "early", "reservationNotFound")
        assert "or is not shared with project default" in refused
        assert refused.replace("class", "X") == (await refusal(lab, "lost", "reservationNotFound")).replace("none", "X")
        await share(lab, "class", "default")
        await lab.until_phase("early", "Running", 3)  # the share woke it
        placed = await lab.placed("early")
        assert placed is not None and placed.message == "on n1, in reservation/physics/class"
        (slot,) = await slots(lab)
        (allocation,) = [one for one in await lab.allocations() if one.role != "reserved"]
        assert allocation.slot is not None and allocation.lease is not None and slot.lease is not None
        assert allocation.lease.end == slot.lease.end

        await share(lab, "class")
        await lab.put_vm("late", cpu=1.0, reservation="physics/class")
        await lab.until_refused("late", "reservationNotFound")
        await lab.change_spec("early", run="stop")
        await lab.until_phase("early", "Stopped")
        await lab.change_spec("early", run="run")
        await lab.until_phase("early", "Running")  # what was placed keeps it
        await lab.until_lease("early", "Done", 400)
