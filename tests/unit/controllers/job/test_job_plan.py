"""The plan of a job's tasks, driven through thousands of lives: whatever ends, vanishes, is asked for or fails to be written,
no try is begun twice, none is forgotten, and what was kept in memory is what a newcomer would read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.controllers.job.plan import LOST, JobFacts, JobOutcome, TaskFacts, TaskLedger, plan_tasks
from weft.kinds.job import ENDED, JobActions, JobSpec, JobStatus, TaskSpec

TASK = TaskSpec(image="registry.example.org/work:1")


class Life:
    """A job, its containers and its clock."""

    def __init__(self, **spec: Any) -> None:
        self.spec, self.asked = JobSpec(task=TASK, **spec), JobActions()
        self.status = JobStatus()
        self.seen: dict[tuple[int, int], TaskFacts] = {}
        self.book: TaskLedger | None = None
        self.made: Counter[tuple[int, int]] = Counter()
        self.now = 1000.0

    def turn(self, *, written: bool = True, most: int = 50) -> JobOutcome:
        """One plan; not ``written``: its commit failed, and the process was killed."""
        book = self.book or TaskLedger(self.spec, self.status)
        out = plan_tasks(
            JobFacts(self.spec, self.asked, self.status, list(self.seen.values()), 1, self.now, "g"), book, most
        )
        if not written:
            self.book = None
            return out
        self.status, self.book = out.status, book
        for one in out.make:
            key = (one.index, one.attempt)
            assert key not in self.seen
            self.made[key] += 1
            self.seen[key] = TaskFacts(one.index, one.attempt, "waiting", self.now)
        for one in out.stop:
            self.seen[one.index, one.attempt] = msgspec.structs.replace(one, stopping=True)
        for one in out.delete:
            self.seen[one.index, one.attempt] = msgspec.structs.replace(one, deleting=True)
        return out

    def live(self) -> list[TaskFacts]:
        return [one for one in self.seen.values() if one.state != "ended"]

    def change(self, key: tuple[int, int], **fields: Any) -> None:
        self.seen[key] = msgspec.structs.replace(self.seen[key], since=self.now, **fields)


def test_a_job_runs_only_while_one_of_its_tasks_does() -> None:
    life = Life(array="0-1", parallelism=1, retries=1, backoff=5.0)
    life.turn()
    assert (life.status.phase, life.status.running) == ("Waiting", 0)
    life.change((0, 1), state="running", placed=True)
    life.turn()
    assert (life.status.phase, life.status.running) == ("Running", 1)
    life.change((0, 1), state="ended", exit_code=0)
    life.turn()
    assert (life.status.phase, life.status.succeeded) == ("Waiting", 1)
    life.change((1, 1), state="running", placed=True)
    life.turn()
    life.change((1, 1), state="ended", exit_code=1, reason="exited")
    life.turn()
    assert (life.status.phase, life.status.reason) == ("Waiting", "taskFailed")
    life.now += 60.0
    life.turn()
    life.change((1, 2), state="running", placed=True)
    life.turn()
    assert life.status.phase == "Running"
    life.change((1, 2), state="ended", exit_code=0)
    life.turn()
    assert life.status.phase == "Succeeded"


WHAT = st.one_of(
    st.tuples(st.just("run"), st.integers(0, 50)),
    st.tuples(st.just("end"), st.integers(0, 50), st.sampled_from([0, 0, 0, 1, 7, None])),
    st.tuples(st.just("lose"), st.integers(0, 50)),
    st.tuples(st.just("take away"), st.integers(0, 50)),
    st.tuples(st.just("clear")),
    st.tuples(st.just("wait"), st.integers(1, 30)),
    st.tuples(st.just("cancel")),
    st.tuples(st.just("retry")),
    st.tuples(st.just("turn"), st.booleans()),
    st.tuples(st.just("turn"), st.just(True)),
)


@settings(max_examples=examples(400), deadline=None)
@given(
    st.lists(WHAT, max_size=60),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(0, 2),
    st.sampled_from([None, 40.0]),
    st.booleans(),
    st.sampled_from([0, 2, 100]),
)
def test_no_try_is_begun_twice_and_no_task_is_forgotten(
    history: list[tuple[Any, ...]],
    tasks: int,
    parallelism: int,
    retries: int,
    limit: float | None,
    gang: bool,
    keep: int,
) -> None:
    life = Life(
        array=f"0-{tasks - 1}",
        parallelism=parallelism,
        retries=retries,
        task_timeout=limit,
        gang=gang,
        keep_tasks=keep,
        backoff=3.0,
    )
    for what in history:
        live = life.live()
        chosen = live[what[1] % len(live)] if live and len(what) > 1 and what[0] not in ("wait", "turn") else None
        key = (chosen.index, chosen.attempt) if chosen is not None else (0, 0)
        match what[0]:
            case "run" if chosen is not None and chosen.state == "waiting" and not chosen.stopping:
                life.change(key, state="running", placed=True)
            case "end" if chosen is not None and chosen.state == "running":
                life.change(key, state="ended", exit_code=what[2], reason="" if what[2] == 0 else "exited")
            case "lose" if chosen is not None and chosen.state == "running":
                life.change(key, state="ended", exit_code=None, reason=LOST[0])
            case "take away" if chosen is not None:
                del life.seen[key]
            case "clear":
                life.seen = {k: one for k, one in life.seen.items() if not one.deleting}
            case "wait":
                life.now += what[1]
            case "cancel" if life.status.phase not in ENDED:
                life.asked.cancel = True
            case "retry" if life.status.phase in ENDED[1:]:
                life.asked.cancel, life.asked.rounds = False, life.status.round + 1
            case "turn":
                life.turn(written=what[1])
                check(life)
    finish(life)
    check(life)
    if life.status.phase in ("Succeeded", "Failed"):
        assert life.status.succeeded + life.status.failed == tasks
    assert life.status.phase in ENDED and not life.live()
    ended = [one for one in life.seen.values() if not one.deleting]
    assert len(ended) <= max(keep, 0)


def finish(life: Life) -> None:
    """From here on all goes well."""
    for _ in range(400):
        over = life.status.phase in ENDED
        out = life.turn()
        for key, one in list(life.seen.items()):
            if one.deleting:
                del life.seen[key]
            elif one.stopping and one.state != "ended":
                life.change(key, state="ended", exit_code=143)
            elif one.state == "waiting":
                life.change(key, state="running", placed=True)
            elif one.state == "running":
                life.change(key, state="ended", exit_code=0)
        if over and life.status.phase in ENDED and not out.delete:
            return
        life.now += 5
    raise AssertionError(f"it goes on for ever: {life.status}")


def check(life: Life) -> None:
    assert set(life.made.values()) <= {1}
    assert len(life.live()) <= life.spec.parallelism
    status = life.status
    assert status.succeeded + status.failed + status.running + status.pending == status.tasks or status.phase in ENDED
    if life.book is not None:
        fresh = TaskLedger(life.spec, status)
        for name in ("tries", "succeeded", "failed", "retry_at", "open", "begun"):
            assert getattr(fresh, name) == getattr(life.book, name), name
    for index, tries in (life.book.tries if life.book is not None else {}).items():
        assert {attempt for i, attempt in life.made if i == index} == set(range(1, tries + 1))


def test_pauses_double_and_have_an_end() -> None:
    life = Life(retries=100, backoff=10.0)
    pauses = []
    for _ in range(9):
        life.turn()
        (one,) = life.live()
        life.change((one.index, one.attempt), state="ended", exit_code=1, placed=True)
        out = life.turn()
        assert out.requeue_after is not None
        pauses.append(out.requeue_after)
        life.now += out.requeue_after
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600, 600]


def test_a_clock_that_is_set_back_keeps_no_retry_waiting() -> None:
    life = Life(retries=1, backoff=5.0)
    life.now = 200_000.0
    life.turn()
    life.change((0, 1), state="ended", exit_code=1)
    life.turn()
    life.now = 100_000.0
    life.turn()
    life.now += 6.0
    life.turn()
    assert life.made[0, 2] == 1


def test_a_commit_is_never_more_than_it_may_be() -> None:
    life = Life(array="0-999", parallelism=1000, keep_tasks=0)
    out = life.turn(most=80)
    assert len(out.make) == 80
    for key in list(life.seen):
        life.change(key, state="ended", exit_code=0)
    out = life.turn(most=80)
    assert len(out.make) + len(out.stop) + len(out.delete) <= 80


def test_a_commit_for_more_tasks_than_the_last_has_room_for_comes_next() -> None:
    life = Life(array="0-9", parallelism=10)
    for expected in (4, 8, 10, 10):
        life.turn(most=4)
        assert len(life.seen) == expected


@pytest.mark.parametrize(("exit_code", "reason"), [(0, "stopped"), (143, "")])
def test_what_was_stopped_has_failed_however_it_ended(exit_code: int, reason: str) -> None:
    life = Life()
    life.turn()
    life.change((0, 1), state="ended", exit_code=exit_code, reason=reason, stopping=True)
    assert life.turn().status.phase == "Failed"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"message": "no room on /", "reason": "diskFull"}, "no room on /"),
        ({"reason": "diskFull"}, "diskFull"),
        ({}, "its container failed"),
    ],
)
def test_why_a_task_failed_is_told_as_well_as_it_is_known(said: dict[str, str], why: str) -> None:
    life = Life()
    life.turn()
    life.change((0, 1), state="ended", exit_code=1, placed=True, **said)
    assert any(why in message for _, _, message in life.turn().events)
