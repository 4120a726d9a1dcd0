"""A run of a recovery plan: what it has made so far, and what came of it. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from weft.kinds.fields.cells import dig
from weft.kinds.record import Goal, Object
from weft.objects.errors import DriverFailed, IllegalTransition, WeftError

Mode = Literal["rehearse", "failover"]
REHEARSE: Mode = "rehearse"
FAILOVER: Mode = "failover"
RecoveryOutcome = Literal["Passed", "Failed", "Refused"]
PASSED: RecoveryOutcome = "Passed"
FAILED: RecoveryOutcome = "Failed"
REFUSED: RecoveryOutcome = "Refused"


class RunCheck(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A check of a VM; of type running: it runs, and its system has started if the image tells that."""

    type: Literal["running", "tcp", "http", "command"]
    target: str = ""
    service: str = ""  # name of the service whose readiness it is
    passed_at: float = 0.0  # seconds since 1970; 0: not yet
    message: str = ""


class RunMember(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A replica that is recovered."""

    replica: str
    group: int
    vm: str  # name of the VM that is made from it
    snapshot: str = ""  # of the point that it is made from
    snapshot_uid: str = ""
    point: int = 0
    age_seconds: float | None = None  # of the point's data when the run began; None: not known
    begun_at: float = 0.0  # when the VM was made, in seconds since 1970; 0: not yet
    checks: list[RunCheck] = []

    @property
    def has_passed(self) -> bool:
        return bool(self.begun_at) and all(check.passed_at for check in self.checks)


class CheckResult(msgspec.Struct, kw_only=True, frozen=True):
    vm: str
    type: str
    target: str
    passed: bool
    seconds: float | None  # from the run's begin until it passed
    message: str  # why it has not


class VmResult(msgspec.Struct, kw_only=True, frozen=True):
    vm: str
    replica: str
    group: int
    point: int
    age_seconds: float | None


class RunResult(msgspec.Struct, kw_only=True, frozen=True):
    """Result of a run. ``rpo_seconds``, ``rto_seconds`` and ``checks`` are what others build on."""

    mode: Mode
    generation: int
    phase: RecoveryOutcome
    started_at: float  # seconds since 1970
    ended_at: float
    rpo_seconds: float | None  # how old the oldest of the points was when the run began
    rto_seconds: float | None  # from its begin until the last check passed; None: not all have
    checks: list[CheckResult] = []
    vms: list[VmResult] = []
    reason: str = ""
    message: str = ""


class RecoveryRun(msgspec.Struct, kw_only=True, frozen=True):
    """A run that goes on, or whose objects are being removed. Its result stands in the plan's status, once."""

    mode: Mode
    generation: int
    name: str  # that the names of all that it makes begin with
    began_at: float  # seconds since 1970
    members: list[RunMember]
    networks: dict[str, str] = {}  # that are made for a rehearsal, by what they stand for
    ended: bool = False  # it has a result
    result: RunResult | None = None  # of one that the release before ended: it stood here, too

    @property
    def is_over(self) -> bool:
        return self.ended or self.result is not None


def find_busy(obj: Object) -> str:
    """The run of a plan that goes on or is asked for: rehearse, failover; "": none."""
    asked, ended = dig(obj, "actions.run_generation", 0), dig(obj, "status.ended_generation", 0)
    mode = dig(obj, "status.run.mode") or (dig(obj, "actions.run_mode", REHEARSE) if asked > ended else "")
    return str(mode)


def ask(obj: Object, mode: Mode, *, force: bool = False) -> dict[str, Any]:
    """The actions that ask for a run. A failover ends a rehearsal; nothing else begins while a run goes on. Raises
    IllegalTransition."""
    busy = find_busy(obj)
    if busy and not (busy == REHEARSE and mode == FAILOVER):
        doing = "being rehearsed" if busy == REHEARSE else "failing over"
        raise IllegalTransition(
            f"recoveryplan/{obj['name']} is {doing}",
            reason="isBusy",
            hint=f"wait for its end: weft recovery describe {obj['name']}",
        )
    return {"run_generation": dig(obj, "actions.run_generation", 0) + 1, "run_mode": mode, "force": force}


def _find_result(obj: Object | None, mode: Mode) -> dict[str, Any] | None:
    """The result of the last run that was asked for, once all that a rehearsal made is gone."""
    if obj is None or dig(obj, "status.ended_generation", 0) < dig(obj, "actions.run_generation", 0):
        return None
    found: dict[str, Any] | None = dig(obj, "status.rehearsal" if mode == REHEARSE else "status.failover")
    return found if found and found.get("generation") == dig(obj, "actions.run_generation") else None


def find_result(obj: Object | None) -> dict[str, Any] | None:
    return _find_result(obj, REHEARSE) or _find_result(obj, FAILOVER)


def _has_passed(obj: Object | None) -> bool:
    result = find_result(obj)
    return result is not None and result.get("phase") == PASSED


REHEARSED = Goal(_has_passed, "rehearsed", asked="phase=Ready")
RECOVERED = Goal(_has_passed, "recovered", asked="phase=Promoted")


def find_run_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    """Why the last run has failed, once it is over."""
    result = find_result(obj) if goal.words in (REHEARSED.words, RECOVERED.words) else None
    if result is None or result.get("phase") == PASSED:
        return None
    did = "its rehearsal" if result.get("mode") == REHEARSE else "its failover"
    word = "was refused" if result.get("phase") == REFUSED else "failed"
    hint = f"weft recovery describe {obj['name']}"
    if result.get("reason") == "primaryAnswers":
        hint = f"stop them there, then: weft recovery failover {obj['name']} --force"
    elif result.get("reason") == "notRecoverable":
        hint = f"mend that, or leave those replicas out: weft edit recoveryplan/{obj['name']}; one alone: weft replica promote NAME"
    return DriverFailed(f"{what}: {did} {word}: {result.get('message')}", reason=result.get("reason"), hint=hint)
