"""Errors as HTTP: the one place where reasons become status codes. Pure."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from weft.objects.errors import Throttled, WeftError
from weft.serving.answer import Answer

MEDIA_TYPE = "application/problem+json"
STATUS: dict[str, int] = {
    "invalidInput": 400,
    "unknownField": 400,
    "invalidStrategy": 400,
    "notAuthenticated": 401,
    "forbidden": 403,
    "quotaExceeded": 403,
    "notFound": 404,
    "unknownKind": 404,
    "methodNotAllowed": 405,
    "timedOut": 408,
    "alreadyExists": 409,
    "staleRevision": 409,
    "etagMismatch": 412,
    "inUse": 409,
    "portInUse": 409,
    "portReserved": 409,
    "addressInUse": 409,
    "illegalTransition": 409,
    "noAvailableAgents": 409,
    "insufficientResources": 409,
    "cursorGone": 410,
    "tooLarge": 413,
    "tooManyRequests": 429,
    "backupAltered": 502,
    "backupLeaseLost": 503,
    "driverFailed": 502,
    "invocationLost": 502,
    "unavailable": 503,
    "storeUnavailable": 503,
    "storeFull": 507,
}
_LAST = (408, 413)  # the connection closes: nobody reads the rest of the body


def status_of(error: WeftError) -> int:
    """The HTTP status for an error, by its own reason or else by that of its class."""
    if error.token in STATUS and not isinstance(error, Throttled):  # a passing quotaExceeded is Throttled
        return STATUS[error.token]
    return next(
        (STATUS[cls.reason] for cls in type(error).__mro__ if issubclass(cls, WeftError) and cls.reason in STATUS), 500
    )


def describe_problem(error: WeftError, request_id: str) -> dict[str, Any]:
    """The problem document (RFC 9457) for an error."""
    status = status_of(error)
    return {
        "type": f"urn:weft:problem:{error.token}",
        "title": error.token,
        "status": status,
        "detail": error.message,
        **error.to_dict(),
        "request_id": request_id,
    }


def problem_answer(error: WeftError, request_id: str) -> Answer:
    """The answer for ``error``."""
    document = describe_problem(error, request_id)
    status = document["status"]
    headers = [("content-type", MEDIA_TYPE)]
    if status == 401:
        headers.append(("www-authenticate", "Bearer"))
    if error.retry_after_seconds is not None:
        headers.append(("retry-after", str(max(1, math.ceil(error.retry_after_seconds)))))
    return Answer(status, msgspec.json.encode(document), tuple(headers), last=status in _LAST)
