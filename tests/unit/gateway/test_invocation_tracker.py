"""Invocations under way: at most one execution each, exact concurrency, and every caller hears of an end, whatever happens."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest
from tests.long import mark_seeds

from weft.contracts.driver.function import Recipe
from weft.gateway.function.definition.recipe import Owner
from weft.gateway.function.instance.fleet import Fleet
from weft.gateway.function.invocation.tracker import (
    ADRIFT_SECONDS,
    FETCH_SECONDS,
    MOST_ASKED,
    Done,
    Instruction,
    InvocationTracker,
    LateResult,
    Lost,
    NoNode,
    PendingInvocation,
    SendAck,
    SendInvoke,
)
from weft.protocol.invocations import (
    Adrift,
    Count,
    InstanceState,
    InvocationAnswer,
    InvocationRefused,
    Invoke,
    Underway,
)

RECIPE = Recipe(digest="d", function="uid", project="p", name="hello", memory=100)
OPEN = InstanceState(free_memory=1000, isolations={"process": ""}, recipes=["d"])


def make(*nodes: str) -> InvocationTracker:
    fleet = Fleet()
    tracker = InvocationTracker(fleet, lambda digest: Owner("uid", 3.0, "p") if digest == "d" else None)
    for node in nodes:
        connect(tracker, fleet, node)
    tracker.fleet = fleet  # type: ignore[attr-defined]
    return tracker


def connect(
    tracker: InvocationTracker, fleet: Fleet, node: str, underway: Underway | None = None, now: float = 0.0
) -> list[Instruction]:
    tracker.connect(node)
    found = tracker.receive(node, underway or Underway(), now)
    fleet.stand(node, OPEN)
    return found


def fly(id: str, *nodes: str, until: float = 100.0) -> PendingInvocation:
    return PendingInvocation(
        RECIPE, Invoke(id, "d", b"", 3.0), {node: place for place, node in enumerate(nodes)}, until
    )


def fleet_of(tracker: InvocationTracker) -> Fleet:
    fleet: Fleet = tracker.fleet  # type: ignore[attr-defined]
    return fleet


def test_it_is_asked_of_the_best_and_of_the_next_only_after_a_refusal() -> None:
    tracker = make("a", "b")
    first = fly("1", "b", "a")
    assert tracker.begin(first) == [SendInvoke("b", first)]
    assert tracker.receive("a", InvocationRefused("1", "insufficientResources", ""), 0) == []  # it wasn't asked
    assert tracker.receive("b", InvocationRefused("1", "insufficientResources", ""), 0) == [SendInvoke("a", first)]
    assert tracker.receive("a", InvocationRefused("1", "closing", ""), 0) == [NoNode(first)]
    assert [*first.refusals] == ["b", "a"] and tracker.running("uid") == 0


def test_a_warm_instance_goes_before_a_better_node_and_one_ready_before_none() -> None:
    tracker = make("a", "b", "c")
    fleet = fleet_of(tracker)
    fleet.stand("c", InstanceState({"d": Count(idle=1)}, 0, 1000, {"process": ""}))
    fleet.stand("b", InstanceState({"d": Count(ready=1)}, 0, 1000, {"process": ""}))
    asked = [tracker.begin(fly(str(n), "a", "b", "c"))[0] for n in range(2)]
    assert [ask.node for ask in asked if isinstance(ask, SendInvoke)] == ["c", "b"]  # c's only one is taken
    tracker.receive("c", InvocationAnswer("0", b""), 0)
    ask = tracker.begin(fly("2", "a", "b", "c"))[0]
    assert isinstance(ask, SendInvoke) and ask.node == "c" and not ask.pending.cold


def test_a_machine_is_copied_where_it_is_prepared_before_it_is_booted_on_a_better_node() -> None:
    tracker = make("a", "b", "c")
    fleet, boxed = fleet_of(tracker), msgspec.structs.replace(RECIPE, isolation="vm")
    for node, room, recipes in (("a", 1000, []), ("b", 50, ["d"]), ("c", 1000, ["d"])):
        fleet.stand(node, InstanceState(free_memory=room, isolations={"vm": "", "process": ""}, recipes=recipes))
    places = {"a": 0, "b": 1, "c": 2}
    assert fleet.choose(boxed, places, ()) == "c"
    assert fleet.choose(boxed, places, ("c",)) == "a"  # b has no room
    assert fleet.choose(RECIPE, places, ()) == "a"  # anything else is up at once wherever it is


def test_a_node_that_seems_full_or_cannot_is_asked_last_or_not_at_all() -> None:
    tracker = make("a", "b", "c")
    fleet = fleet_of(tracker)
    fleet.stand("a", InstanceState({}, 0, 10, {"process": ""}))
    fleet.stand("b", InstanceState({}, 0, 1000, {"process": "no bubblewrap"}))
    pending = fly("1", "a", "b", "c")
    assert tracker.begin(pending) == [SendInvoke("c", pending)]
    assert tracker.receive("c", InvocationRefused("1", "x", ""), 0) == [SendInvoke("a", pending)]
    assert tracker.receive("a", InvocationRefused("1", "x", ""), 0) == [NoNode(pending)]


def test_no_more_than_so_many_nodes_are_asked() -> None:
    nodes = [f"n{n:02}" for n in range(MOST_ASKED + 4)]
    tracker = make(*nodes)
    pending, asked = fly("1", *nodes), 1
    found = tracker.begin(pending)
    while isinstance(found[0], SendInvoke):
        found = tracker.receive(found[0].node, InvocationRefused("1", "full", ""), 0)
        asked += isinstance(found[0], SendInvoke)
    assert asked == MOST_ASKED


def test_where_code_must_come_first_more_time_is_given() -> None:
    tracker = make("a")
    fleet_of(tracker).stand("a", InstanceState({}, 0, 1000, {"process": ""}))
    pending = fly("1", "a", until=10.0)
    tracker.begin(pending)
    assert pending.until == 10.0 + FETCH_SECONDS and not tracker.expire(100.0)


def test_a_second_answer_is_only_thanked_for() -> None:
    tracker = make("a")
    pending = fly("1", "a")
    tracker.begin(pending)
    answer = InvocationAnswer("1", b"x")
    assert tracker.receive("a", answer, 0) == [Done(pending, answer), SendAck("a", "1", 1)]
    assert tracker.receive("a", answer, 0) == [LateResult("a", answer), SendAck("a", "1", 1)]


def test_a_lost_connection_is_waited_for_and_then_given_up_but_counts_while_it_may_run() -> None:
    tracker = make("a")
    pending = fly("1", "a")
    tracker.begin(pending)
    tracker.disconnect("a", 10.0)
    assert tracker.expire(10.0 + ADRIFT_SECONDS - 1) == []
    (lost,) = tracker.expire(10.0 + ADRIFT_SECONDS)
    assert isinstance(lost, Lost) and tracker.running("uid") == 1
    tracker.expire(99.0)
    assert tracker.running("uid") == 1
    tracker.expire(100.0)
    assert tracker.running("uid") == 0


def test_what_a_gateway_before_this_one_began_counts_until_it_ends() -> None:
    tracker = make()
    connect(tracker, fleet_of(tracker), "a", Underway(["7", "8", "9"], ["d", "d", "of nothing"]))
    assert tracker.running("uid") == 2
    assert tracker.is_stray("7") and not tracker.is_stray("9")
    assert tracker.receive("a", InvocationAnswer("7", b""), 0) == [
        LateResult("a", InvocationAnswer("7", b"")),
        SendAck("a", "7"),
    ]
    assert tracker.running("uid") == 1 and not tracker.is_stray("7")
    connect(tracker, fleet_of(tracker), "a", Underway())
    assert tracker.running("uid") == 0


def test_what_another_gateway_began_that_is_away_counts_and_nothing_of_this_one_s_is_lost_by_that() -> None:
    tracker = make("a")
    tracker.begin(fly("1", "a"))
    assert tracker.receive("a", Adrift(["7", "1"], ["d", "d"]), 0) == []
    assert tracker.running("uid") == 2 and tracker.is_stray("7") and "1" in tracker
    tracker.receive("a", InvocationAnswer("7", b""), 0)
    assert tracker.running("uid") == 1 and not tracker.is_stray("7")


@pytest.mark.parametrize("seed", mark_seeds(150))
def test_whatever_happens_nothing_runs_twice_and_every_caller_hears_of_one_end(seed: int) -> None:
    draw = random.Random(seed)
    nodes = ["a", "b", "c"]
    tracker, now = make(*nodes), 0.0
    fleet = fleet_of(tracker)
    there = set(nodes)
    sent: dict[str, list[tuple[str, str]]] = {node: [] for node in nodes}  # on its way to the node: word and id
    has: dict[str, set[str]] = {node: set() for node in nodes}  # begun and not thanked for
    unsaid: dict[str, list[str]] = {node: [] for node in nodes}  # answers that were given while nobody listened
    begun: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    open_ = 0

    def act(instructions: list[Instruction]) -> None:
        for one in instructions:
            match one:
                case SendInvoke(node=node, pending=pending):
                    assert node in there
                    sent[node].append(("invoke", pending.id))
                case SendAck(node=node, id=id):
                    sent[node].append(("heard", id))
                case Done() | NoNode() | Lost():
                    ends[one.pending.id] += 1

    for step in range(400):
        now += draw.random()
        node = draw.choice(nodes)
        match draw.choice(
            ["begin", "begin", "deliver", "deliver", "deliver", "answer", "answer", "lose", "kill", "back", "time"]
        ):
            case "begin":
                open_ += 1
                act(tracker.begin(fly(f"{step}", *draw.sample(nodes, 3), until=now + 60)))
            case "deliver" if sent[node] and node in there:
                word, id = sent[node].pop(0)
                if word == "heard":
                    has[node].discard(id)
                elif draw.random() < 0.3:
                    act(tracker.receive(node, InvocationRefused(id, "full", ""), now))
                else:
                    begun[id] += 1
                    has[node].add(id)
            case "answer" if has[node]:
                id = draw.choice(sorted(has[node]))
                if node in there:
                    for _ in range(draw.choice([1, 1, 2])):
                        act(tracker.receive(node, InvocationAnswer(id, b""), now))
                else:
                    unsaid[node].append(id)
            case "lose" if node in there:
                there.discard(node)
                sent[node].clear()
                tracker.disconnect(node, now)
            case "kill" if draw.random() < 0.3:
                has[node].clear()
                unsaid[node].clear()
                sent[node].clear()
                if node in there:
                    tracker.disconnect(node, now)
                there.discard(node)
            case "back" if node not in there:
                there.add(node)
                ids = sorted(has[node])
                act(connect(tracker, fleet, node, Underway(ids, ["d"] * len(ids)), now))
                for id in unsaid[node]:
                    act(tracker.receive(node, InvocationAnswer(id, b""), now))
                unsaid[node].clear()
            case "time":
                now += draw.choice([0, 5, 40])
                act(tracker.expire(now))
        assert tracker.running("uid") >= open_ - sum(ends.values())  # never too few
        assert tracker.running_in("p") == tracker.running("uid")
        assert max(begun.values(), default=0) <= 1
        assert max(ends.values(), default=0) <= 1
    for node in nodes:
        if node not in there:
            act(connect(tracker, fleet, node, Underway(), now))
    now += 1000
    act(tracker.expire(now))
    act(tracker.expire(now))
    assert sum(ends.values()) == open_ and tracker.running("uid") == tracker.running_in("p") == 0 and len(tracker) == 0
    for serving in fleet.nodes.values():
        assert not +serving.asked
