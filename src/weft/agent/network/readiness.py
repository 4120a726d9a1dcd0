"""Asks the workloads of this node whether they are ready, for each service that leads to them, and whether the ports answer that
their allocations name. ``judge`` (pure) decides after one result; ``ReadinessChecks`` keeps one check for each service or port and
allocation, and notes what it finds in the allocation's state.

Reads the services of this node's networks; woken by them, and by the clock to see which guests run. What a workload answers is a
stranger's: of HTTP only the first line is read, of a command a few words.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import re
import socket
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import msgspec

from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.service import ServedAddress
from weft.agent.state.table import AllocationTable
from weft.agent.workload.answer import CheckResult
from weft.agent.workload.health import run_check
from weft.agent.workload.runtimes import Runtimes
from weft.contracts.clock import Clock
from weft.contracts.driver.network import CanDial
from weft.contracts.driver.runtime import CanExec
from weft.contracts.wakeup import wait_for_event
from weft.kinds.allocation import HealthCheck
from weft.kinds.fields.service.readiness import MOST_CHECKED, MOST_MESSAGE, Readiness, ReadinessReport, name_port
from weft.objects.errors import Unavailable, WeftError, shorten
from weft.objects.identity import short_id

log = logging.getLogger("weft.agent")
FOLLOW_SECONDS = 0.5
MOST_AT_ONCE, MOST_OF_PROJECT = 32, 8  # checks on this node: one project's that are slow don't stop those of others
FLAPS, FLAP_SECONDS, HOLD_SECONDS = 3, 60.0, 10.0
LATE_SECONDS = 1.0  # so much past its timeout a check ends only where this agent itself gets no processor
_MOST_LINE_BYTES = 256
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]")


class Judged(msgspec.Struct, frozen=True):
    """The readiness of a workload for one service, as judged so far. ``ready`` None: nothing yet."""

    ready: bool | None = None
    in_a_row: int = 0  # results that say otherwise
    message: str = ""  # why it isn't ready
    silent: bool = False  # it was ready, and has only been silent since


def judge(readiness: Readiness, before: Judged, found: CheckResult) -> Judged:
    """Judge ``before`` after one more result. One of which nothing is known isn't ready after its first failure."""
    if found.well == (before.ready is True) and before.ready is not None:
        spoke = before.silent and not found.silent  # it says itself now that it isn't ready
        message = shorten(found.message, MOST_MESSAGE) if spoke else before.message
        return Judged(before.ready, 0, message, before.silent and not spoke)
    in_a_row = before.in_a_row + 1
    needed = readiness.rise if found.well else 1 if before.ready is None else readiness.fall
    if in_a_row < needed:
        return msgspec.structs.replace(before, in_a_row=in_a_row)
    silent = before.ready is True and found.silent
    return Judged(found.well, 0, "" if found.well else shorten(found.message, MOST_MESSAGE), silent)


class Flapping:
    """Holds back a workload that often changes its mind: after FLAPS changes to not ready within FLAP_SECONDS it becomes ready only
    when it hasn't failed for HOLD_SECONDS. Each change is a write to the store, and a new set of endpoints on every node."""

    def __init__(self) -> None:
        self._fell: deque[float] = deque(maxlen=FLAPS)
        self._failed_at = 0.0

    def settle(self, before: Judged, after: Judged, found: CheckResult, now: float) -> Judged:
        """Settle on ``after``, or ``before`` with one more success where that is too early; ``now`` on a clock that never jumps."""
        if not found.well:
            self._failed_at = now
        if before.ready is True and after.ready is False:
            self._fell.append(now)
        flaps = len(self._fell) == FLAPS and now - self._fell[0] < FLAP_SECONDS
        if before.ready is False and after.ready is True and flaps and now - self._failed_at < HOLD_SECONDS:
            return msgspec.structs.replace(before, in_a_row=before.in_a_row + 1)
        return after


class _Key(NamedTuple):
    service: str  # uid, or ``name_port``
    allocation: str


class _Check(NamedTuple):
    run: object  # of the guest
    readiness: Readiness
    address: str
    task: asyncio.Task[None]


class ReadinessChecks:
    """``services``: of this node's networks, by network uid and address."""

    def __init__(
        self,
        driver: object,
        services: Mapping[str, Mapping[str, ServedAddress]],
        table: AllocationTable,
        runtimes: Runtimes,
        clock: Clock,
    ) -> None:
        self._driver, self._services, self._table, self._runtimes, self._clock = (
            driver,
            services,
            table,
            runtimes,
            clock,
        )
        self._checks: dict[_Key, _Check] = {}
        self._runs: dict[str, object] = {}  # of allocations, by uid, as last seen
        self._at_once = asyncio.Semaphore(MOST_AT_ONCE)
        self._of_project = WeakValueDictionary[str, asyncio.Semaphore]()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        self._woken.set()

    async def keep(self) -> None:
        """Follow for ever."""
        try:
            while True:
                self._woken.clear()
                self.follow()
                pause = FOLLOW_SECONDS if self._is_asked() else 60.0
                await wait_for_event(self._clock, self._woken, pause)
        finally:
            for check in self._checks.values():
                check.task.cancel()

    def follow(self) -> None:
        """Check what runs here and is a target, and nothing else."""
        wanted = self._find_wanted() if self._is_asked() else {}
        for key in [key for key, check in self._checks.items() if _is_other(check, wanted.get(key))]:
            self._checks.pop(key).task.cancel()
        for state in self._table:
            gone = [uid for uid in state.readiness if _Key(uid, state.local.uid) not in wanted]
            if gone:
                _note(state, {uid: one for uid, one in state.readiness.items() if uid not in gone})
        for key, (state, run, readiness, address) in wanted.items():
            if key in self._checks:
                continue
            first = self._recall(key, state, run)
            task = asyncio.ensure_future(self._check(key.service, state, readiness, address, first))
            self._checks[key] = _Check(run, readiness, address, task)
        self._runs = {state.local.uid: _run_of(state) for state in self._table if _runs(state)}

    def _is_asked(self) -> bool:
        return any(self._services.values()) or any(state.local.spec.asked_ports for state in self._table)

    def _find_wanted(self) -> dict[_Key, tuple[AllocationState, object, Readiness, str]]:
        by_address = defaultdict[tuple[str, str], list[ServedAddress]](list)
        for uid, found in self._services.items():
            for one in found.values():
                for target in one.service.targets if one.readiness.type != "none" else ():
                    by_address[uid, target.address].append(one)
        wanted = {}
        for state in self._table:
            if not _runs(state):
                continue
            asked = [
                (one, nic.address)
                for nic in state.local.spec.nics
                for one in by_address.get((nic.network_uid, nic.address), ())
            ]
            if len(asked) > MOST_CHECKED:
                asked.sort(key=lambda pair: (not self._was_checked(pair[0].uid, state), pair[0].uid))
            for one, address in asked[:MOST_CHECKED]:
                wanted[_Key(one.uid, state.local.uid)] = state, _run_of(state), one.readiness, address
            for port in state.local.spec.asked_ports if state.local.spec.nics else ():
                asks, address = Readiness(type="tcp", port=port), state.local.spec.nics[0].address
                wanted[_Key(name_port(port), state.local.uid)] = state, _run_of(state), asks, address
        return wanted

    def _was_checked(self, service: str, state: AllocationState) -> bool:
        return _Key(service, state.local.uid) in self._checks or service in state.local.report.readiness

    def _recall(self, key: _Key, state: AllocationState, run: object) -> Judged:
        """Recall what is known of the workload before the first check: of another run than the one before it isn't ready; of one
        that an agent before this one checked, what that one reported."""
        before = self._runs.get(key.allocation)
        if before is not None and before != run:
            started = ReadinessReport(ready=False, message="it has just started")
            _note(state, {**state.readiness, key.service: started})
            return Judged()
        said = state.readiness.get(key.service) or state.local.report.readiness.get(key.service)
        if said is None or (state.guest is not None and state.local.report.started_at != state.guest.started_at):
            return Judged()
        _note(state, {**state.readiness, key.service: said})
        return Judged(said.ready, 0, said.message, said.silent)

    async def _check(
        self, service: str, state: AllocationState, readiness: Readiness, address: str, known: Judged
    ) -> None:
        network = next(nic.network_uid for nic in state.local.spec.nics if nic.address == address)
        of_project = self._of_project.setdefault(
            state.local.spec.workload.project or "", asyncio.Semaphore(MOST_OF_PROJECT)
        )
        flapping = Flapping()
        while True:
            async with of_project, self._at_once:
                found = await self._ask(state, readiness, short_id(network), address)
            if found is not None:
                judged = flapping.settle(known, judge(readiness, known, found), found, self._clock.elapsed())
                if judged.ready is not None and (judged.ready, judged.silent) != (known.ready, known.silent):
                    report = ReadinessReport(ready=judged.ready, message=judged.message, silent=judged.silent)
                    _note(state, {**state.readiness, service: report})
                known = judged
            soon = known.ready is not True or known.in_a_row > 0
            await self._clock.sleep(min(readiness.interval, FOLLOW_SECONDS) if soon else readiness.interval)

    async def _ask(
        self, state: AllocationState, readiness: Readiness, segment_id: str, address: str
    ) -> CheckResult | None:
        """None: it can't be asked now, since it doesn't run, or this agent was too busy to hear it in time."""
        began = self._clock.elapsed()
        try:
            if readiness.type == "command":
                return await self._run(state, readiness)
            return await self._connect(readiness, segment_id, address)
        except Unavailable:
            return None
        except TimeoutError:
            if self._clock.elapsed() - began > readiness.timeout + LATE_SECONDS:
                return None
            return CheckResult(
                False, f"port {readiness.port} did not answer within {readiness.timeout:g} s", silent=True
            )
        except (WeftError, OSError) as problem:
            silent = isinstance(problem, OSError) and problem.errno == errno.EHOSTUNREACH
            return CheckResult(False, f"port {readiness.port}: {_describe(problem)}", silent)
        except Exception:  # a defect here mustn't end the checks
            log.exception("readiness of %s", state.local.what)
            return CheckResult(False, "the check itself failed; the log of the node's agent says why")

    async def _run(self, state: AllocationState, readiness: Readiness) -> CheckResult:
        runtime: Any = self._runtimes.of(state.local)
        if not isinstance(runtime, CanExec):
            return CheckResult(False, "this node's runtime can't run commands in it")
        check = HealthCheck(command=list(readiness.command), timeout=readiness.timeout)
        return await run_check(state.local.id, check, runtime)

    async def _connect(self, readiness: Readiness, segment_id: str, address: str) -> CheckResult:
        if not isinstance(self._driver, CanDial):
            return CheckResult(False, "this node's network driver can't connect to it")
        async with asyncio.timeout(readiness.timeout):
            link = await self._driver.dial(segment_id, address, readiness.port, readiness.timeout)
            with contextlib.closing(link):
                return await _fetch(link, readiness, address) if readiness.type == "http" else CheckResult(True)


async def _fetch(link: socket.socket, readiness: Readiness, address: str) -> CheckResult:
    loop = asyncio.get_running_loop()
    link.setblocking(False)
    asked = f"GET {readiness.path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: weft\r\nConnection: close\r\n\r\n"
    await loop.sock_sendall(link, asked.encode())
    line = b""
    while b"\n" not in line and len(line) < _MOST_LINE_BYTES:
        piece = await loop.sock_recv(link, _MOST_LINE_BYTES - len(line))
        if not piece:
            break
        line += piece
    return read_status(line)


def read_status(line: bytes) -> CheckResult:
    """Read the first line of an HTTP answer. Pure."""
    match = _STATUS.match(line)
    if match is None:
        return CheckResult(False, "it does not answer in HTTP")
    status = int(match[1])
    return CheckResult(200 <= status < 400, "" if 200 <= status < 400 else f"it answered with HTTP status {status}")


def _describe(problem: Exception) -> str:
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror.lower()
    return str(problem)


def _note(state: AllocationState, found: dict[str, ReadinessReport]) -> None:
    """It is reported soon."""
    if found != state.readiness:
        state.readiness = found
        state.wake()


def _runs(state: AllocationState) -> bool:
    guest = state.guest
    return guest is not None and guest.state == "running" and state.local.spec.role != "target"


def _run_of(state: AllocationState) -> object:
    guest = state.guest
    return (guest.pid, guest.started_at) if guest is not None else None


def _is_other(check: _Check, wanted: tuple[AllocationState, object, Readiness, str] | None) -> bool:
    return wanted is None or (check.run, check.readiness, check.address) != wanted[1:]
