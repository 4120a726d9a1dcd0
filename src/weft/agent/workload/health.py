"""A workload's health check: a command that runs in it again and again. ``judge`` (pure) decides the health after one result;
``HealthWatch`` runs the checks of one workload while it runs. Without a command it is asked whether it answers (``answer.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Protocol

from weft.agent.server.reporter import Reporter
from weft.agent.state.allocation import Health
from weft.agent.state.allocation_state import AllocationState
from weft.agent.workload.answer import CheckResult, ask_guest
from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import CanExec, CanKill, ExecRequest, ExecSession
from weft.kinds.allocation import HealthCheck
from weft.objects.errors import Unavailable, WeftError, shorten
from weft.protocol.report import EventType

FIRST_SECONDS = 1.0  # after a start, and between checks in the start period
MOST_WORDS = 300
_KILL_SECONDS = 5.0

log = logging.getLogger("weft.agent")


def judge(check: HealthCheck, before: Health, found: CheckResult, age_seconds: float) -> Health:
    """``age_seconds``: since its start. A failure in the start period doesn't count until a check has succeeded."""
    if found.well:
        return Health("healthy")
    if before.state == "starting" and age_seconds < check.start_period:
        return Health("starting", 0, found.message)
    failures = before.failures + 1
    bad = failures >= check.retries or before.state == "unhealthy"
    return Health("unhealthy" if bad else before.state, failures, found.message)


def pause_after(check: HealthCheck, health: Health, age_seconds: float) -> float:
    """Seconds until the next check."""
    if health.state == "starting" and age_seconds < max(check.start_period, FIRST_SECONDS):
        return min(check.interval, FIRST_SECONDS)
    return check.interval


class Executes(Protocol):
    """A runtime that runs commands in guests."""

    async def exec(self, guest_id: str, request: ExecRequest) -> ExecSession: ...


class HealthWatch:
    """Checks the workload of ``state``, and sets its health there. The message changes only with the state, so that not every
    check causes a report."""

    def __init__(self, state: AllocationState, clock: Clock, reporter: Reporter) -> None:
        self._state, self._clock, self._reporter = state, clock, reporter
        self._run: tuple[object, ...] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, run: object, check: HealthCheck, runtime: Any, age_seconds: float, reported: Health) -> None:
        """Check a running one. ``run`` identifies its run; ``reported``: that run's health by an earlier agent."""
        if self._run == (run, check):
            return
        self.stop()
        self._run = (run, check)
        if not isinstance(runtime, CanExec):
            self._state.health = Health("starting", 0, "this node's runtime can't run commands in it")
            return
        self._state.health = reported if reported.state else Health("starting")
        self._task = asyncio.ensure_future(self._keep(self._state.local.id, check, runtime, age_seconds))

    def stop(self) -> None:
        """End the checks: the container doesn't run."""
        if self._task is not None:
            self._task.cancel()
        self._run, self._task, self._state.health = None, None, Health()

    async def _keep(self, guest_id: str, check: HealthCheck, runtime: Executes, age: float) -> None:
        began = self._clock.elapsed() - age
        await self._clock.sleep(min(check.interval, FIRST_SECONDS))
        health = self._state.health
        while True:
            found = await self._ask(guest_id, check, runtime)
            age = self._clock.elapsed() - began
            if found is not None:
                health = judge(check, health, found, age)
                if health.state != self._state.health.state:
                    self._note(health)
            await self._clock.sleep(pause_after(check, health, age))

    def _note(self, health: Health) -> None:
        self._state.health = health
        type_: EventType = "Warning" if health.state == "unhealthy" else "Normal"
        self._reporter.put_event(self._state.local.spec.workload, type_, health.state.capitalize(), health.message)
        self._state.wake()

    async def _ask(self, guest_id: str, check: HealthCheck, runtime: Executes) -> CheckResult | None:
        """None: it can't be checked, since it doesn't run."""
        try:
            if not check.command:
                return await ask_guest(guest_id, runtime)
            return await run_check(guest_id, check, runtime)
        except Unavailable:
            return None
        except (WeftError, OSError) as problem:
            return CheckResult(False, shorten(str(problem), MOST_WORDS))
        except Exception:  # a defect here mustn't end the checks
            log.exception("health check of %s", guest_id)
            return CheckResult(False, "the check itself failed; the log of the node's agent says why")


async def run_check(guest_id: str, check: HealthCheck, runtime: Executes) -> CheckResult:
    """Raises WeftError, OSError if the command can't be started."""
    session: ExecSession | None = None
    output = bytearray()
    try:
        async with asyncio.timeout(check.timeout):
            session = await runtime.exec(guest_id, ExecRequest(list(check.command)))
            await session.close_stdin()
            async for chunk in session.output():
                if chunk.channel == "exit":
                    return _read(chunk.code, chunk.signal, bytes(output))
                output += chunk.data[: MOST_WORDS - len(output)]
        return CheckResult(False, "the check ended without an exit code")
    except TimeoutError:
        return CheckResult(False, f"the check took longer than {check.timeout:g} s", silent=True)
    finally:
        if session is not None:
            await asyncio.shield(end_session(session))


async def end_session(session: ExecSession) -> None:
    """End a command that was asked for its answer, whatever becomes of it."""
    with contextlib.suppress(WeftError, OSError, TimeoutError):
        if isinstance(session, CanKill):
            async with asyncio.timeout(_KILL_SECONDS):
                await session.kill()
        await session.close()


def _read(code: int | None, signal: int | None, output: bytes) -> CheckResult:
    if code == 0:
        return CheckResult(True)
    why = f"exit code {code}" if code is not None else f"ended by signal {signal}"
    words = " ".join(output.decode(errors="replace").split())
    return CheckResult(False, f"{why}: {words}" if words else why)
