"""When a container is well, by its own check: a table; and a check of it that hangs, floods or can't be begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from weft.agent.workload.answer import CheckResult
from weft.agent.workload.health import MOST_WORDS, Health, judge, pause_after, run_check
from weft.contracts.driver.runtime import ExecChunk, ExecRequest
from weft.kinds.allocation import HealthCheck

CHECK = HealthCheck(command=["true"], interval=30, timeout=0.2, retries=3, start_period=60)
WELL, BAD = CheckResult(True), CheckResult(False, "exit code 1")
STARTING, HEALTHY = Health("starting"), Health("healthy")


@pytest.mark.parametrize(
    ("before", "found", "age", "after"),
    [
        (STARTING, WELL, 1, HEALTHY),
        (STARTING, BAD, 59, Health("starting", 0, "exit code 1")),
        (STARTING, BAD, 61, Health("starting", 1, "exit code 1")),
        (Health("starting", 2), BAD, 61, Health("unhealthy", 3, "exit code 1")),
        (HEALTHY, BAD, 5, Health("healthy", 1, "exit code 1")),  # it was well: its start is over
        (Health("healthy", 2), BAD, 90, Health("unhealthy", 3, "exit code 1")),
        (Health("healthy", 2), WELL, 90, HEALTHY),
        (Health("unhealthy", 3), BAD, 90, Health("unhealthy", 4, "exit code 1")),
        (Health("unhealthy", 0), BAD, 90, Health("unhealthy", 1, "exit code 1")),  # known from before its agent's end
        (Health("unhealthy", 3), WELL, 90, HEALTHY),
    ],
)
def test_what_follows_from_an_answer(before: Health, found: CheckResult, age: float, after: Health) -> None:
    assert judge(CHECK, before, found, age) == after


@pytest.mark.parametrize(
    ("health", "age", "seconds"), [(STARTING, 0, 1), (STARTING, 59, 1), (STARTING, 61, 30), (HEALTHY, 5, 30)]
)
def test_it_is_asked_often_only_while_it_starts(health: Health, age: float, seconds: float) -> None:
    assert pause_after(CHECK, health, age) == seconds


class Session:
    def __init__(self, *chunks: ExecChunk, hangs: bool = False) -> None:
        self.chunks, self.hangs, self.ended = chunks, hangs, [""]

    async def write(self, data: bytes) -> None: ...

    async def close_stdin(self) -> None: ...

    async def output(self) -> AsyncIterator[ExecChunk]:
        for chunk in self.chunks:
            yield chunk
        if self.hangs:
            await asyncio.sleep(60)

    async def kill(self) -> None:
        self.ended.append("killed")

    async def close(self) -> None:
        self.ended.append("closed")


class Runtime:
    def __init__(self, session: Session) -> None:
        self.session = session

    async def exec(self, guest_id: str, request: ExecRequest, mark: object = None) -> Session:
        return self.session


@pytest.mark.parametrize(
    ("session", "found"),
    [
        (Session(ExecChunk("exit", code=0)), CheckResult(True)),
        (
            Session(ExecChunk("stderr", b"no\nroute "), ExecChunk("exit", code=4)),
            CheckResult(False, "exit code 4: no route"),
        ),
        (Session(ExecChunk("exit", signal=9)), CheckResult(False, "ended by signal 9")),
        (Session(hangs=True), CheckResult(False, "the check took longer than 0.2 s", silent=True)),
        (Session(), CheckResult(False, "the check ended without an exit code")),
    ],
)
async def test_one_check(session: Session, found: CheckResult) -> None:
    assert await run_check("c", CHECK, Runtime(session)) == found
    assert session.ended[-2:] == ["killed", "closed"]


async def test_of_what_a_check_prints_a_little_is_kept() -> None:
    session = Session(*[ExecChunk("stdout", b"x" * 65536)] * 20, ExecChunk("exit", code=1))
    assert len((await run_check("c", CHECK, Runtime(session))).message) <= MOST_WORDS + 20
