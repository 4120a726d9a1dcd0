"""Slots of reservations in the snapshot: whatever comes and goes in whatever order, no capacity counts twice or is lost."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.scheduler.lease.calendar import CalendarEntry
from weft.scheduler.lease.slots import Free, SlotFacts, Slots
from weft.scheduler.table.facts import NO_LOAD, Gpu, Load, NodeFacts
from weft.scheduler.table.snapshot import Snapshot, state_of

NODES = ("a", "b")
WHOLE = (100, 100, 100)


def make_snapshot() -> Snapshot:
    snapshot = Snapshot()
    for uid in NODES:
        gpus = (Gpu("T4"), Gpu("T4"))
        snapshot.put_node(
            NodeFacts(uid=uid, name=uid, capacity=WHOLE, online=True, cordoned=False, machines=frozenset(), gpus=gpus)
        )
    return snapshot


def put_slot(snapshot: Snapshot, key: str, node: str, amounts: tuple[int, int], gpus: Any = ()) -> None:
    snapshot.slots.put(key, SlotFacts("r", node, amounts, gpus, 0.0, 0.0, 50.0))
    snapshot.put_leased(key, CalendarEntry(node, 0.0, 50.0, amounts), 0, Load(gpus=gpus))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["slot", "in", "out", "drop", "drop slot", "without"]),
        st.integers(0, 3),  # slot
        st.integers(0, 5),  # allocation
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    max_size=40,
)


@settings(max_examples=examples(150), deadline=None)
@given(STEPS)
def test_a_node_s_and_a_slot_s_amounts_are_what_a_plain_sum_says(steps: list[tuple[str, int, int, int, int]]) -> None:
    """The oracle: a slot takes its size of its node; what is in a known slot takes of that; all else takes of its node."""
    snapshot = make_snapshot()
    sizes: dict[int, tuple[int, int]] = {}
    inside: dict[int, tuple[int, int, int]] = {}  # slot, cpu, disk
    outside: dict[int, tuple[str, int]] = {}

    def node_of(slot: int) -> str:
        return NODES[slot % 2]

    for what, slot, number, cpu, disk in steps:
        key, name = f"slot-{slot}", f"in-{number}"
        if what == "slot" and slot not in sizes:
            sizes[slot] = (cpu, disk)
            put_slot(snapshot, key, node_of(slot), sizes[slot])
        elif what == "in" and number not in outside and slot in sizes:
            inside[number] = (slot, cpu, disk)
            snapshot.put_slotted(name, node_of(slot), key, (cpu, 0, disk), NO_LOAD)
        elif what == "out":
            outside[number] = (node_of(slot), cpu)
            inside.pop(number, None)
            snapshot.put_allocation(name, node_of(slot), (cpu, 0, 0))
        elif what == "drop":
            inside.pop(number, None)
            outside.pop(number, None)
            snapshot.drop_allocation(name)
        elif what == "drop slot" and not any(one[0] == slot for one in inside.values()):
            sizes.pop(slot, None)
            snapshot.drop_allocation(key)
        elif what == "without":
            before = state_of(snapshot)
            with snapshot.trial() as trial:
                trial.drop(name, key)
            assert state_of(snapshot) == before
        for node in NODES:
            row = snapshot.index_of(node)
            assert row is not None
            held = sum(size[0] for one, size in sizes.items() if node_of(one) == node)
            held += sum(amount for where, amount in outside.values() if where == node)
            assert snapshot.allocated[0, row] == held
            assert snapshot.allocated[2, row] == sum(d for s, _, d in inside.values() if node_of(s) == node)
        for one, (size, _) in sizes.items():
            used = sum(amount for at, amount, _ in inside.values() if at == one)
            assert snapshot.slots.free(f"slot-{one}").cpu == size - used
            assert snapshot.slots.is_used(f"slot-{one}") == any(
                at == one and amount for at, amount, _ in inside.values()
            )


def test_gpus_of_a_slot_are_taken_of_the_node_once_and_given_out_within() -> None:
    snapshot = make_snapshot()
    put_slot(snapshot, "slot", "a", (10, 10), ((0, 1000),))
    row = snapshot.index_of("a")
    assert row is not None and snapshot.gpu_free[row].tolist() == [0, 1000]
    snapshot.put_slotted("in", "a", "slot", (1, 1, 0), Load(gpus=((0, 250),)))
    assert snapshot.gpu_free[row].tolist() == [0, 1000]
    assert snapshot.slots.free("slot") == Free(9, 9, {0: 750})
    snapshot.drop_allocation("in")
    assert snapshot.slots.free("slot") == Free(10, 10, {0: 1000})
    snapshot.drop_allocation("slot")
    assert snapshot.gpu_free[row].tolist() == [1000, 1000]


def test_in_a_slot_that_nobody_knows_an_allocation_takes_all_of_its_node() -> None:
    """As in a store that was restored: until the slot is read, nothing else gets that capacity."""
    snapshot = make_snapshot()
    snapshot.put_slotted("in", "a", "gone", (7, 8, 9), NO_LOAD)
    row = snapshot.index_of("a")
    assert row is not None and snapshot.allocated[:, row].tolist() == [7, 8, 9]


def test_slots_of_a_reservation_are_found_in_order_and_forgotten_one_by_one() -> None:
    slots = Slots()
    for key in ("b", "a"):
        slots.put(key, SlotFacts("r", "n", (4, 4), (), 0.0, 0.0, 9.0))
    assert slots.of("r") == ["a", "b"] and slots.of("other") == []
    slots.drop("a")
    slots.drop("a")
    assert slots.of("r") == ["b"]
    slots.drop("b")
    assert slots.of("r") == [] and slots.get("b") is None
