"""A checker of histories: is there an order of all operations, each at one moment between its request and its answer, in which each
gave what it had to give? Then the object is linearizable.

The search is Wing and Gong's ("Testing and Verifying Concurrent Objects", 1993) with Lowe's memory of what was tried ("Testing for
Linearizability", 2017), as in Porcupine; by Herlihy and Wing each object is searched alone. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

ANY = "any value"  # what an operation doesn't care about


class Operation(NamedTuple):
    """One request about the object ``key``. It is possible while the object's value ``is_`` this and ``is_not`` that, and leaves
    ``makes`` there (ANY: what was there). Without an ``end`` nobody knows whether it was done, or will be."""

    client: str
    key: str
    what: str  # in words
    begin: float
    end: float = math.inf
    is_: Hashable = ANY
    is_not: Hashable = ANY
    makes: Hashable = ANY

    def apply(self, value: Hashable) -> tuple[Hashable] | None:
        """The value after it; None if it isn't possible."""
        if self.is_ not in (ANY, value) or (self.is_not != ANY and self.is_not == value):
            return None
        return (value if self.makes == ANY else self.makes,)


class _Event:
    """A request or, without ``operation``, an answer, in a list of those whose operation has no place in the order yet."""

    __slots__ = ("after", "answer", "before", "number", "operation")

    def __init__(self, number: int, operation: Operation | None) -> None:
        self.number, self.operation = number, operation
        self.answer: _Event | None = None
        self.before: _Event | None = None
        self.after: _Event | None = None

    def take_out(self) -> None:
        for event in (self, self.answer):
            if event is not None:
                assert event.before is not None
                event.before.after = event.after
                if event.after is not None:
                    event.after.before = event.before

    def put_back(self) -> None:
        for event in (self.answer, self):
            if event is not None:
                assert event.before is not None
                event.before.after = event
                if event.after is not None:
                    event.after.before = event


def is_linearizable(operations: Sequence[Operation], first: Hashable = None) -> bool:
    """Whether the operations, all of one object, have an order; ``first`` is its value before. Values are made once each."""
    seen = {one.is_ for one in operations}
    useful = [one for one in operations if one.end < math.inf or one.makes in seen]
    if _has_order(useful, first):
        return True
    # What nobody heard of and nobody saw explains no more than that another value was there; each may be at any place, so that
    # trying all would take for ever.
    begins = min((one.begin for one in operations if one.end == math.inf and one.makes not in seen), default=math.inf)
    return begins < math.inf and _has_order(
        [one._replace(is_not=ANY) if one.end > begins else one for one in useful], first
    )


def _has_order(operations: Sequence[Operation], first: Hashable) -> bool:
    head = _list_events(operations)
    waiting = sum(1 for one in operations if one.end < math.inf)  # operations that must have a place
    value, done = first, 0
    tried: set[tuple[int, Hashable]] = set()
    placed: list[tuple[_Event, Hashable]] = []
    event = head.after
    while waiting:
        assert event is not None
        if event.operation is not None:
            then = event.operation.apply(value)
            reached = done | 1 << event.number
            if then is not None and (reached, then[0]) not in tried:
                tried.add((reached, then[0]))
                placed.append((event, value))
                value, done = then[0], reached
                waiting -= event.answer is not None
                event.take_out()
                event = head.after
            else:
                event = event.after
        elif placed:
            event, value = placed.pop()
            done ^= 1 << event.number
            waiting += event.answer is not None
            event.put_back()
            event = event.after
        else:
            return False
    return True


def _list_events(operations: Sequence[Operation]) -> _Event:
    """The head of all requests and answers, in time; of one moment requests come first."""
    timed: list[tuple[float, int, int, _Event]] = []
    for number, one in enumerate(operations):
        request = _Event(number, one)
        timed.append((one.begin, 0, number, request))
        if one.end < math.inf:
            request.answer = _Event(number, None)
            timed.append((one.end, 1, number, request.answer))
    head = last = _Event(-1, None)
    for *_, event in sorted(timed, key=lambda each: each[:3]):
        last.after, event.before = event, last
        last = event
    return head


def find_broken(operations: Iterable[Operation], first: Hashable = None) -> list[list[Operation]]:
    """Of each object whose operations have no order, the fewest that have none."""
    by_key: dict[str, list[Operation]] = {}
    for one in operations:
        by_key.setdefault(one.key, []).append(one)
    return [find_smallest(some, first) for some in by_key.values() if not is_linearizable(some, first)]


def find_smallest(operations: Sequence[Operation], first: Hashable = None) -> list[Operation]:
    """Few operations of a history without an order that have none either: those up to the first answer that can't be, without
    those that explain nothing. What made a value that another one met stays."""
    ends = sorted(one.end for one in operations if one.end < math.inf)
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if is_linearizable(_until(operations, ends[middle]), first):
            low = middle + 1
        else:
            high = middle
    left = _leave_out(sorted(_until(operations, ends[high]), key=lambda one: one.begin), first)
    for at, one in enumerate(left):  # a swap that matters by what it made only is a write
        less = [*left[:at], one._replace(is_=ANY), *left[at + 1 :]]
        if one.makes != ANY and not is_linearizable(less, first):
            left = less
    return _leave_out(left, first)


def _leave_out(left: list[Operation], first: Hashable) -> list[Operation]:
    """Those of ``left`` without which the others had an order."""
    size = max(1, len(left) // 2)
    while size:
        at = 0
        while at < len(left):
            less = left[:at] + left[at + size :]
            if _is_of_no_use(left[at : at + size], less) and not is_linearizable(less, first):
                left = less
            else:
                at += size
        size //= 2
    return left


def _until(operations: Sequence[Operation], moment: float) -> list[Operation]:
    """What was known at this moment."""
    return [one if one.end <= moment else one._replace(end=math.inf) for one in operations if one.begin <= moment]


def _is_of_no_use(some: Sequence[Operation], others: Sequence[Operation]) -> bool:
    """Whether nothing that ``some`` made could be what one of the others met."""
    seen = {one.is_ for one in others}
    absent = {one.is_not for one in others} - {ANY}
    return all(one.makes == ANY or (one.makes not in seen and absent <= {one.makes}) for one in some)
