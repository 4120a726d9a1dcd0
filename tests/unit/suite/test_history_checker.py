"""The checker of histories: it accepts what is in order and nothing else, and shows the few operations that aren't."""

from __future__ import annotations

import itertools
import math
import random

import msgspec
import pytest
from tests.history.checker import ANY, Operation, find_broken, find_smallest, is_linearizable
from tests.history.clients import Told
from tests.history.store_log import find_wrong_commits

from weft.contracts.store import Batch, Change
from weft.objects.envelope import Envelope, encode_envelope


def op(begin: float, end: float = math.inf, **more: object) -> Operation:
    return Operation("c", "k", "", begin, end, **more)  # type: ignore[arg-type]


def read(begin: float, end: float, value: object) -> Operation:
    return op(begin, end, is_=value)


def write(begin: float, end: float, value: object) -> Operation:
    return op(begin, end, makes=value)


def create(begin: float, end: float, uid: str) -> Operation:
    return op(begin, end, is_=None, makes=uid)


GOOD = {
    "one after the other": [write(0, 1, 1), read(2, 3, 1), write(4, 5, 2), read(6, 7, 2)],
    "a read beside a write sees either": [write(0, 1, 1), write(2, 6, 2), read(3, 4, 1), read(5, 7, 2)],
    "nobody heard of a write that was done": [write(0, 1, 1), write(2, math.inf, 2), read(3, 4, 1), read(5, 6, 2)],
    "nobody heard of a write that wasn't": [write(0, 1, 1), write(2, math.inf, 2), read(9, 10, 1)],
    "one of two swaps": [write(0, 1, 1), op(2, 5, is_=1, makes=2), op(2, 5, is_not=1), read(6, 7, 2)],
    "a name that was free again": [create(0, 1, "a"), op(2, 3, is_="a", makes=None), create(4, 5, "b")],
    "a name that was taken": [create(0, 3, "a"), op(1, 4, is_not=None)],
}
BAD = {
    "a read of what was before": [write(0, 1, 1), write(2, 3, 2), read(4, 5, 1)],
    "a lost write": [write(0, 1, 1), read(2, 3, None)],
    "a value that comes back": [write(0, 1, 1), write(2, 9, 2), read(3, 4, 2), read(5, 6, 1)],
    "a write that nobody heard of and that comes back": [write(0, 1, 1), op(2, makes=2), read(3, 4, 2), read(5, 6, 1)],
    "two swaps of one value": [write(0, 1, 1), op(2, 5, is_=1, makes=2), op(2, 5, is_=1, makes=3)],
    "a name that is given twice": [create(0, 3, "a"), create(1, 4, "b")],
    "a free name that is taken": [op(0, 1, is_not=None)],
    "a read before its write": [read(0, 1, 1), write(2, 3, 1)],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_in_order_is_accepted(name: str) -> None:
    assert is_linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_what_is_in_no_order_is_found_out(name: str) -> None:
    assert not is_linearizable(BAD[name])
    assert find_broken(BAD[name]) == [find_smallest(BAD[name])]


def draw_history(draw: random.Random, clients: int, each: int) -> list[Operation]:
    """What a register gives that does each operation at some moment between its request and its answer."""
    planned = []
    for client in range(clients):
        now = draw.random()
        for _ in range(each):
            begin = now
            moment = begin + draw.random() * 3
            now = moment + draw.random() * 3
            planned.append((moment, begin, now, client))
    value: object = None
    out, numbers = [], itertools.count(1)
    for _, begin, end, client in sorted(planned):
        what = draw.choices(("read", "write", "swap", "miss", "unheard"), (6, 4, 4, 4, 1))[0]
        made = next(numbers)
        if what == "read":
            given = {"is_": value}
        elif what == "miss" and value is not None:
            given = {"is_not": made}
        elif what == "swap":
            given, value = {"is_": value, "makes": made}, made
        else:
            given, value = {"makes": made}, made
        end = math.inf if what == "unheard" else end
        out.append(Operation(str(client), "k", what, begin, end, **given))  # type: ignore[arg-type]
    return out


def is_in_order(operations: list[Operation]) -> bool:
    """Tried with all orders."""
    known = [one for one in operations if one.end < math.inf]
    unknown = [one for one in operations if one.end == math.inf]
    for count in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *some]):
                if _is_order(order):
                    return True
    return False


def _is_order(order: tuple[Operation, ...]) -> bool:
    value: object = None
    for at, one in enumerate(order):
        if any(later.end < one.begin for later in order[at + 1 :]):
            return False
        then = one.apply(value)  # type: ignore[arg-type]
        if then is None:
            return False
        value = then[0]
    return True


def test_whatever_a_register_gives_is_accepted_also_of_many_clients() -> None:
    for seed in range(20):
        assert is_linearizable(draw_history(random.Random(seed), 6, 60))


def test_it_agrees_with_who_tries_all_orders() -> None:
    found = set()
    for seed in range(300):
        draw = random.Random(seed)
        history = draw_history(draw, 3, 2)
        at = draw.randrange(len(history))
        history[at] = history[at]._replace(is_=draw.choice((ANY, None, 1, 2, 3)), makes=ANY)
        expected = is_in_order(history)
        assert is_linearizable(history) == expected, history
        found.add(expected)
    assert found == {True, False}


def test_of_a_long_history_the_few_operations_are_shown_that_have_no_order() -> None:
    history = draw_history(random.Random(5), 6, 50)
    at = next(at for at in range(200, 300) if history[at].what == "read")
    history[at] = history[at]._replace(is_=next(one.makes for one in history[100:] if one.makes != ANY))
    [smallest] = find_broken(history)
    assert history[at] in smallest and len(smallest) <= 4, smallest


def commit(revision: int, kind: str, name: str, was: str | None, now: str, spec: object) -> Batch:
    def encode(mark: str) -> bytes:
        envelope = Envelope(kind=kind, name=name, uid="u", project="shop", labels={"by": mark})
        envelope.spec = msgspec.Raw(msgspec.json.encode(spec))
        return encode_envelope(envelope)

    change = Change(f"/{kind}/shop/{name}", encode(now), None if was is None else encode(was))
    return Batch(revision, f"e:{revision}", [change])


def budget(revision: int, was: str | None, now: str) -> Batch:
    return commit(revision, "disruptionbudget", "r", was, now, {"selector": {"a": "b"}, "max_unavailable": 1})


LOGS = {
    "": ([budget(1, "first", "a"), budget(2, "a", "b")], [Told("a", True), Told("b", None), Told("c", False)]),
    "the change a was made 2 times": ([budget(1, None, "a"), budget(2, "b", "a")], []),
    "the change c was acknowledged and is lost": ([budget(1, None, "a")], [Told("c", True)]),
    "the change a was refused and made": ([budget(1, None, "a")], [Told("a", False)]),
    "revision 2: project shop has 3 cores of 2": (
        [
            commit(1, "quota", "project", None, "first", {"cpu": 2}),
            commit(2, "vm", "v", None, "a", {"image": "i", "cpu": 3}),
        ],
        [],
    ),
}


@pytest.mark.parametrize("wrong", LOGS)
def test_what_must_not_be_in_the_store_s_log_is_found(wrong: str) -> None:
    assert find_wrong_commits(*LOGS[wrong]) == ([wrong] if wrong else [])
