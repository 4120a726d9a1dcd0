"""Messages of devices that invoke functions: which, and those that wait to be handed over. Pure; times are passed in.

A queue in memory: what waits is lost with the process, and while the server is away no more than its bound is kept. What came
last is dropped then, and counted. What the functions' gateway has accepted runs at least once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from weft.protocol.devices import MOST_MESSAGE_BYTES, MOST_MESSAGES, MOST_TRIGGERED, DeviceMessage, Value

MOST_WAITING = 1_000  # messages of all functions
MOST_OF_FUNCTION = 500
_ANY = "+"


class _Waiting(msgspec.Struct):
    messages: deque[DeviceMessage] = msgspec.field(default_factory=deque)
    dropped: int = 0  # that nobody was told of yet


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
            too_many = self.count >= MOST_WAITING or len(waiting.messages) >= MOST_OF_FUNCTION
            if too_many or len(msgspec.json.encode(message)) > MOST_MESSAGE_BYTES:
                waiting.dropped += 1
                self.dropped += 1
                continue
            waiting.messages.append(message)
            self.count += 1

    def take(self) -> tuple[str, list[DeviceMessage], int] | None:
        """The function whose turn it is, its oldest messages, MOST_MESSAGES at most, and how many were dropped; they wait until
        ``settle``. None: nothing waits."""
        for function, waiting in self._waiting.items():
            if waiting.messages or waiting.dropped:
                return function, [*waiting.messages][:MOST_MESSAGES], waiting.dropped
        return None

    def settle(self, function: str, messages: Sequence[DeviceMessage], dropped: int) -> None:
        """These have been handed over, or nobody takes them; the next function has its turn."""
        waiting = self._waiting.pop(function, None)
        if waiting is None:
            return
        gone = {one.id for one in messages}
        waiting.messages = deque(one for one in waiting.messages if one.id not in gone)
        waiting.dropped -= dropped
        self._waiting[function] = waiting
        self.count = sum(len(one.messages) for one in self._waiting.values())

    def give_turn(self, function: str) -> None:
        """It couldn't be done: the next function has its turn."""
        waiting = self._waiting.pop(function, None)
        if waiting is not None:
            self._waiting[function] = waiting
