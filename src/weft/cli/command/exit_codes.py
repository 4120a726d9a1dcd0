"""Exit codes: the one table from an error's reason to what the shell sees. `weft help exit-codes` prints it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from weft.objects.errors import WeftError

OK = 0
ERROR = 1
USAGE = 2
NOT_FOUND = 3
AUTH = 4
CONFLICT = 5
UNPLACEABLE = 6
TIMED_OUT = 7
PARTIAL = 8
INTERRUPTED = 130
SIGPIPE = 128 + 13  # as the shell sees a process that this signal ended: nobody reads how the work goes on

MEANINGS: dict[int, str] = {
    OK: "done",
    ERROR: "failed, or something needed is unavailable",
    USAGE: "the command or its input is invalid or not allowed (also: confirmation needed)",
    NOT_FOUND: "no such object",
    AUTH: "not authenticated or not allowed: no context or token, a wrong one, or one without the right",
    CONFLICT: "conflict: the object exists already, changed meanwhile, is in use, or can't do that in its state",
    UNPLACEABLE: "the workload can't be placed now; it stays, and is placed when capacity appears",
    TIMED_OUT: "timed out waiting; the work goes on",
    PARTIAL: "partly done",
    INTERRUPTED: "interrupted: only the waiting ended; the work goes on",
}

_BY_REASON: dict[str, int] = {
    "invalidInput": USAGE,
    "unknownField": USAGE,
    "unknownKind": USAGE,
    "invalidStrategy": USAGE,
    "invalidManifest": USAGE,
    "tooLarge": USAGE,
    "notFound": NOT_FOUND,
    "noContext": AUTH,
    "notAuthenticated": AUTH,
    "forbidden": AUTH,
    "alreadyExists": CONFLICT,
    "staleRevision": CONFLICT,
    "etagMismatch": CONFLICT,
    "inUse": CONFLICT,
    "portInUse": CONFLICT,
    "portReserved": CONFLICT,
    "addressInUse": CONFLICT,
    "illegalTransition": CONFLICT,
    "planOutdated": CONFLICT,
    "pinned": CONFLICT,
    "gpusStay": CONFLICT,
    "encryptedStays": CONFLICT,
    "inReservation": CONFLICT,
    "noAvailableAgents": UNPLACEABLE,
    "insufficientResources": UNPLACEABLE,
    "agentServiceUnavailable": UNPLACEABLE,
    "volumeInUse": UNPLACEABLE,
    "volumeOrphaned": UNPLACEABLE,
    "volumesApart": UNPLACEABLE,
    "snapshotFailed": UNPLACEABLE,
    "snapshotMissing": UNPLACEABLE,
    "imageFailed": UNPLACEABLE,
    "imageNotReady": UNPLACEABLE,
    "volumeNotReady": UNPLACEABLE,
    "groupNotReady": UNPLACEABLE,
    "constraintNotReady": UNPLACEABLE,
    "gangIncomplete": UNPLACEABLE,
    "gangTooLarge": UNPLACEABLE,
    "reservationFull": UNPLACEABLE,
    "reservationOver": UNPLACEABLE,
    "reservationRefused": UNPLACEABLE,
    "nodeReturns": UNPLACEABLE,
    "orphanRunning": UNPLACEABLE,
    "policyNotFound": UNPLACEABLE,
    "notPlaced": UNPLACEABLE,
    "notRunning": UNPLACEABLE,
    "timedOut": TIMED_OUT,
}


def exit_code(error: WeftError) -> int:
    """The exit code of ``error``: its own reason's, else its class's, else 1."""
    families = (cls.reason for cls in type(error).__mro__ if issubclass(cls, WeftError))
    return next((_BY_REASON[reason] for reason in (error.token, *families) if reason in _BY_REASON), ERROR)


def join_codes(codes: Iterable[int]) -> int:
    """The exit code of several steps of one action: 0 if all succeeded, the failures' code if they share one, else 8."""
    failed = {code for code in codes if code != OK}
    return OK if not failed else failed.pop() if len(failed) == 1 else PARTIAL


def partial_code(codes: Iterable[int]) -> int:
    """The exit code of several acts on several objects: as ``join_codes``, but 8 when some of them went well."""
    given = list(codes)
    return PARTIAL if OK in given and any(given) else join_codes(given)


def print_table() -> str:
    """The table as people read it."""
    return "\n".join(f"{code:>4}  {meaning}" for code, meaning in MEANINGS.items())
