"""Clients that ask servers for ever, and for how long one of them had no answer."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from tests.history.clients import Told

from weft.client.answer import raise_problem
from weft.client.api import Client
from weft.client.context import Context
from weft.objects.errors import WeftError
from weft.objects.identity import new_uid

PROJECT = "shop"
BUDGETS = f"/v1/projects/{PROJECT}/disruptionbudgets"


def create_objects(client: Client, count: int) -> None:
    """What ``write`` and ``read`` of so many clients ask for."""
    client.create({"kind": "project", "name": PROJECT, "spec": {}})
    client.project = PROJECT
    for number in range(count):
        spec = {"selector": {"app": "none"}, "max_unavailable": 1}
        client.create({"kind": "disruptionbudget", "name": f"r{number}", "spec": spec})


class Load(threading.Thread):
    """One client that asks for ever; ``at`` are the times of its answers."""

    def __init__(self, context: Context, number: int, ask: Callable[[Load], None]) -> None:
        super().__init__(daemon=True)
        self.client = Client(context, timeout_seconds=2.0, patience_seconds=60.0)
        self.number, self.at, self.told = number, list[float](), list[Told]()
        self._ask, self.over = ask, threading.Event()
        self.refused = Counter[str]()  # reasons

    def run(self) -> None:
        while not self.over.is_set():
            try:
                self._ask(self)
                self.at.append(time.monotonic())
            except WeftError as problem:
                self.refused[problem.reason] += 1
                time.sleep(0.05)

    def end(self) -> None:
        self.over.set()
        self.join()
        self.client.close()


def write(load: Load) -> None:
    mark = new_uid()
    try:
        answer = load.client.http.request(
            "PATCH", f"{BUDGETS}/r{load.number}", {"labels": {"by": mark}}, headers={"Idempotency-Key": mark}
        )
        raise_problem(answer)
    except WeftError:
        load.told.append(Told(mark, None))
        raise
    load.told.append(Told(mark, done=True))


def read(load: Load) -> None:
    raise_problem(load.client.http.request("GET", f"{BUDGETS}/r{load.number}"))


def find_gap(loads: list[Load], begins_at: float, ends_at: float) -> float:
    """The longest time that one of the clients was without an answer."""
    longest = 0.0
    for load in loads:
        times = [at for at in list(load.at) if begins_at <= at <= ends_at]
        gaps = [later - earlier for earlier, later in zip([begins_at, *times], [*times, ends_at], strict=True)]
        longest = max(longest, *gaps)
    return longest
