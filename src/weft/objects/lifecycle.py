"""The lifecycle of every workload kind, as one table. Pure. Verbs are checked against it, and a test checks that reports follow
it.

Pending ⇄ Hold, Pending ⇄ Rejected, Pending → Prolog → Boot → Running; Running → Migrate | Suspended | Stopped → Running;
Running → Shutdown → Epilog → Done; Failed, and Unknown when the node is lost.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from weft.objects.errors import IllegalTransition


class Phase(StrEnum):
    PENDING = "Pending"
    HOLD = "Hold"
    REJECTED = "Rejected"  # its lease was refused: it has no place, and gets none unless its spec is changed
    PROLOG = "Prolog"  # the node prepares image, disks and network
    BOOT = "Boot"  # the machine runs, the guest hasn't answered yet
    RUNNING = "Running"
    MIGRATE = "Migrate"
    SUSPENDED = "Suspended"
    STOPPED = "Stopped"
    SHUTDOWN = "Shutdown"
    EPILOG = "Epilog"  # the guest has ended, the node cleans up
    DONE = "Done"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


_P = Phase
# Where a workload may go from each phase. Unknown may turn out to be anything that a live node then reports.
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    _P.PENDING: frozenset({_P.HOLD, _P.REJECTED, _P.PROLOG, _P.FAILED, _P.EPILOG, _P.DONE}),
    _P.HOLD: frozenset({_P.PENDING, _P.REJECTED, _P.EPILOG, _P.DONE}),
    _P.REJECTED: frozenset({_P.PENDING, _P.HOLD, _P.PROLOG, _P.EPILOG, _P.DONE}),
    _P.PROLOG: frozenset({_P.PENDING, _P.BOOT, _P.RUNNING, _P.STOPPED, _P.SHUTDOWN, _P.EPILOG, _P.FAILED, _P.UNKNOWN}),
    _P.BOOT: frozenset(
        {_P.PENDING, _P.RUNNING, _P.SUSPENDED, _P.STOPPED, _P.SHUTDOWN, _P.EPILOG, _P.FAILED, _P.UNKNOWN, _P.PROLOG}
    ),
    _P.RUNNING: frozenset(
        {
            _P.PENDING,  # it was preempted
            *(_P.MIGRATE, _P.SUSPENDED, _P.STOPPED, _P.SHUTDOWN, _P.EPILOG, _P.BOOT, _P.PROLOG, _P.FAILED, _P.UNKNOWN),
        }
    ),
    _P.MIGRATE: frozenset(  # its own ends, and what the guest and people do meanwhile
        {_P.RUNNING, _P.BOOT, _P.PROLOG, _P.SUSPENDED, _P.STOPPED, _P.SHUTDOWN, _P.EPILOG, _P.FAILED, _P.UNKNOWN}
    ),
    _P.SUSPENDED: frozenset(
        {_P.RUNNING, _P.BOOT, _P.PROLOG, _P.STOPPED, _P.SHUTDOWN, _P.EPILOG, _P.FAILED, _P.UNKNOWN}
    ),
    _P.STOPPED: frozenset({_P.RUNNING, _P.BOOT, _P.PROLOG, _P.SHUTDOWN, _P.EPILOG, _P.FAILED, _P.UNKNOWN}),
    _P.SHUTDOWN: frozenset({_P.EPILOG, _P.DONE, _P.FAILED, _P.UNKNOWN}),
    _P.EPILOG: frozenset({_P.DONE, _P.FAILED, _P.UNKNOWN}),
    _P.DONE: frozenset(),
    _P.FAILED: frozenset(
        {_P.PENDING, _P.PROLOG, _P.BOOT, _P.RUNNING, _P.STOPPED, _P.SHUTDOWN, _P.EPILOG, _P.DONE, _P.UNKNOWN}
    ),
    _P.UNKNOWN: frozenset(_P) - {_P.PENDING, _P.HOLD, _P.REJECTED},
}

# What a workload is in each phase, where the phase's own name isn't what a sentence needs.
_IN_WORDS = {
    _P.HOLD: "held",
    _P.PROLOG: "being prepared",
    _P.BOOT: "booting",
    _P.MIGRATE: "migrating",
    _P.SHUTDOWN: "shutting down",
    _P.EPILOG: "being cleaned up",
}

# The phases in which each verb is legal.
ALLOWED: dict[str, frozenset[Phase]] = {
    "hold": frozenset({_P.PENDING, _P.REJECTED}),
    "release": frozenset({_P.HOLD}),
    "start": frozenset({_P.STOPPED, _P.SUSPENDED, _P.FAILED}),
    "stop": frozenset({_P.RUNNING, _P.BOOT, _P.PROLOG, _P.MIGRATE, _P.SUSPENDED, _P.FAILED, _P.UNKNOWN}),
    "restart": frozenset({_P.RUNNING, _P.BOOT, _P.MIGRATE, _P.STOPPED, _P.FAILED}),
    "suspend": frozenset({_P.RUNNING, _P.MIGRATE}),
    "resume": frozenset({_P.SUSPENDED}),
    "exec": frozenset({_P.RUNNING, _P.BOOT, _P.PROLOG, _P.MIGRATE}),
    "console": frozenset({_P.RUNNING, _P.BOOT, _P.MIGRATE, _P.UNKNOWN}),
}

_SELDOM = {(Phase.UNKNOWN, "console")}  # legal, but refused unless its node is connected all the same: no remedy

# The phases in which the verb is done already, or under way: repeating it changes nothing.
SO_ALREADY: dict[str, frozenset[Phase]] = {
    "hold": frozenset({_P.HOLD}),
    "release": frozenset({_P.PENDING}),
    "start": frozenset({_P.RUNNING, _P.BOOT, _P.PROLOG, _P.PENDING}),
    "stop": frozenset({_P.STOPPED}),
    "suspend": frozenset({_P.SUSPENDED}),
    "resume": frozenset({_P.RUNNING}),
}


def describe_phase(phase: str) -> str:
    """Describe the phase, after ``vm/web is``: ``migrating`` for Migrate, and ``Stopped`` for itself."""
    return {str(one): words for one, words in _IN_WORDS.items()}.get(phase, phase)


def may_change(old: Phase, new: Phase) -> bool:
    return old == new or new in TRANSITIONS[old]


def legal_verbs(phase: Phase) -> list[str]:
    """The legal verbs in ``phase``, in alphabetical order; delete always is."""
    return [*sorted(verb for verb, phases in ALLOWED.items() if phase in phases), "delete"]


def check_verb(verb: str, phase: Phase, what: str, barred: Collection[str] = (), why: str = "") -> None:
    """Raise IllegalTransition naming the legal verbs unless ``verb`` is legal while ``what`` is in ``phase``. ``barred``: verbs
    that are refused for another reason, so the hint leaves them out. ``why``: what brought it into that phase,
    where the phase alone doesn't tell."""
    if phase in ALLOWED[verb] or phase in SO_ALREADY.get(verb, ()):
        return
    legal = [one for one in legal_verbs(phase) if one not in barred]
    raise IllegalTransition(
        f"{what} is {describe_phase(phase)}: {verb} is not possible now" + (f": {why}" if why else ""),
        hint="possible now: " + ", ".join(one for one in legal if (phase, one) not in _SELDOM),
        details={"phase": str(phase), "verb": verb, "legal": legal},
    )
