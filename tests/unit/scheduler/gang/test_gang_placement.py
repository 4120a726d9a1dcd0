"""Places for a whole gang: all pass every filter, none is found only where there is none or where it says so."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.contracts.policy import GpuAsk, Request
from weft.kinds.fields.gang import read_gang
from weft.objects.errors import InvalidInput
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.gang.explain import explain_places, explain_refusal
from weft.scheduler.gang.placement import GangMember, Seats, find_places
from weft.scheduler.gang.search_budget import Budget
from weft.scheduler.packing import solver
from weft.scheduler.table.snapshot import Gpu, NodeFacts, Snapshot, state_of

GIB = 1024**3


def node(number: int, cpu: int, memory: int, gpus: int = 0) -> NodeFacts:
    return NodeFacts(
        uid=f"u{number}",
        name=f"n{number}",
        capacity=(cpu * 1000, memory * GIB, 0),
        online=True,
        cordoned=False,
        machines=frozenset({"q35"}),
        gpus=(Gpu("T4", 16 * GIB),) * gpus,
    )


def member(number: int, cpu: int, memory: int, **more: object) -> GangMember:
    request = Request((cpu * 1000, memory * GIB, 0), "q35", "least_loaded", gang="default/web", **more)  # type: ignore[arg-type]
    return GangMember(request, f"vm{number}", f"vm/m{number}")


def engine_of(*nodes: NodeFacts) -> Engine:
    snapshot = Snapshot()
    for each in nodes:
        snapshot.put_node(each)
    return Engine(snapshot)


def can_lie(engine: Engine, members: list[GangMember], rows: tuple[int, ...], order: list[int]) -> bool:
    with engine.snapshot.trial() as trial:
        seats = Seats(engine, members, trial)
        for number in order:
            if not engine.fits(members[number].request)[rows[number]]:
                return False
            seats.put(number, rows[number])
    return True


def has_answer(engine: Engine, members: list[GangMember]) -> bool:
    """By trying every place in every order."""
    return any(
        can_lie(engine, members, rows, list(order))
        for rows in itertools.product(range(len(engine.snapshot)), repeat=len(members))
        for order in itertools.permutations(range(len(members)))
    )


sizes = st.tuples(st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=examples(80), deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 8), st.integers(2, 8), st.integers(0, 2)), min_size=1, max_size=3),
    st.lists(
        st.tuples(sizes, st.sampled_from([None, None, GpuAsk(1), GpuAsk(1, 500)]), st.booleans()),
        min_size=2,
        max_size=4,
    ),
)
def test_an_answer_holds_and_a_proof_is_true(
    nodes: list[tuple[int, int, int]], asked: list[tuple[tuple[int, int], GpuAsk | None, bool]]
) -> None:
    engine = engine_of(*[node(number, *size) for number, size in enumerate(nodes)])
    members = [
        member(n, *size, gpus=gpus, groups=("g",) if apart else (), apart=("g",) if apart else ())
        for n, (size, gpus, apart) in enumerate(asked)
    ]
    before = state_of(engine.snapshot)
    found = find_places(engine, members)
    told = (explain_refusal if found.rows is None else explain_places)(engine, members, found)
    assert state_of(engine.snapshot) == before and len(told) == len(members)
    if found.rows is not None:
        assert can_lie(engine, members, tuple(found.rows), found.order)
        chosen = [[v.node for v in each.verdicts if v.outcome == "chosen"] for each in told]
        assert chosen == [[engine.snapshot.names[row]] for row in found.rows]
        return
    assert all(each.error and "gang web: vm/m" in each.message for each in told)
    # So small a gang is searched to its end: no answer is missed, and what is proven is true.
    assert not has_answer(engine, members)


CPUS = (3, 2, 4, 3, 2, 6)


def test_what_only_a_search_finds_is_found() -> None:
    # Each in turn to the emptiest, or to the fullest, or large ones first, leaves one over.
    engine = engine_of(node(0, 10, 100), node(1, 10, 100))
    members = [member(n, cpu, 1) for n, cpu in enumerate(CPUS)]
    assert find_places(engine, members, search=False).rows is None
    found = find_places(engine, members)
    assert found.rows is not None and found.searched
    load = [sum(cpu for cpu, row in zip(CPUS, found.rows, strict=True) if row == n) for n in (0, 1)]
    assert load == [10, 10]


def test_what_lacks_is_told_by_the_members_name() -> None:
    engine = engine_of(node(0, 8, 8), node(1, 8, 8))
    members = [member(0, 2, 2), member(1, 12, 2), member(2, 2, 2)]
    found = find_places(engine, members)
    assert found.rows is None and found.proven and found.lacking == 1
    told = explain_refusal(engine, members, found)
    assert told[0].error == "insufficientResources"
    nearest = [(each.nearest, each.nearest_node) for each in told]
    assert nearest == [("", ""), ("n0, if you ask for at most --cpu 8", "n0"), ("", "")]
    assert {each.message for each in told} == {
        "gang web: vm/m1 has no place: needs 12 cpu, largest free is 8 (n0)",
    }


@pytest.mark.skipif(not solver.is_installed(), reason="the extra solver is not installed")
def test_the_solver_proves_what_a_search_can_only_suppose() -> None:
    engine = engine_of(*[node(number, 10, 100) for number in range(8)])
    members = [member(n, 6, 1) for n in range(6)] + [member(n, 3, 1) for n in range(6, 19)]
    by_search = find_places(engine, members, solver_seconds=0)
    assert by_search.rows is None and not by_search.proven
    assert "not proven" in explain_refusal(engine, members, by_search)[0].message
    solved = find_places(engine, members, solver_seconds=20)
    assert solved.rows is None and solved.proven
    assert "not proven" not in explain_refusal(engine, members, solved)[0].message


def test_searches_take_a_tenth_of_the_time() -> None:
    budget = Budget()
    assert budget.allows(0.0) and budget.wait(0.0) is None
    budget.spend(5.0, 6.0)
    budget.owed.add("vm")
    assert not budget.allows(14.9) and budget.wait(14.0) == 1.0
    assert budget.allows(15.0) and budget.wait(16.0) == 0.0


@pytest.mark.parametrize("text", ["web", "web:", "web:x", "web:1", "web:33", "Web:2", ":2", "web:2:3", "", "web:-2"])
def test_a_gang_that_cannot_be_read_is_told_so(text: str) -> None:
    with pytest.raises(InvalidInput) as told:
        read_gang(text)
    assert told.value.field == "spec.gang"
