"""Whether a VM's first-boot setup was carried out, as the guest says. ``judge`` (pure) reads its answer; ``SetUpWatch`` asks until
that is final. cloud-init's own files are read, since its program takes seconds of an emulated processor each time.

Source: cloud-init's documentation, "Reported status": status.json while it works, result.json with its errors once it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import msgspec

from weft.agent.server.reporter import Reporter
from weft.agent.state.allocation import SetUp
from weft.agent.state.allocation_state import AllocationState
from weft.agent.workload.health import MOST_WORDS, end_session
from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import CanExec, ExecRequest
from weft.kinds.allocation import AllocationSpec
from weft.objects.errors import WeftError

PAUSE_SECONDS = 5.0
ANSWER_SECONDS = 30.0
MOST_ANSWER_BYTES = 16 << 10
LONGEST_PAUSE_SECONDS = 60.0  # of a setup that takes long
GRACE_SECONDS = 300.0  # from its start on: by then cloud-init has begun, if it ever does
_UNREAD = "Failed loading yaml"  # cloud-init's words in its log: they are no error to it
# The first line says what follows: ended (result.json), begun, script N (the exit code of tiny's user data), off, or none.
ASK = f"""cd /run/cloud-init 2>/dev/null && [ -e result.json ] && {{ echo ended; cat result.json
grep -m 1 -o '{_UNREAD}.*' /var/log/cloud-init.log; exit 0; }}
[ -e /run/cloud-init/status.json ] && {{ echo begun; exit 0; }}
[ -e /var/lib/weft/user-data.code ] && {{ echo script $(cat /var/lib/weft/user-data.code); exit 0; }}
ls /var/lib/weft/seeded-* >/dev/null 2>&1 && {{ echo begun; exit 0; }}
[ -e /etc/cloud/cloud-init.disabled ] && {{ echo off; exit 0; }}
echo none"""

log = logging.getLogger("weft.agent")


class _Ended(msgspec.Struct, frozen=True):
    errors: tuple[str, ...] = ()


class _Result(msgspec.Struct, frozen=True):
    v1: _Ended = _Ended()


def has_set_up(spec: AllocationSpec) -> bool:
    """Whether it was given anything for its first boot, which only VMs are."""
    return bool(spec.user_data or spec.users or spec.ssh_keys)


def judge(answer: str, age_seconds: float) -> SetUp:
    """``age_seconds``: since its start. The guest's words are hostile, and bounded."""
    word, _, rest = answer.partition("\n")
    match word.split():
        case ["ended"]:
            return _read_result(rest)
        case ["script", "0"] | ["off"]:
            return SetUp("done")
        case ["script", code]:
            return SetUp("failed", f"its user data ended with exit code {code[:10]}; see /var/log/user-data.log in it")
        case ["none"] if age_seconds >= GRACE_SECONDS:
            return SetUp("failed", "nothing in the guest has carried it out; weft vm restart tries again")
        case _:
            return SetUp("running")


async def _ask(guest_id: str, runtime: CanExec) -> str:
    """The output of the script, up to a bound. Raises WeftError, OSError, TimeoutError."""
    session, answer = None, bytearray()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            session = await runtime.exec(guest_id, ExecRequest(["sh", "-c", ASK]))
            await session.close_stdin()
            async for chunk in session.output():
                if chunk.channel == "stdout":
                    answer += chunk.data[: MOST_ANSWER_BYTES - len(answer)]
        return answer.decode(errors="replace")
    finally:
        if session is not None:
            await asyncio.shield(end_session(session))


def _read_result(text: str) -> SetUp:
    line, _, unread = text.strip().rpartition("\n")
    if not unread.startswith(_UNREAD):
        line, unread = text, ""
    try:
        errors = msgspec.json.decode(line, type=_Result).v1.errors
    except (msgspec.DecodeError, UnicodeError):
        return SetUp("failed", "cloud-init's result can't be read: cloud-init status --long in the guest says more")
    errors = errors or ((f"its cloud-config can't be read: {unread}",) if unread else ())
    return SetUp("failed", f"cloud-init: {errors[0]}"[:MOST_WORDS]) if errors else SetUp("done")


class SetUpWatch:
    """Asks the guest of ``state``, and notes its answer there, until that is final."""

    def __init__(self, state: AllocationState, clock: Clock, reporter: Reporter) -> None:
        self._state, self._clock, self._reporter = state, clock, reporter
        self._run: object = None
        self._task: asyncio.Task[None] | None = None

    def start(self, run: object, runtime: Any, age_seconds: float, reported: SetUp) -> None:
        """Ask a guest that answers. ``run`` identifies its run; ``reported``: that run's setup by an earlier agent."""
        if self._run == run or not isinstance(runtime, CanExec):
            return
        self.stop()
        self._run, self._state.set_up = run, reported if reported.state else SetUp("running")
        if self._state.set_up.state == "running":
            self._task = asyncio.ensure_future(self._keep(self._state.local.id, runtime, age_seconds))

    def finish(self) -> None:
        """Its setup is known to be done, and nothing is asked."""
        self.stop()
        self._state.set_up = SetUp("done")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._run, self._task, self._state.set_up = None, None, SetUp()

    async def _keep(self, guest_id: str, runtime: CanExec, age: float) -> None:
        began, pause = self._clock.elapsed() - age, PAUSE_SECONDS
        while True:
            with contextlib.suppress(WeftError, OSError, TimeoutError):  # it is asked again
                set_up = judge(await _ask(guest_id, runtime), self._clock.elapsed() - began)
                if set_up.state != "running":
                    self._note(set_up)
                    return
            await self._clock.sleep(pause)
            pause = min(LONGEST_PAUSE_SECONDS, pause * 1.5)

    def _note(self, set_up: SetUp) -> None:
        self._state.set_up = set_up
        if set_up.state == "failed":
            self._reporter.put_event(self._state.local.spec.workload, "Warning", "SetUpFailed", set_up.message)
        self._state.wake()
