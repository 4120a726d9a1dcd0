"""A request to a function's own address as its event, and its answer as a response. Pure.

Source: AWS Lambda, "Invoking Lambda function URLs: request and response payloads" (payload format 2.0)."""

from __future__ import annotations

import base64
import binascii
import datetime
import re
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from weft.gateway.function.invocation.call import InvocationOutcome
from weft.gateway.lambda_api.answers import JSON
from weft.gateway.lambda_api.http import LambdaRequest
from weft.serving.answer import Answer

PREFIX = "/url/"
_TEXT = re.compile(r"text/.*|application/(?:[\w.+-]*\+)?(?:json|xml|javascript)\b.*", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]{0,8192}")
# Headers of the connection between caller and gateway, or that the gateway itself sets.
_OURS = frozenset(
    "connection content-length transfer-encoding keep-alive upgrade te trailer date"
    " proxy-authenticate proxy-authorization proxy-connection".split()
)
_UNSEEN = frozenset(("connection", "transfer-encoding", "keep-alive", "te", "trailer", "proxy-authorization", "expect"))


class BadAnswer(Exception):
    """A function's answer is no HTTP response; the sentence is for its owner's log."""


def make_event(
    request: LambdaRequest,
    *,
    project: str,
    name: str,
    path: str,
    request_id: str,
    now: float,
    drop_authorization: bool,
) -> bytes:
    """``path`` is the part after the function's name, with its slash, as it came. ``drop_authorization``: the function doesn't see
    the caller's credentials for weft. ``now``: unix seconds."""
    headers = {
        key: ",".join(values)
        for key, values in request.headers.items()
        if key != "cookie" and key not in _UNSEEN and not (drop_authorization and _is_credential(key))
    }
    cookies = [part.strip() for value in request.headers.get("cookie", ()) for part in value.split(";") if part.strip()]
    at = datetime.datetime.fromtimestamp(now, datetime.UTC)
    host = request.header("host")
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": unquote(path),
        "rawQueryString": request.query,
        "headers": headers,
        "requestContext": {
            "accountId": project,
            "apiId": name,
            "domainName": host,
            "domainPrefix": host.partition(".")[0],
            "http": {
                "method": request.method,
                "path": unquote(path),
                "protocol": "HTTP/1.1",
                "sourceIp": request.address,
                "userAgent": request.header("user-agent"),
            },
            "requestId": request_id,
            "routeKey": "$default",
            "stage": "$default",
            "time": at.strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "timeEpoch": int(now * 1000),
        },
        "isBase64Encoded": False,
    }
    if cookies:
        event["cookies"] = cookies
    if request.query:
        given: dict[str, list[str]] = {}
        for key, value in parse_qsl(request.query, keep_blank_values=True):
            given.setdefault(key, []).append(value)
        event["queryStringParameters"] = {key: ",".join(values) for key, values in given.items()}
    if request.body:
        event["body"], event["isBase64Encoded"] = _read_body(request)
    return msgspec.json.encode(event)


def read_answer(outcome: InvocationOutcome) -> Answer:
    """The response for a function's answer. Raises BadAnswer."""
    given = ("x-amzn-requestid", outcome.id)
    if outcome.error:
        raise BadAnswer(f"it failed: {outcome.error_type or outcome.error}")
    try:
        answer = msgspec.json.decode(outcome.payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadAnswer("its answer is not JSON") from None
    if not isinstance(answer, dict) or "statusCode" not in answer:
        return Answer(200, outcome.payload, (JSON, given))
    status = answer["statusCode"]
    if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
        raise BadAnswer(f"statusCode {str(status)[:40]!r} is not an HTTP status from 200 to 599")
    body = _make_body(answer)
    headers = [given]
    own = answer.get("headers") or {}
    if not isinstance(own, dict) or len(own) > 200:
        raise BadAnswer("headers is not an object of at most 200 entries")
    for key, value in own.items():
        if not isinstance(value, (str, int, float, bool)):
            raise BadAnswer(f"header {key[:60]!r} is not text")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        headers.append(_check_header(key.lower(), text))
    cookies = answer.get("cookies") or []
    if not isinstance(cookies, list) or not all(isinstance(one, str) for one in cookies) or len(cookies) > 50:
        raise BadAnswer("cookies is not a list of at most 50 texts")
    headers += [_check_header("set-cookie", one) for one in cookies]
    headers = [(key, value) for key, value in headers if key not in _OURS]
    if not any(key == "content-type" for key, _ in headers):
        headers.append(JSON)
    return Answer(status, body, tuple(headers))


def _is_credential(name: str) -> bool:
    return name == "authorization" or name in ("x-amz-date", "x-amz-security-token", "x-amz-content-sha256")


def _read_body(request: LambdaRequest) -> tuple[str, bool]:
    kind = request.header("content-type")
    if (_TEXT.fullmatch(kind) or not kind) and not request.header("content-encoding"):
        try:
            return request.body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(request.body).decode(), True


def _make_body(answer: dict[str, Any]) -> bytes:
    body = answer.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        return msgspec.json.encode(body)
    if answer.get("isBase64Encoded") is True:
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise BadAnswer("its body is not base64, and isBase64Encoded is true") from None
    return body.encode("utf-8", "surrogatepass")


def _check_header(name: str, value: str) -> tuple[str, str]:
    if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
        raise BadAnswer(f"header {name[:60]!r} has an invalid character, or is too long")
    return name, value
