"""Who is preempted where disruption budgets protect some: tried against all sets of victims."""

from __future__ import annotations

from itertools import chain, combinations
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples
from tests.unit.scheduler.allocation.test_preempt import NOW, fabric, need, place

from weft.informer.disruption.budgets import MOST_BUDGETS, Allowance, Budgets
from weft.informer.view import Item, View
from weft.kinds.allocation import Resources
from weft.kinds.disruption_budget import DISRUPTION_BUDGET, DisruptionBudgetSpec
from weft.kinds.fields.lease import LEASE_ENDED, Suspension
from weft.kinds.migration import MIGRATION, MigrationSpec, MigrationStatus
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.vm import VM, VmSpec
from weft.scheduler.allocation.preempt import (
    MOST_CHOICES,
    MOST_VICTIMS,
    Victim,
    choose_victims,
    describe_kept,
    find_way,
)

PLACES = {name: place(name, 1.0) for name in "abcdef"}


def tries() -> Any:
    return iter(range(MOST_CHOICES))


def allowed(some: Any) -> bool:
    counted: dict[Allowance, int] = {}
    for victim in some:
        for allowance in victim.allowances:
            counted[allowance] = counted.get(allowance, 0) + 1
    return all(count <= allowance.left for allowance, count in counted.items())


@st.composite
def cases(draw: Any) -> tuple[list[Victim], dict[str, tuple[int, int]], tuple[int, int]]:
    """Victims with what each of them frees, of two things, and what is needed."""
    names = "abcdef"[: draw(st.integers(1, 6))]
    allowances = [
        Allowance(PLACES["a"], 9, draw(st.integers(0, 4)), draw(st.integers(0, 4)))
        for _ in range(draw(st.integers(0, 3)))
    ]
    victims = [
        Victim(
            PLACES[name],
            True,
            draw(st.integers(-1, 1)),
            float(draw(st.integers(1, 3))),
            0,
            tuple(allowance for allowance in allowances if draw(st.booleans())),
        )
        for name in names
    ]
    # As ``find_way`` leaves them: those that may not go at all aren't asked.
    victims = [one for one in victims if all(allowance.left for allowance in one.allowances)]
    amounts = {one.key: (draw(st.integers(0, 3)), draw(st.integers(0, 3))) for one in victims}
    return victims, amounts, (draw(st.integers(1, 6)), draw(st.integers(0, 4)))


@given(cases())
@settings(max_examples=examples(600), deadline=None)
def test_no_budget_is_exceeded_and_the_lowest_priority_that_any_allowed_set_needs_is_found(case: Any) -> None:
    victims, amounts, wanted = case

    def fits(some: Any) -> bool:
        return all(sum(amounts[one.key][kind] for one in some) >= wanted[kind] for kind in (0, 1))

    sets = chain.from_iterable(combinations(victims, count) for count in range(1, len(victims) + 1))
    enough = [some for some in sets if allowed(some) and fits(some)]
    chosen = choose_victims(victims, fits, tries())
    if chosen is None:
        assert not enough
        return
    assert allowed(chosen) and fits(chosen)
    assert not any(fits([one for one in chosen if one is not spare]) for spare in chosen if len(chosen) > 1)
    assert max(one.priority for one in chosen) == min(max(one.priority for one in some) for some in enough)


def test_no_more_than_so_many_choices_are_tried_whatever_the_budgets_say() -> None:
    allowances = [Allowance(PLACES["a"], 20, 0, 1 + number % 3) for number in range(6)]
    many = [
        Victim(place(f"v{number:02}", 1.0), True, 0, 1.0, 0, tuple(allowances[number % 6 :])) for number in range(20)
    ]
    asked = 0

    def fits(some: Any) -> bool:
        nonlocal asked
        asked += 1
        return False

    assert choose_victims(many, fits, tries()) is None
    assert asked <= MOST_CHOICES + 1


def workload(name: str, labels: dict[str, str], **status: Any) -> Item:
    spec = VmSpec(image="tiny", memory=1 << 27)
    return Item(
        VM.make(name, spec, NOW, uid=f"w-{name}", project="default", labels=labels, status=WorkloadStatus(**status))
    )


def budget(name: str, selector: dict[str, str], **spec: Any) -> Item:
    return Item(
        DISRUPTION_BUDGET.make(name, DisruptionBudgetSpec(selector=selector, **spec), NOW, uid=name, project="default")
    )


def put(view: View, *items: Item) -> None:
    for item in items:
        view.put_item(item.key, item)


WEB = {"app": "web"}


def test_a_budget_counts_its_own_and_who_is_down_for_whatever_reason() -> None:
    up = [place(name, 0.5) for name in "abcdefgh"]
    gone = msgspec.structs.replace(up[1].envelope, deleting_since=NOW)
    view, _ = fabric(
        [
            up[0],
            Item(gone),
            place("c", 0.5, state="stopped"),
            place("d", 0.5, desired="stop"),
            place("e", 0.5),
            place("f", 0.5),
        ]
    )
    move = MIGRATION.make(
        "m",
        MigrationSpec(workload="vm/e", mode="cold"),
        NOW,
        project="default",
        status=MigrationStatus(phase="Pending"),
    )
    put(view, *(workload(name, {**WEB, "x": name}) for name in "abcdef"), Item(move))
    put(view, workload("done", WEB, reason=LEASE_ENDED), workload("nowhere", WEB), workload("other", {"app": "db"}))
    put(view, budget("web", WEB, max_unavailable=5), budget("strict", {**WEB, "x": "a"}, min_available=1))
    a = view.get("/vm/default/a")
    assert a is not None
    allowances = {allowance.budget.envelope.name: allowance for allowance in Budgets(view).find(a)}
    web, strict = allowances["web"], allowances["strict"]
    assert (web.members, web.down, web.most, web.left) == (7, 5, 5, 0)  # up: a and f
    assert (strict.members, strict.down, strict.most, strict.left) == (1, 0, 0, 0)
    assert web.text == "disruptionbudget/web lets 5 of 7 be down, and 5 are"
    down = view.get("/vm/default/c")
    assert down is not None and Budgets(view).find(down) == []
    booting = place("c", 0.5, state="starting")
    put(view, booting)
    assert [one.left for one in Budgets(view).find(down)] == [0], "it is down, and to come up"
    relabelled = workload("a", {"app": "db"})
    put(view, relabelled)
    assert Budgets(view).find(relabelled) == []
    f = view.get("/vm/default/f")
    assert f is not None and [allowance.members for allowance in Budgets(view).find(f)] == [6]
    put(view, workload("other", WEB))
    assert [allowance.members for allowance in Budgets(view).find(f)] == [7]
    put(view, place("f", 0.5, suspension=Suspension("vm/x", NOW)))
    assert [allowance.down for allowance in Budgets(view).find(f)] == [7]
    too_many = [budget(f"b{number}", {**WEB, "x": str(number)}, max_unavailable=9) for number in range(MOST_BUDGETS)]
    put(view, *too_many)
    (crowded,) = Budgets(view).find(f)
    assert crowded.left == 0 and "one of more than 32 with the same first label" in crowded.text


def test_a_dearer_one_goes_where_a_budget_protects_the_cheapest_and_the_decision_says_so() -> None:
    places = [place("a", 2.0, priority=-1), place("b", 1.0, priority=-1), place("c", 1.0)]
    view, engine = fabric(places)
    put(view, workload("a", WEB), workload("b", WEB), workload("c", {}))
    put(view, budget("web", WEB, max_unavailable=1))
    kept: dict[Allowance, list[str]] = {}
    way = find_way(view, engine, need(3.0), NOW, Budgets(view), kept)
    assert way is not None and {one.item.envelope.name for one in way.victims} == {"u-n1.a", "u-n1.c"}
    assert describe_kept(kept, "default") == [
        "vm/a, vm/b: no more than 1 of them gives way, since disruptionbudget/web lets 1 of 2 be down, and 0 are"
    ]
    put(view, budget("web", WEB, max_unavailable=0))
    kept.clear()
    assert find_way(view, engine, need(2.0), NOW, Budgets(view), kept) is None
    assert describe_kept(kept, "default") == [
        "vm/a, vm/b: none of them gives way, since disruptionbudget/web lets 0 of 2 be down, and 0 are"
    ]


def test_many_who_are_protected_hide_nobody_who_may_go() -> None:
    tiny = Resources(cpu=0.1, memory=1 << 20, disk=1 << 20)
    many = [place(f"v{number:02}", 0.1, priority=-1, resources=tiny) for number in range(MOST_VICTIMS)]
    view, engine = fabric([*many, place("big", 1.0)])
    put(view, *(workload(f"v{number:02}", WEB) for number in range(MOST_VICTIMS)), workload("big", {}))
    put(view, budget("web", WEB, max_unavailable=0))
    way = find_way(view, engine, need(2.0), NOW, Budgets(view), {})
    assert way is not None and [one.item.envelope.name for one in way.victims] == ["u-n1.big"]
