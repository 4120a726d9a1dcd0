"""Meaning of an S3 server's refusals and silences, as errors that name the field and the remedy. None has credentials in it."""

from __future__ import annotations

import re

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    NoCredentialsError,
    ParamValidationError,
    SSLError,
)

from weft.backup.errors import (
    ObjectMissing,
    bad_access_key,
    bad_secret_key,
    clocks_differ,
    denied,
    no_bucket,
    no_tls,
    read_only,
    refused,
    repository_full,
    unreachable,
    untrusted,
    wrong_region,
)
from weft.objects.errors import InvalidInput, WeftError

EXISTS = {"PreconditionFailed", "412", "ConditionalRequestConflict"}
_MISSING = {"NoSuchKey", "NoSuchVersion", "404", "NotFound"}
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled"}
_FULL = {"QuotaExceeded", "EntityTooLarge", "InsufficientCapacity", "507"}
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
_PASSING = {"SlowDown", "RequestTimeout", "Throttling", "TooManyRequests"}
_OBJECT = re.compile(r"^(<.*>|\w+\(host=.*?\)): ")  # that a library names before its words
_MOST = 200  # characters of what a server or library says


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))[:60]


def explain_answer(url: str, error: ClientError, key: str, *, writes: bool) -> WeftError | ObjectMissing:
    """Explain a refusal. Only what may pass by itself is ``unreachable``."""
    code = code_of(error)
    if code in _MISSING and key:
        return ObjectMissing(key)
    if code in {"NoSuchBucket", *_MISSING, "InvalidBucketName"}:
        return no_bucket(url)
    if code in _FULL:
        return repository_full(url, code)
    if code == "InvalidAccessKeyId":
        return bad_access_key(url, code)
    if code == "SignatureDoesNotMatch":
        return bad_secret_key(url, code)
    if code == "RequestTimeTooSkewed":
        return clocks_differ(url, None)
    if code in _REGION:
        return wrong_region(url, code)
    if code in _DENIED:
        return read_only(url, code) if writes else denied(url, code)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    said = f"{code}: {error.response.get('Error', {}).get('Message') or status}"[:_MOST]
    return unreachable(url, said) if status >= 500 or code in _PASSING else refused(url, said)


def explain_silence(url: str, error: BotoCoreError) -> WeftError:
    """Explain a request that had no answer, or none that could be read."""
    if isinstance(error, ParamValidationError):
        return InvalidInput(
            f"{url} names no bucket that could exist",
            field="spec.url",
            hint="a bucket's name has 3 to 63 small letters, digits, dots and dashes",
        )
    if isinstance(error, NoCredentialsError):
        return InvalidInput(
            f"no access key for {url} was found",
            field="spec.values",
            hint="give one; for weft server backup and restore: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if isinstance(error.kwargs.get("error"), ValueError):  # its words have the key in them
        return bad_access_key(url, "it contains a character that can't be sent")
    if isinstance(error, ConnectionClosedError):
        return unreachable(url, "the server closed the connection without an answer")
    cause = _find_cause(error)
    if isinstance(error, SSLError):
        return no_tls(url) if "WRONG_VERSION_NUMBER" in cause or "record layer" in cause else untrusted(url, cause)
    return unreachable(url, cause)


def _find_cause(error: BotoCoreError) -> str:
    """The innermost reason, without the objects and URLs that libraries put around it."""
    inner: object = error.kwargs.get("error") or error
    while isinstance(reason := getattr(inner, "reason", None), Exception):
        inner = reason
    words = str(inner)
    return _OBJECT.sub("", words)[:_MOST]
