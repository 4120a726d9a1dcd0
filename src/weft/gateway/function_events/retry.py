"""The verdict on an event that ran, or couldn't run. Pure."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable
from typing import Any

import msgspec

from weft.gateway.function.invocation.call import InvocationOutcome
from weft.gateway.function_events.queue import Event
from weft.objects.errors import InvalidInput, NotFound, TooLarge, WeftError

FIRST_RETRY_SECONDS = 10.0
LONGEST_RETRY_SECONDS = 600.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
UNKNOWN_VERSION_SECONDS = 60.0  # for which a gateway may not have heard of a version yet
MOST_ERROR = 2000  # characters of it that are kept


class Terms(msgspec.Struct, frozen=True):
    """A function's settings for events."""

    retries: int = 2
    max_age: float = 6 * 3600.0  # an event may wait so many seconds
    dead_letter: str = ""  # the function that gets events that failed for good


class EventDone(msgspec.Struct, frozen=True):
    """It ran well."""


class Retry(msgspec.Struct, frozen=True):
    """It ran and failed; it runs again."""

    tries: int
    due_at: float
    error_type: str
    error: str


class DeadLetter(msgspec.Struct, frozen=True):
    """It failed for good."""

    tries: int
    error_type: str
    error: str
    condition: str  # as in the receiver's record


class PauseFunction(msgspec.Struct, frozen=True):
    """It couldn't run: no event of this function will, for a moment."""

    reason: str
    why: str


Verdict = EventDone | Retry | DeadLetter | PauseFunction


def judge(
    event: Event, result: InvocationOutcome | WeftError, terms: Terms, now: float, draw: Callable[[], float]
) -> Verdict:
    """``draw`` gives a number from 0 up to 1, so that events that failed together don't run again together."""
    if isinstance(result, InvocationOutcome) and not result.error:
        return EventDone()
    if isinstance(result, InvocationOutcome):
        return _failed(event, *_read_error(result), terms, now, draw)
    if result.token == "invocationLost":
        return _failed(event, result.token, result.message, terms, now, draw)
    if isinstance(result, (InvalidInput, TooLarge)):
        return DeadLetter(event.tries, result.token, result.message[:MOST_ERROR], "Invalid")
    if is_too_old(event, terms, now):
        return DeadLetter(event.tries, result.token, result.message[:MOST_ERROR], "EventAgeExceeded")
    if isinstance(result, NotFound) and event.qualifier:  # its version is gone: the function's other events can run
        if now - event.accepted_at > UNKNOWN_VERSION_SECONDS:
            return DeadLetter(event.tries, result.token, result.message[:MOST_ERROR], "Invalid")
        return Retry(event.tries, now + UNKNOWN_VERSION_SECONDS / 12, result.token, result.message[:MOST_ERROR])
    return PauseFunction(result.token, result.message)


def is_too_old(event: Event, terms: Terms, now: float) -> bool:
    return now - event.accepted_at > terms.max_age


def pause_seconds(count: int, draw: Callable[[], float] = random.random) -> float:
    """How long a function's events pause after ``count`` failures to run one in a row."""
    longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(count - 1, 20))
    return longest * (0.5 + draw() / 2)


def make_record(event: Event, dead: DeadLetter, arn: str, now: float) -> bytes:
    """A dead-letter function's input. Source: AWS Lambda, "Capturing records of asynchronous invocations", on failure."""
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    record: dict[str, Any] = {
        "version": "1.0",
        "timestamp": at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03}Z",
        "requestContext": {
            "requestId": event.id,
            "functionArn": arn,
            "condition": dead.condition,
            "approximateInvokeCount": dead.tries,
        },
        "requestPayload": _as_json(event.payload),
        "responseContext": {"statusCode": 200, "executedVersion": event.qualifier or "$LATEST"},
        "responsePayload": {"errorType": dead.error_type, "errorMessage": dead.error},
    }
    if dead.condition == "RetriesExhausted":
        record["responseContext"]["functionError"] = "Unhandled"
    return msgspec.json.encode(record)


def _failed(
    event: Event, error_type: str, error: str, terms: Terms, now: float, draw: Callable[[], float]
) -> Retry | DeadLetter:
    tries, error = event.tries + 1, error[:MOST_ERROR]
    if tries > terms.retries:
        return DeadLetter(tries, error_type, error, "RetriesExhausted")
    delay = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** (tries - 1)) * (0.9 + draw() / 5)
    if now + delay - event.accepted_at > terms.max_age:
        return DeadLetter(tries, error_type, error, "EventAgeExceeded")
    return Retry(tries, now + delay, error_type, error)


def _read_error(outcome: InvocationOutcome) -> tuple[str, str]:
    try:
        answer = msgspec.json.decode(outcome.payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        answer = None
    message = answer.get("errorMessage", "") if isinstance(answer, dict) else ""
    type_ = outcome.error_type or (answer.get("errorType", "") if isinstance(answer, dict) else "")
    return str(type_ or outcome.error), str(message)


def _as_json(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return payload.decode("utf-8", "replace")
