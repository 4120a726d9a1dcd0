"""Who holds rights for a while: each asks and writes without a pause, and notes whether it is let in."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.soak.department.oracle import Turn, find_possible
from weft.client import Client
from weft.client.connection import ClientRequest
from weft.client.context import Context
from weft.objects.errors import Forbidden, NotAuthenticated, Unavailable, WeftError

EVERY_SECONDS = 0.2
WRITES_EVERY = 5  # of its requests one writes
SILENT_SECONDS = 10.0
STREAM_SECONDS = 1.0  # that a line of a stream may be on its way to a busy reader
LATE_STREAM_SECONDS = 5.0


class Bearer:
    """One that has credentials, and in ``project`` now rights, now none. Each request is judged when it is answered. ``turns``:
    what was given to it before."""

    def __init__(self, name: str, context: Context, project: str, turns: Iterable[Turn] = ()) -> None:
        self.name, self.project = name, project
        self.client = Client(context, project=project, timeout_seconds=SILENT_SECONDS)
        self.client.http.on_answer = self._note_answer
        self.turns = list(turns)
        self.tally, self.problems = Counter[str](), list[str]()
        self.made, self.refused = set[str](), set[str]()  # names of what it wrote, and of what it was refused
        self.answered: dict[str, bool] = {}  # request id of a write → whether it was allowed
        self._over, self._last = threading.Event(), ""
        self._streams, self.streams = Client(context, project=project), False
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._ask_on, self._watch_on)]
        for thread in self._threads:
            thread.start()

    def turn(self, allowed: bool, change: Callable[[], Any]) -> None:
        """Give or take its rights."""
        begun, place = time.monotonic(), len(self.turns)
        self.turns.append(Turn(begun, float("inf"), allowed))
        change()
        self.turns[place] = Turn(begun, time.monotonic(), allowed)

    @property
    def allowed(self) -> bool:
        return bool(self.turns) and self.turns[-1].allowed

    def close(self) -> None:
        self._over.set()
        self._streams.close()
        for thread in self._threads:
            thread.join()
        self.client.close()  # what it asked last is answered: nothing is written any more

    def find_wrong(self, existing: set[str], made: set[str], refused: set[str]) -> list[str]:
        """What it made that isn't there, and what is there of what it was refused."""
        found = list(self.problems)
        if self.streams and not self.allowed and time.monotonic() > self.turns[-1].answered + LATE_STREAM_SECONDS:
            found.append(f"{self.name}: its stream is open, turns {self.turns}")
        found += [f"{self.name}: {name} was acknowledged, and is lost" for name in sorted(made - existing)]
        found += [f"{self.name}: {name} was refused, and is there" for name in sorted(refused & existing)]
        return found

    def _note_answer(self, request: ClientRequest, status: int, headers: Mapping[str, str], seconds: float) -> None:
        self._last = headers.get("x-request-id", "")

    def _ask_on(self) -> None:
        number = 0
        while not self._over.wait(EVERY_SECONDS):
            number += 1
            if number % WRITES_EVERY:
                self._judge("read", lambda: self.client.list("constraint"))
                continue
            name = f"{self.name}-{number}"
            spec = {"expression": "memory >= 1GB"}
            outcome = self._judge("write", lambda name=name, spec=spec: self._write(name, spec))
            if outcome in (True, False):
                (self.made if outcome else self.refused).add(name)
                self.answered[self._last] = bool(outcome)

    def _write(self, name: str, spec: dict[str, str]) -> None:
        self.client.create({"kind": "constraint", "name": name, "project": self.project, "spec": spec})

    def _judge(self, what: str, ask: Callable[[], Any]) -> bool | None:
        """Whether it was allowed; None if nobody answered."""
        began, problem = time.monotonic(), ""
        try:
            ask()
            allowed = True
        except (Forbidden, NotAuthenticated) as refusal:
            allowed, problem = False, str(refusal)
        except Unavailable:
            self.tally["unanswered"] += 1
            return None
        except WeftError as other:
            if not self._over.is_set():
                self.problems.append(f"{self.name}: {what} is answered {other.token}: {other}")
            return None
        ended = time.monotonic()
        if allowed not in find_possible(list(self.turns), began, ended):
            since = [(round(began - turn.answered, 2), turn.allowed) for turn in self.turns]
            self.problems.append(
                f"{self.name}: {what} was {'allowed' if allowed else 'refused'} {problem}, turns {since}"
            )
        self.tally["allowed" if allowed else "refused"] += 1
        return allowed

    def _watch_on(self) -> None:
        """A stream stays open while it has rights, and is closed when they go."""
        while not self._over.wait(EVERY_SECONDS):
            try:
                cursor = self._streams.list("constraint").cursor
                self.streams = True
                for _ in self._streams.watch("constraint", cursor):
                    now = time.monotonic()
                    if True not in find_possible(list(self.turns), now - STREAM_SECONDS, now):
                        self.problems.append(f"{self.name}: its stream goes on, turns {self.turns}")
            except WeftError:
                continue
            finally:
                self.streams = False
