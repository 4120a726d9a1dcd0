"""A new size where a VM is: what it frees is not free before it is written."""

from __future__ import annotations

import msgspec

from weft.contracts.store import Put
from weft.informer.view import Item, make_view
from weft.kinds.allocation import AllocatedImage, AllocationReport, AllocationSpec, Resources, account
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.scheduler.allocation.resize import plan_resize
from weft.scheduler.table.snapshot import NodeFacts, Snapshot, amounts_of

IMAGE = AllocatedImage(name="tiny", uid="i", sha256="0" * 64, size=1, url="/")


def make(cpu: float, *, restart_generation: int = 1, has: float | None = None) -> tuple[Item, Item, Snapshot]:
    """A VM that wants ``cpu`` cores and a restart, its place with 4 (its machine ``has`` as many), and a node of 8 where 3
    more are used."""
    wish = VmSpec(image="tiny", cpu=cpu, memory=100, networks=[])
    vm = Envelope(kind="vm", name="web", uid="v", project="default", spec=msgspec.Raw(msgspec.json.encode(wish)))
    vm.actions = msgspec.Raw(msgspec.json.encode({"restart_generation": restart_generation}))
    spec = AllocationSpec(
        node="n1",
        node_uid="n",
        workload=vm.ref,
        workload_generation=1,
        incarnation=1,
        resources=Resources(cpu=4.0, memory=100),
        image=IMAGE,
    )
    place = Envelope(kind="allocation", name="n.a", uid="a", spec=msgspec.Raw(msgspec.json.encode(spec)))
    running = Resources(cpu=has, memory=100) if has is not None else None
    report = AllocationReport(incarnation=1, state="running", resize_limits={"cpu": 8, "memory": 2**40}, has=running)
    place.report = msgspec.Raw(msgspec.json.encode(report))
    snapshot = Snapshot()
    snapshot.put_node(NodeFacts("n", "n1", (8000, 1000, 0), True, False, frozenset({"q35"})))
    snapshot.put_allocation(place.key, "n", amounts_of(account(spec, report)))
    snapshot.put_allocation("/allocation/-/n.other", "n", (3000, 0, 0))
    return Item(vm), Item(place), snapshot


def refit(cpu: float, *, restart_generation: int = 1, has: float | None = None) -> tuple[AllocationSpec, int]:
    """The place's new spec, and the cores (in thousandths) that count as used until it is written."""
    vm, place, snapshot = make(cpu, restart_generation=restart_generation, has=has)
    commit = plan_resize(make_view(), snapshot, vm, place, 1.0)
    assert commit is not None
    [write] = [w for w in commit.writes if w.key == place.key]
    assert isinstance(write, Put)
    return decode_part(decode_envelope(write.value).spec, AllocationSpec), int(snapshot.allocated[0, 0])


def test_a_larger_one_counts_at_once() -> None:
    spec, used = refit(5.0)
    assert (spec.resources.cpu, spec.restart_generation, used) == (5.0, 1, 8000)


def test_what_a_smaller_one_frees_counts_only_when_it_is_written() -> None:
    spec, used = refit(1.0)
    assert (spec.resources.cpu, spec.restart_generation, used) == (1.0, 1, 7000)


def test_what_a_machine_still_has_counts_while_its_place_is_made_smaller_again() -> None:
    for restart_generation in (0, 1):
        spec, used = refit(1.0, restart_generation=restart_generation, has=5.0)
        assert (spec.resources.cpu, spec.restart_generation, used) == (1.0, restart_generation, 8000)


def test_what_a_machine_still_has_it_may_keep_on_a_full_node() -> None:
    spec, used = refit(5.0, restart_generation=0, has=5.0)
    assert (spec.resources.cpu, used) == (5.0, 8000)


def test_one_that_does_not_fit_starts_as_it_is() -> None:
    spec, used = refit(6.0)
    assert (spec.resources.cpu, spec.restart_generation, used) == (4.0, 1, 7000)


def test_a_running_one_grows_at_once_and_without_a_start() -> None:
    spec, used = refit(5.0, restart_generation=0)
    assert (spec.resources.cpu, spec.restart_generation, used) == (5.0, 0, 8000)


def test_a_running_one_that_would_not_fit_keeps_its_size_and_says_by_name_what_is_lacking() -> None:
    vm, place, snapshot = make(6.0, restart_generation=0)
    commit = plan_resize(make_view(), snapshot, vm, place, 1.0)
    assert commit is not None
    [write] = commit.writes
    assert isinstance(write, Put) and write.key == vm.key
    placed = decode_envelope(write.value).condition("Placed")
    assert placed is not None
    assert (placed.status, placed.reason) == ("True", "insufficientResources")
    assert "2 more cpu requested, 1 free" in placed.message
    assert int(snapshot.allocated[0, 0]) == 7000


def test_what_a_machine_has_not_given_up_yet_still_counts() -> None:
    _, place, _ = make(4.0)
    spec = place.spec(AllocationSpec)
    held = AllocationReport(has=Resources(cpu=1.0, memory=500))
    assert account(spec, held) == Resources(cpu=4.0, memory=500)
    assert account(spec, AllocationReport()) == spec.resources


def test_a_new_size_for_a_node_that_is_away_is_not_said_to_be_there() -> None:
    for phase, told in (("Ready", "Resized"), ("Autonomous", "ResizeWaits"), ("NotReady", "ResizeWaits")):
        vm, place, snapshot = make(5.0, restart_generation=0)
        view = make_view()
        status = msgspec.Raw(msgspec.json.encode({"phase": phase}))
        node = Envelope(kind="node", name="n1", uid="n", status=status)
        view.put_item(node.key, Item(node))
        commit = plan_resize(view, snapshot, vm, place, 1.0)
        assert commit is not None and [event.reason for event in commit.events] == [told]
