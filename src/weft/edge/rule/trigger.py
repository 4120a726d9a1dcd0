"""Messages of devices that invoke functions: which, and those that wait to be handed over. Pure; times are passed in.

A queue in memory: what waits is lost with the process, and while the server is away no more than its bound is kept. Of the
device with most, what came last is dropped then, and counted: one that floods takes no other's place. What the functions'
gateway has accepted runs at least once.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from weft.protocol.devices import MOST_MESSAGE_BYTES, MOST_MESSAGES, MOST_TRIGGERED, DeviceMessage, Value

MOST_WAITING = 1_000  # messages of all functions
MOST_OF_FUNCTION = 500
MOST_OF_DEVICE = 250  # for one function
_ANY = "+"


class _Waiting(msgspec.Struct):
    messages: deque[DeviceMessage] = msgspec.field(default_factory=deque)
    by_device: Counter[str] = msgspec.field(default_factory=Counter)
    dropped: int = 0  # that nobody was told of yet
    too_large: int = 0  # of them

    def drop_last(self, device: str) -> None:
        at = max(at for at, one in enumerate(self.messages) if one.device == device)
        del self.messages[at]
        self.by_device[device] -= 1
        self.dropped += 1


class TriggerQueue:
    """``make_id`` draws a UUID."""

    def __init__(self, make_id: Callable[[], str]) -> None:
        self._make_id = make_id
        self._project = ""
        self._events: dict[str, set[str]] = {}  # functions by device, or "+"
        self._values: dict[tuple[str, str], set[str]] = {}  # by device and property, either of them "+"
        self._waiting: dict[str, _Waiting] = {}
        self.count = 0
        self.dropped = 0  # since the start

    def put_topics(self, project: str, topics: Mapping[str, Sequence[str]]) -> None:
        """These topics of ``project`` invoke functions now, by the function's name; what waits for others is forgotten."""
        events, values = dict[str, set[str]](), dict[tuple[str, str], set[str]]()
        known = set[str]()
        for function, texts in list(topics.items())[:MOST_TRIGGERED]:
            for text in texts:
                match text.split("/"):
                    case ["weft", of, device, "event"] if of == project:
                        events.setdefault(device, set()).add(function)
                    case ["weft", of, device, "reported", name] if of == project:
                        values.setdefault((device, name), set()).add(function)
                    case _:
                        continue
                known.add(function)
        if project != self._project:
            known, self._project = set(known), project
            self._waiting.clear()
        self._events, self._values = events, values
        self._waiting = {function: one for function, one in self._waiting.items() if function in known}
        self.count = sum(len(one.messages) for one in self._waiting.values())

    @property
    def watches_values(self) -> bool:
        return bool(self._values)

    def note_event(self, project: str, device: str, data: Mapping[str, Value], now: float) -> None:
        """``now``: unix seconds by the server's clock."""
        if self._events and project == self._project:
            functions = self._events.get(device, set()) | self._events.get(_ANY, set())
            self._put(functions, device, f"weft/{project}/{device}/event", data, now)

    def note_values(self, project: str, device: str, values: Mapping[str, Value], now: float) -> None:
        """These values changed."""
        if not self._values or project != self._project:
            return
        for name, value in values.items():
            functions = set[str]()
            for key in ((device, name), (device, _ANY), (_ANY, name), (_ANY, _ANY)):
                functions |= self._values.get(key, set())
            self._put(functions, device, f"weft/{project}/{device}/reported/{name}", {name: value}, now)

    def _put(self, functions: set[str], device: str, topic: str, data: Mapping[str, Value], now: float) -> None:
        for function in sorted(functions):
            waiting = self._waiting.setdefault(function, _Waiting())
            message = DeviceMessage(self._make_id(), topic, self._project, device, now, dict(data))
            is_too_large = len(msgspec.json.encode(message)) > MOST_MESSAGE_BYTES
            if is_too_large or not self._make_place(waiting, device):
                waiting.dropped += 1
                waiting.too_large += is_too_large
                self.dropped += 1
                continue
            waiting.messages.append(message)
            waiting.by_device[device] += 1
            self.count += 1

    def _make_place(self, waiting: _Waiting, device: str) -> bool:
        """Whether one more of ``device`` has a place, if need be in place of the last of a device with more."""
        mine = waiting.by_device[device]
        if mine >= MOST_OF_DEVICE:
            return False
        if len(waiting.messages) >= MOST_OF_FUNCTION:
            rivals = [waiting]
        elif self.count >= MOST_WAITING:
            rivals = list(self._waiting.values())
        else:
            return True
        most, loudest, rival = max(
            ((count, name, one) for one in rivals for name, count in one.by_device.items()), key=lambda one: one[0]
        )
        if most <= mine + 1:
            return False
        rival.drop_last(loudest)
        self.dropped += 1
        self.count -= 1
        return True

    def take(self) -> tuple[str, list[DeviceMessage], int, int] | None:
        """The function whose turn it is, its oldest messages, MOST_MESSAGES at most, how many were dropped, and how many of these
        were too large; they wait until ``settle`` and ``settle_dropped``. None: nothing waits."""
        for function, waiting in self._waiting.items():
            if waiting.messages or waiting.dropped:
                return function, [*waiting.messages][:MOST_MESSAGES], waiting.dropped, waiting.too_large
        return None

    def settle_dropped(self, function: str, dropped: int, too_large: int) -> None:
        """People have been told of so many."""
        if (waiting := self._waiting.get(function)) is not None:
            waiting.dropped = max(0, waiting.dropped - dropped)
            waiting.too_large = max(0, waiting.too_large - too_large)

    def settle(self, function: str, messages: Sequence[DeviceMessage]) -> None:
        """These have been handed over, or nobody takes them; the next function has its turn."""
        waiting = self._waiting.pop(function, None)
        if waiting is None:
            return
        gone = {one.id for one in messages}
        waiting.messages = deque(one for one in waiting.messages if one.id not in gone)
        waiting.by_device = Counter(one.device for one in waiting.messages)
        self._waiting[function] = waiting
        self.count = sum(len(one.messages) for one in self._waiting.values())

    def give_turn(self, function: str) -> None:
        """It couldn't be done: the next function has its turn."""
        waiting = self._waiting.pop(function, None)
        if waiting is not None:
            self._waiting[function] = waiting
