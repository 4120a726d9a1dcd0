"""The one error tree. Each class is a kind of trouble; its ``reason`` is the stable token clients may match on.

Decides nothing, does no I/O. ``api/request/problem.py`` maps reasons to HTTP, ``cli/command/exit_codes.py`` to exit codes.

::

    WeftError
    ├─ InvalidInput          the request can't be understood or isn't allowed (names the field)
    │  ├─ UnknownField       ├─ InvalidStrategy
    ├─ NotFound              ├─ AlreadyExists       ├─ StaleRevision       ├─ InUse
    ├─ IllegalTransition     ├─ NotAuthenticated    ├─ Forbidden           ├─ TooLarge
    ├─ CursorGone            a watch or list position that no longer exists (HTTP 410): list again
    ├─ Unplaceable           no node fits (reason: insufficientResources or noAvailableAgents)
    ├─ Unavailable           something needed isn't there now; may be retried
    │  ├─ StoreUnavailable   ├─ BackupLeaseLost
    ├─ Throttled             as many as allowed are under way (HTTP 429)
    ├─ TimedOut              the wait ended, the work goes on
    └─ DriverFailed          a step of QEMU, the kernel or a download failed (names the step)
       ├─ BackupAltered      bytes in a backup repository are missing or aren't those that weft wrote
"""

from __future__ import annotations

from typing import Any, ClassVar


class WeftError(Exception):
    """An error: ``message`` names object and fact, ``hint`` what to do next, ``reason`` is stable."""

    reason: ClassVar[str] = "internalError"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        field: str | None = None,
        hint: str | None = None,
        details: dict[str, Any] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.token = reason or type(self).reason
        self.field = field
        self.hint = hint
        self.details = details or {}
        self.retry_after_seconds = retry_after_seconds

    def to_dict(self) -> dict[str, Any]:
        """The wire form, as it stands in problem+json: empty parts are left out. ``family`` is the main reason of the
        error's class, where ``reason`` is a finer one."""
        out: dict[str, Any] = {"reason": self.token, "message": self.message}
        if self.token != type(self).reason:
            out["family"] = type(self).reason
        if self.field is not None:
            out["field"] = self.field
        if self.hint is not None:
            out["hint"] = self.hint
        if self.details:
            out["details"] = self.details
        if self.retry_after_seconds is not None:
            out["retry_after_seconds"] = self.retry_after_seconds
        return out


class InvalidInput(WeftError):
    reason = "invalidInput"


class UnknownField(InvalidInput):
    reason = "unknownField"


class InvalidStrategy(InvalidInput):
    reason = "invalidStrategy"


class NotFound(WeftError):
    reason = "notFound"


class AlreadyExists(WeftError):
    reason = "alreadyExists"


class StaleRevision(WeftError):
    reason = "staleRevision"


class InUse(WeftError):
    reason = "inUse"


class IllegalTransition(WeftError):
    reason = "illegalTransition"


class NotAuthenticated(WeftError):
    reason = "notAuthenticated"


class Forbidden(WeftError):
    reason = "forbidden"


class TooLarge(WeftError):
    reason = "tooLarge"


class CursorGone(WeftError):
    reason = "cursorGone"


class Unplaceable(WeftError):
    """No node fits. ``reason`` is ``noAvailableAgents`` or ``insufficientResources``; ``details`` hold the verdicts."""

    reason = "insufficientResources"


class Unavailable(WeftError):
    reason = "unavailable"


class StoreUnavailable(Unavailable):
    reason = "storeUnavailable"


class Throttled(WeftError):
    reason = "tooManyRequests"


class TimedOut(WeftError):
    reason = "timedOut"


class DriverFailed(WeftError):
    """A driver's step failed; ``details["step"]`` names it."""

    reason = "driverFailed"


class BackupAltered(DriverFailed):
    """``details`` names what: pack, offset, chunk, backup."""

    reason = "backupAltered"


class BackupLeaseLost(Unavailable):
    """A clean-up took the writer for dead: its backup is not published."""

    reason = "backupLeaseLost"


_BY_REASON: dict[str, type[WeftError]] = {}


def _register(cls: type[WeftError]) -> None:
    if "reason" in vars(cls):  # not for a subclass that inherits its reason
        _BY_REASON[cls.reason] = cls
    for sub in cls.__subclasses__():
        _register(sub)


def error_from_dict(data: dict[str, Any]) -> WeftError:
    """The error of a problem document, by its reason or else its family; a plain WeftError if neither is known. Another cluster
    may have written it: parts of the wrong type are left out."""
    if not _BY_REASON:
        _register(WeftError)
    reason = str(data.get("reason", "internalError"))
    cls = _BY_REASON.get(reason) or _BY_REASON.get(str(data.get("family")), WeftError)
    field, hint, details, after = (data.get(name) for name in ("field", "hint", "details", "retry_after_seconds"))
    return cls(
        str(data.get("message", "unknown error")),
        reason=reason,
        field=field if isinstance(field, str) else None,
        hint=hint if isinstance(hint, str) else None,
        details=details if isinstance(details, dict) else {},
        retry_after_seconds=after if isinstance(after, int | float) else None,
    )


# By the name of the class, so that nothing is loaded for it; the first of an exception's classes that is here counts.
_WORDS = {
    "TimeoutError": "no answer in time",
    "RemoteDisconnected": "it hung up without an answer",
    "ConnectionResetError": "it closed the connection",
    "ConnectionAbortedError": "it closed the connection",
    "BrokenPipeError": "it closed the connection",
    "IncompleteRead": "its answer was cut off",
    "IncompleteReadError": "the connection was cut off",
    "SSLEOFError": "it closed the connection",
    "SSLZeroReturnError": "it closed the connection",
    "LineTooLong": "a line of its answer is too long",
    "HTTPException": "it answers with something else than HTTP",
    "JSONDecodeError": "it is not JSON",
    "UnicodeDecodeError": "it is not text in UTF-8",
    "EOFError": "it ended too early",
    "MemoryError": "there is too little memory",
    "RecursionError": "it is nested too deeply",
}
_NOT_TLS = (
    "WRONG_VERSION_NUMBER",
    "UNKNOWN_PROTOCOL",
    "HTTP_REQUEST",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
)


def begin_small(text: str) -> str:
    """``text`` as it goes on within a sentence: it begins small, unless its first word is written in capitals, like BMC or IPv4."""
    first = text.partition(" ")[0]
    return text if any(c.isupper() or c.isdigit() for c in first[1:]) else text[:1].lower() + text[1:]


def describe_failure(problem: BaseException) -> str:
    """A short description of ``problem``, without the name of its class."""
    for cls in type(problem).__mro__:
        if cls.__name__ in _WORDS:
            return _WORDS[cls.__name__]
        if cls.__name__ == "SSLError":
            return _describe_tls(problem)
    words = getattr(problem, "strerror", None)
    if isinstance(problem, OSError) and words:
        named = f"{problem.filename}: " if isinstance(problem.filename, str) else ""
        return f"{named}{begin_small(words)}"
    return str(problem) or "it failed without a word"


def _describe_tls(problem: BaseException) -> str:
    reason = str(getattr(problem, "reason", None) or "")
    if reason in _NOT_TLS:
        return "what answers there doesn't speak TLS"
    said = getattr(problem, "verify_message", None) or reason.replace("_", " ").lower()
    return f"TLS failed: {said}" if said else "TLS failed"


_LEFT_OUT = " …"
_ENDS = (". ", "; ")


def shorten(text: str, most: int) -> str:
    """``text`` in ``most`` characters: up to the end of a sentence, or before a remedy in brackets that would be cut in two; up to
    the end of a word if its second half has neither."""
    if len(text) <= most:
        return text
    head = text[: max(0, most - len(_LEFT_OUT) + 1)]
    places = [head.rfind(end) for end in _ENDS]
    if head.rfind("(") > head.rfind(")"):
        places.append(head.rfind("("))
    end = max(places)
    if end < most // 2:
        end = head.rfind(" ")
    return f"{head[: end if end > 0 else -1].rstrip(' .,;:')}{_LEFT_OUT}"[:most]
