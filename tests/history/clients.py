"""Clients that ask several servers for the same few objects, and write down what they asked, when, and what they were told."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from tests.history.checker import Operation
from weft.client.api import Client
from weft.client.context import Context
from weft.objects.errors import WeftError
from weft.objects.identity import new_uid

PROJECT = "shop"
REGISTERS, NAMES, VMS = 12, 12, 6
FIRST = "first"  # the mark of each register before
BUDGETS, MACHINES = f"/v1/projects/{PROJECT}/disruptionbudgets", f"/v1/projects/{PROJECT}/vms"
QUOTA = f"/v1/projects/{PROJECT}/quotas/project"
SPEC = {"selector": {"app": "none"}, "max_unavailable": 1}
TIMEOUT_SECONDS, PATIENCE_SECONDS = 2.0, 60.0
QUICK_SECONDS = 1.0  # a refusal that took longer may be of the second attempt, and the first still under way


class Answer(NamedTuple):
    status: int  # 0: there was none, it may be done or not
    body: Any
    begin: float
    end: float

    @property
    def done(self) -> bool:
        return 200 <= self.status < 300


class Told(NamedTuple):
    """What became of the change with this mark; ``done`` None: nobody knows."""

    mark: str
    done: bool | None


class Record:
    """What all clients saw."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []  # each thread appends
        self.told: list[Told] = []
        self.asked = 0


class Asker(threading.Thread):
    """One client that asks ``count`` times, now this server and now another one, as shipped clients do."""

    def __init__(self, context: Context, name: str, seed: int, count: int, record: Record) -> None:
        super().__init__(name=name)
        self._draw = random.Random(f"{seed} {name}")
        urls = [context.server, *context.others]
        first = self._draw.randrange(len(urls))
        here = msgspec.structs.replace(context, server=urls[first], others=[url for url in urls if url != urls[first]])
        self._client = Client(here, timeout_seconds=TIMEOUT_SECONDS)
        self._count, self._record = count, record
        self._seen: dict[str, tuple[int, str]] = {}  # revision and mark of registers as they were read last
        self.problem: BaseException | None = None

    def run(self) -> None:
        acts: tuple[Callable[[], None], ...] = (
            self._read, self._write, self._swap, self._create, self._remove, self._look, self._resize, self._limit,
        )  # fmt: skip
        try:
            for _ in range(self._count):
                self._draw.choices(acts, (5, 3, 4, 3, 2, 2, 4, 0.3))[0]()
        except BaseException as problem:
            self.problem = problem
        finally:
            self._client.close()

    # Registers.

    def _read(self) -> None:
        key = f"r{self._draw.randrange(REGISTERS)}"
        answer = self._ask("GET", f"{BUDGETS}/{key}")
        if answer.done:
            mark = answer.body["labels"]["by"]
            self._seen[key] = (answer.body["revision"], mark)
            self._note(key, "read", answer, is_=mark)

    def _write(self) -> None:
        key, mark = f"r{self._draw.randrange(REGISTERS)}", new_uid()
        self._note(key, "write", self._change("PATCH", f"{BUDGETS}/{key}", {"labels": {"by": mark}}, mark), makes=mark)

    def _swap(self) -> None:
        key, mark = f"r{self._draw.randrange(REGISTERS)}", new_uid()
        if key not in self._seen:
            return self._read()
        revision, was = self._seen[key]
        given = {"If-Match": f'"{revision}"'}
        answer = self._change("PATCH", f"{BUDGETS}/{key}", {"labels": {"by": mark}}, mark, given)
        if answer.status == 412:
            self._note_refused(key, "no swap", answer, is_not=was)
        else:
            self._note(key, "swap", answer, is_=was, makes=mark)

    # Names.

    def _create(self) -> None:
        key, mark = f"n{self._draw.randrange(NAMES)}", new_uid()
        body = {"kind": "disruptionbudget", "name": key, "labels": {"by": mark}, "spec": SPEC}
        answer = self._change("POST", BUDGETS, body, mark)
        if answer.status == 409 and answer.body["reason"] == "alreadyExists":
            self._note_refused(key, "taken", answer, is_not=None)
        else:
            self._note(key, "create", answer, is_=None, makes=mark)

    def _remove(self) -> None:
        key = f"n{self._draw.randrange(NAMES)}"
        answer = self._ask("DELETE", f"{BUDGETS}/{key}", None, {"Idempotency-Key": new_uid()})
        if answer.status == 404:
            self._note_refused(key, "missing", answer, is_=None)
        elif answer.done and answer.body["uid"]:  # it is gone by now, by this request or by one beside it
            was = answer.body["labels"]["by"]
            self._note(key, "remove", answer._replace(status=0), is_=was, makes=None)
            self._note(key, "gone", answer, is_not=was)
        else:  # of a repeat, too: it doesn't say which one it deleted
            self._note(key, "remove", answer._replace(status=0), is_not=None, makes=None)

    def _look(self) -> None:
        key = f"n{self._draw.randrange(NAMES)}"
        answer = self._ask("GET", f"{BUDGETS}/{key}")
        if answer.done:
            self._note(key, "look", answer, is_=answer.body["labels"]["by"])
        elif answer.status == 404:
            self._note_refused(key, "missing", answer, is_=None)

    # A quota.

    def _resize(self) -> None:
        mark = new_uid()
        change = {"labels": {"by": mark}, "spec": {"cpu": self._draw.choice((0.5, 1, 2, 3))}}
        self._change("PATCH", f"{MACHINES}/v{self._draw.randrange(VMS)}", change, mark)

    def _limit(self) -> None:
        self._ask("PATCH", QUOTA, {"spec": {"cpu": self._draw.choice((5, 6, 8))}}, {"Idempotency-Key": new_uid()})

    def _change(self, method: str, path: str, body: Any, mark: str, headers: dict[str, str] | None = None) -> Answer:
        answer = self._ask(method, path, body, {**(headers or {}), "Idempotency-Key": new_uid()})
        if answer.status == 400 and answer.body.get("field") == "Idempotency-Key":
            answer = answer._replace(status=200)  # of a repeat: it was done, and the object is gone
        self._record.told.append(Told(mark, None if answer.status == 0 else answer.done))
        return answer

    def _ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Ask until there is an answer that is one."""
        begin, again = time.monotonic(), False
        while time.monotonic() < begin + PATIENCE_SECONDS:
            try:
                answer = self._client.http.request(method, path, body, headers=headers)
            except WeftError:
                again = True
            else:
                end = time.monotonic()
                self._record.asked += 1
                is_late = method != "GET" and not 200 <= answer.status < 300 and (again or end - begin > QUICK_SECONDS)
                if answer.status < 500:
                    return Answer(0 if is_late else answer.status, json.loads(answer.body or b"{}"), begin, end)
                again = True
            time.sleep(0.05)
        return Answer(0, None, begin, math.inf)

    def _note(self, key: str, what: str, answer: Answer, **more: Any) -> None:
        """What was done; if nobody knows whether, it may be at any later time."""
        if answer.done:
            self._record.operations.append(Operation(self.name, key, what, answer.begin, answer.end, **more))
        elif not answer.status and "makes" in more:
            self._record.operations.append(Operation(self.name, key, what, answer.begin, **more))

    def _note_refused(self, key: str, what: str, answer: Answer, **more: Any) -> None:
        """What was refused for what the object was."""
        self._record.operations.append(Operation(self.name, key, what, answer.begin, answer.end, **more))
