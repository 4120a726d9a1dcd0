"""Invocations under way: at most one execution each, exact concurrency, and every caller hears of an end, whatever happens."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest

from weft.contracts.driver.function import Recipe
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
from weft.protocol.invocations import Answer, Count, InstanceState, Invoke, Refused, Underway

RECIPE = Recipe(digest="d", function="uid", project="p", name="hello", memory=100)
OPEN = InstanceState(free_memory=1000, isolations={"process": ""}, recipes=["d"])


def make(*nodes: str) -> InvocationTracker:
    fleet = Fleet()
    desk = InvocationTracker(fleet, lambda digest: ("uid", 3.0) if digest == "d" else None)
    for node in nodes:
        connect(desk, fleet, node)
    desk.fleet = fleet  # type: ignore[attr-defined]
    return desk


def connect(
    desk: InvocationTracker, fleet: Fleet, node: str, underway: Underway | None = None, now: float = 0.0
) -> list[Instruction]:
    desk.connect(node)
    found = desk.hear(node, underway or Underway(), now)
    fleet.stand(node, OPEN)
    return found


def fly(id: str, *nodes: str, until: float = 100.0) -> PendingInvocation:
    return PendingInvocation(
        RECIPE, Invoke(id, "d", b"", 3.0), {node: place for place, node in enumerate(nodes)}, until
    )


def fleet_of(desk: InvocationTracker) -> Fleet:
    fleet: Fleet = desk.fleet  # type: ignore[attr-defined]
    return fleet


def test_it_is_asked_of_the_best_and_of_the_next_only_after_a_refusal() -> None:
    desk = make("a", "b")
    first = fly("1", "b", "a")
    assert desk.begin(first) == [SendInvoke("b", first)]
    assert desk.hear("a", Refused("1", "insufficientResources", ""), 0) == []  # it wasn't asked
    assert desk.hear("b", Refused("1", "insufficientResources", ""), 0) == [SendInvoke("a", first)]
    assert desk.hear("a", Refused("1", "closing", ""), 0) == [NoNode(first)]
    assert [*first.refusals] == ["b", "a"] and desk.running("uid") == 0


def test_a_warm_instance_goes_before_a_better_node_and_one_ready_before_none() -> None:
    desk = make("a", "b", "c")
    fleet = fleet_of(desk)
    fleet.stand("c", InstanceState({"d": Count(idle=1)}, 0, 1000, {"process": ""}))
    fleet.stand("b", InstanceState({"d": Count(ready=1)}, 0, 1000, {"process": ""}))
    asked = [desk.begin(fly(str(n), "a", "b", "c"))[0] for n in range(2)]
    assert [ask.node for ask in asked if isinstance(ask, SendInvoke)] == ["c", "b"]  # c's only one is taken
    desk.hear("c", Answer("0", b""), 0)
    ask = desk.begin(fly("2", "a", "b", "c"))[0]
    assert isinstance(ask, SendInvoke) and ask.node == "c" and not ask.flight.cold


def test_a_machine_is_copied_where_it_is_prepared_before_it_is_booted_on_a_better_node() -> None:
    desk = make("a", "b", "c")
    fleet, boxed = fleet_of(desk), msgspec.structs.replace(RECIPE, isolation="vm")
    for node, room, recipes in (("a", 1000, []), ("b", 50, ["d"]), ("c", 1000, ["d"])):
        fleet.stand(node, InstanceState(free_memory=room, isolations={"vm": "", "process": ""}, recipes=recipes))
    places = {"a": 0, "b": 1, "c": 2}
    assert fleet.choose(boxed, places, ()) == "c"
    assert fleet.choose(boxed, places, ("c",)) == "a"  # b has no room
    assert fleet.choose(RECIPE, places, ()) == "a"  # anything else is up at once wherever it is


def test_a_node_that_seems_full_or_cannot_is_asked_last_or_not_at_all() -> None:
    desk = make("a", "b", "c")
    fleet = fleet_of(desk)
    fleet.stand("a", InstanceState({}, 0, 10, {"process": ""}))
    fleet.stand("b", InstanceState({}, 0, 1000, {"process": "no bubblewrap"}))
    flight = fly("1", "a", "b", "c")
    assert desk.begin(flight) == [SendInvoke("c", flight)]
    assert desk.hear("c", Refused("1", "x", ""), 0) == [SendInvoke("a", flight)]
    assert desk.hear("a", Refused("1", "x", ""), 0) == [NoNode(flight)]


def test_no_more_than_so_many_nodes_are_asked() -> None:
    nodes = [f"n{n:02}" for n in range(MOST_ASKED + 4)]
    desk = make(*nodes)
    flight, asked = fly("1", *nodes), 1
    found = desk.begin(flight)
    while isinstance(found[0], SendInvoke):
        found = desk.hear(found[0].node, Refused("1", "full", ""), 0)
        asked += isinstance(found[0], SendInvoke)
    assert asked == MOST_ASKED


def test_where_code_must_come_first_more_time_is_given() -> None:
    desk = make("a")
    fleet_of(desk).stand("a", InstanceState({}, 0, 1000, {"process": ""}))
    flight = fly("1", "a", until=10.0)
    desk.begin(flight)
    assert flight.until == 10.0 + FETCH_SECONDS and not desk.expire(100.0)


def test_a_second_answer_is_only_thanked_for() -> None:
    desk = make("a")
    flight = fly("1", "a")
    desk.begin(flight)
    answer = Answer("1", b"x")
    assert desk.hear("a", answer, 0) == [Done(flight, answer), SendAck("a", "1", 1)]
    assert desk.hear("a", answer, 0) == [LateResult("a", answer), SendAck("a", "1", 1)]


def test_a_lost_connection_is_waited_for_and_then_given_up_but_counts_while_it_may_run() -> None:
    desk = make("a")
    flight = fly("1", "a")
    desk.begin(flight)
    desk.disconnect("a", 10.0)
    assert desk.expire(10.0 + ADRIFT_SECONDS - 1) == []
    (lost,) = desk.expire(10.0 + ADRIFT_SECONDS)
    assert isinstance(lost, Lost) and desk.running("uid") == 1
    desk.expire(99.0)
    assert desk.running("uid") == 1
    desk.expire(100.0)
    assert desk.running("uid") == 0


def test_what_a_gateway_before_this_one_began_counts_until_it_ends() -> None:
    desk = make()
    connect(desk, fleet_of(desk), "a", Underway(["7", "8", "9"], ["d", "d", "of nothing"]))
    assert desk.running("uid") == 2
    assert desk.is_stray("7") and not desk.is_stray("9")
    assert desk.hear("a", Answer("7", b""), 0) == [LateResult("a", Answer("7", b"")), SendAck("a", "7")]
    assert desk.running("uid") == 1 and not desk.is_stray("7")
    connect(desk, fleet_of(desk), "a", Underway())
    assert desk.running("uid") == 0


@pytest.mark.parametrize("seed", range(150))
def test_whatever_happens_nothing_runs_twice_and_every_caller_hears_of_one_end(seed: int) -> None:
    draw = random.Random(seed)
    nodes = ["a", "b", "c"]
    desk, now = make(*nodes), 0.0
    fleet = fleet_of(desk)
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
                case SendInvoke(node=node, flight=flight):
                    assert node in there
                    sent[node].append(("invoke", flight.id))
                case SendAck(node=node, id=id):
                    sent[node].append(("heard", id))
                case Done() | NoNode() | Lost():
                    ends[one.flight.id] += 1

    for step in range(400):
        now += draw.random()
        node = draw.choice(nodes)
        match draw.choice(
            ["begin", "begin", "deliver", "deliver", "deliver", "answer", "answer", "lose", "kill", "back", "time"]
        ):
            case "begin":
                open_ += 1
                act(desk.begin(fly(f"{step}", *draw.sample(nodes, 3), until=now + 60)))
            case "deliver" if sent[node] and node in there:
                word, id = sent[node].pop(0)
                if word == "heard":
                    has[node].discard(id)
                elif draw.random() < 0.3:
                    act(desk.hear(node, Refused(id, "full", ""), now))
                else:
                    begun[id] += 1
                    has[node].add(id)
            case "answer" if has[node]:
                id = draw.choice(sorted(has[node]))
                if node in there:
                    for _ in range(draw.choice([1, 1, 2])):
                        act(desk.hear(node, Answer(id, b""), now))
                else:
                    unsaid[node].append(id)
            case "lose" if node in there:
                there.discard(node)
                sent[node].clear()
                desk.disconnect(node, now)
            case "kill" if draw.random() < 0.3:
                has[node].clear()
                unsaid[node].clear()
                sent[node].clear()
                if node in there:
                    desk.disconnect(node, now)
                there.discard(node)
            case "back" if node not in there:
                there.add(node)
                ids = sorted(has[node])
                act(connect(desk, fleet, node, Underway(ids, ["d"] * len(ids)), now))
                for id in unsaid[node]:
                    act(desk.hear(node, Answer(id, b""), now))
                unsaid[node].clear()
            case "time":
                now += draw.choice([0, 5, 40])
                act(desk.expire(now))
        assert desk.running("uid") >= open_ - sum(ends.values())  # never too few
        assert max(begun.values(), default=0) <= 1
        assert max(ends.values(), default=0) <= 1
    for node in nodes:
        if node not in there:
            act(connect(desk, fleet, node, Underway(), now))
    now += 1000
    act(desk.expire(now))
    act(desk.expire(now))
    assert sum(ends.values()) == open_ and desk.running("uid") == 0 and len(desk) == 0
    for serving in fleet.nodes.values():
        assert not +serving.asked
