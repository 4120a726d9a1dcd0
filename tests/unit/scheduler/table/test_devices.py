"""GPUs: which nodes have what is asked for, and which devices a workload gets of them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.contracts.policy import GpuAsk, Request
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.explain import explain
from weft.scheduler.table.devices import choose_devices
from weft.scheduler.table.snapshot import Gpu, Load, NodeFacts, Snapshot

GIB = 2**30


def node(name: str, *gpus: Gpu) -> NodeFacts:
    return NodeFacts(f"uid-{name}", name, (8000, 16 * GIB, 100 * GIB), True, False, frozenset({"q35"}), gpus=gpus)


def ask(gpus: GpuAsk) -> Request:
    return Request((1000, GIB, GIB), "q35", "least_loaded", gpus=gpus)


def give(snapshot: Snapshot, name: str, request: Request, row: int) -> Sequence[int]:
    assert request.gpus is not None
    devices = choose_devices(snapshot, request.gpus, row)
    snapshot.put_allocation(name, snapshot.uids[row], request.amounts, Load(gpus=devices))
    return [device for device, _ in devices]


def test_shares_fill_a_device_before_the_next_is_begun_and_whole_ones_get_untouched_ones() -> None:
    snapshot = Snapshot()
    snapshot.put_node(node("n1", *[Gpu("T4", 16 * GIB)] * 3))
    assert give(snapshot, "a", ask(GpuAsk(1, 600)), 0) == [0]
    assert give(snapshot, "b", ask(GpuAsk(1, 500)), 0) == [1]
    assert give(snapshot, "c", ask(GpuAsk(1, 400)), 0) == [0]
    assert give(snapshot, "d", ask(GpuAsk(1, 500)), 0) == [1]
    assert give(snapshot, "e", ask(GpuAsk(1)), 0) == [2]
    assert Engine(snapshot).choose(ask(GpuAsk(1, 1)), "x") is None
    snapshot.drop_allocation("c")
    assert give(snapshot, "f", ask(GpuAsk(1, 300)), 0) == [0]


def test_memory_and_model_are_asked_of_each_device() -> None:
    snapshot = Snapshot()
    snapshot.put_node(node("n1", Gpu("A100", 80 * GIB), Gpu("T4", 16 * GIB), Gpu("T4", 16 * GIB)))
    snapshot.put_node(node("n2"))
    engine = Engine(snapshot)
    assert choose_devices(snapshot, GpuAsk(1), 0) == ((1, 1000),)  # the one that others could do least with
    assert choose_devices(snapshot, GpuAsk(1, memory=20 * GIB), 0) == ((0, 1000),)
    assert engine.choose(ask(GpuAsk(2, models=("T4", "V100"))), "x") == 0
    assert engine.choose(ask(GpuAsk(3, models=("T4",))), "x") is None
    assert engine.choose(ask(GpuAsk(1, models=("V100",))), "x") is None
    assert engine.choose(ask(GpuAsk(1, memory=81 * GIB)), "x") is None


def test_a_refusal_names_what_of_gpus_is_lacking() -> None:
    snapshot = Snapshot()
    snapshot.put_node(node("n1", Gpu("T4", 16 * GIB)))
    request = ask(GpuAsk(2, memory=8 * GIB))
    told = explain(Engine(snapshot), request, "x", None)
    assert told.error == "insufficientResources"
    assert told.message == "needs 2 GPUs (8.0 GiB each), the most free on one node is 1"
    [verdict] = told.verdicts
    assert [(s.resource, s.wanted, s.free) for s in verdict.shortfalls] == [("gpu", 2.0, 1.0)]


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([8, 16, 32]), max_size=4), min_size=1, max_size=4),
    st.lists(
        st.one_of(
            st.builds(GpuAsk, count=st.integers(1, 3), memory=st.sampled_from([0, 16 * GIB])),
            st.builds(GpuAsk, count=st.just(1), share=st.integers(1, 999)),
        ),
        max_size=25,
    ),
    st.sets(st.integers(0, 24)),
)
def test_no_device_is_given_away_twice(nodes: list[list[int]], asks: list[GpuAsk], leave: set[int]) -> None:
    snapshot = Snapshot()
    for number, memories in enumerate(nodes):
        snapshot.put_node(node(f"n{number}", *(Gpu("T4", memory * GIB) for memory in memories)))
    engine = Engine(snapshot)
    taken: dict[str, list[tuple[str, int, int]]] = {}
    for number, gpus in enumerate(asks):
        request = ask(gpus)
        row = engine.choose(request, "x")
        if row is not None:
            devices = give(snapshot, f"a{number}", request, row)
            assert len(set(devices)) == gpus.count
            taken[f"a{number}"] = [(snapshot.names[row], device, gpus.share) for device in devices]
            assert all(nodes[row][device] * GIB >= gpus.memory for device in devices)
        if number in leave:
            taken.pop(f"a{number - 1}", None)
            snapshot.drop_allocation(f"a{number - 1}")
        for index, memories in enumerate(nodes):
            for device in range(len(memories)):
                used = sum(s for each in taken.values() for n, d, s in each if (n, d) == (f"n{index}", device))
                assert used <= 1000 and snapshot.gpu_free[index, device] == 1000 - used
