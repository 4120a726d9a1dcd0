"""Answers to callers: Lambda's errors with their types, and JSON. Pure.

Source: AWS Lambda API reference, "Invoke", "Common errors"."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from weft.objects.errors import (
    Forbidden,
    IllegalTransition,
    InUse,
    InvalidInput,
    NotAuthenticated,
    NotFound,
    TooLarge,
    Unavailable,
    WeftError,
)
from weft.serving.answer import Answer

JSON = ("content-type", "application/json")
# By reason: the HTTP status, and the error type by which AWS's SDKs choose their exception.
TYPES: dict[str, tuple[int, str]] = {
    "notAuthenticated": (403, "MissingAuthenticationTokenException"),
    "incompleteSignature": (400, "IncompleteSignatureException"),
    "invalidSignature": (403, "InvalidSignatureException"),
    "unknownAccessKey": (403, "UnrecognizedClientException"),
    "forbidden": (403, "AccessDeniedException"),
    "functionNotFound": (404, "ResourceNotFoundException"),
    "notFound": (404, "ResourceNotFoundException"),
    "methodNotAllowed": (405, "MethodNotAllowedException"),
    "functionNotReady": (409, "ResourceConflictException"),
    "inUse": (409, "ResourceConflictException"),
    "invalidInput": (400, "InvalidParameterValueException"),
    "invalidPayload": (400, "InvalidRequestContentException"),
    "tooLarge": (413, "RequestTooLargeException"),
    "tooManyRequests": (429, "TooManyRequestsException"),
    "quotaExceeded": (429, "TooManyRequestsException"),
    "notServed": (501, "NotImplementedException"),
    "invocationLost": (502, "InvocationLostException"),
    "insufficientResources": (503, "ServiceUnavailableException"),
    "noAvailableAgents": (503, "ServiceUnavailableException"),
}
_BY_CLASS: tuple[tuple[type[WeftError], str], ...] = (
    (NotAuthenticated, "notAuthenticated"),
    (Forbidden, "forbidden"),
    (NotFound, "notFound"),
    (TooLarge, "tooLarge"),
    (InvalidInput, "invalidInput"),
    (InUse, "inUse"),
    (IllegalTransition, "inUse"),
)


def type_of(error: WeftError) -> tuple[int, str]:
    """HTTP status and Lambda's type for an error."""
    if error.token in TYPES:
        return TYPES[error.token]
    for cls, reason in _BY_CLASS:
        if isinstance(error, cls):
            return TYPES[reason]
    return (503, "ServiceUnavailableException") if isinstance(error, Unavailable) else (500, "ServiceException")


def answer_error(error: WeftError, request_id: str) -> Answer:
    """The error as AWS's SDKs read it; they show their users only the Message. WeftReason is weft's own."""
    status, type_ = type_of(error)
    document: dict[str, Any] = {
        "Type": "User" if status < 500 else "Service",
        "Message": f"{error.message} ({error.hint})" if error.hint else error.message,
        "WeftReason": error.token,
    }
    headers = (JSON, ("x-amzn-errortype", type_), ("x-amzn-requestid", request_id), *retry_after(error))
    return Answer(status, msgspec.json.encode(document), headers)


def retry_after(error: WeftError) -> tuple[tuple[str, str], ...]:
    """The header that says when to try again, if the error does."""
    seconds = error.retry_after_seconds
    return () if seconds is None else (("retry-after", str(max(1, math.ceil(seconds)))),)


def answer_json(document: object, request_id: str, status: int = 200) -> Answer:
    return Answer(status, msgspec.json.encode(document), (JSON, ("x-amzn-requestid", request_id)))


def refuse(status: int, message: str) -> Answer | None:
    """The answer to a request that the HTTP server refuses. An incomplete body gets none: then SDKs try again."""
    return None if status == 408 else _make_answer(status, message)


def _make_answer(status: int, message: str) -> Answer:
    type_ = {413: "RequestTooLargeException", 500: "ServiceException", 503: "ServiceUnavailableException"}
    body = {"Type": "User" if status < 500 else "Service", "Message": message}
    return Answer(
        status, msgspec.json.encode(body), (JSON, ("x-amzn-errortype", type_.get(status, "InvalidRequestException")))
    )


FAILED = _make_answer(500, "internal error")
