"""Signature Version 4: what botocore signs is verified, and whatever of it is changed is refused."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from weft.objects.errors import NotAuthenticated
from weft.trust.sigv4 import check_scope, read_authorization, verify

KEY, SECRET = "WEFTAAAABBBBCCCCDDDD", "secret/with+signs"
URL = "https://127.0.0.1:8445/2015-03-31/functions"


def time_now() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()


def sign(
    method: str = "POST",
    url: str = f"{URL}/thumb/invocations",
    body: bytes = b'{"n":1}',
    headers: dict[str, str] | None = None,
    secret: str = SECRET,
    region: str = "weft",
    service: str = "lambda",
) -> dict[str, Any]:
    """A request as botocore signs it, as ``verify`` wants it."""
    request = AWSRequest(method=method, url=url, data=body, headers=headers or {})
    SigV4Auth(Credentials(KEY, secret), service, region).add_auth(request)
    rest = request.url.split("://", 1)[1]
    host, _, target = rest.partition("/")
    path, _, query = target.partition("?")
    given = {name.lower(): [str(value)] for name, value in request.headers.items()}
    given.setdefault("host", [host])
    return {"method": method, "path": f"/{path}", "query": query, "headers": given, "body": body}


def check(given: dict[str, Any], secret: str = SECRET, now: float | None = None) -> None:
    headers = given["headers"]
    signed = read_authorization(headers["authorization"][0])
    check_scope(signed, "weft", "lambda", headers.get("x-amz-date", [""])[0], time_now() if now is None else now)
    verify(
        signed,
        secret,
        method=given["method"],
        path=given["path"],
        query=given["query"],
        headers=headers,
        body_sha256=hashlib.sha256(given["body"]).hexdigest(),
    )


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"body": b""},
        {"method": "GET", "url": f"{URL}/", "body": b""},
        {"method": "GET", "url": f"{URL}/?MaxItems=10&Marker=a%2Fb%3D", "body": b""},
        {"method": "GET", "url": f"{URL}?b=2&a=1&a=0&empty=&c=%20x%2B", "body": b""},
        {"url": f"{URL}/arn%3Aweft%3Alambda%3Aweft%3Adefault%3Afunction%3Athumb/invocations?Qualifier=%24LATEST"},
        {"url": f"{URL}/thumb:prod/invocations"},
        {"url": f"{URL}/a%20b%C3%A9~_-./invocations"},
        {"url": "https://127.0.0.1:8445"},
        {"url": "https://127.0.0.1:8445/a/./b/../c//d/"},
        {"headers": {"X-Amz-Client-Context": "e30=", "X-Amz-Invocation-Type": "Event", "Content-Type": "a;  b   c "}},
        {"body": b"\x00" * 100_000},
    ],
)
def test_what_botocore_signs_is_verified(more: dict[str, Any]) -> None:
    check(sign(**more))


CHANGES: dict[str, Any] = {
    "the body": lambda r: r | {"body": b'{"n":2}'},
    "the method": lambda r: r | {"method": "PUT"},
    "the path": lambda r: r | {"path": "/2015-03-31/functions/other/invocations"},
    "the query": lambda r: r | {"query": "Qualifier=2"},
    "the host": lambda r: r | {"headers": r["headers"] | {"host": ["elsewhere"]}},
    "a signed header": lambda r: r | {"headers": r["headers"] | {"x-amz-client-context": ["eyJ9"]}},
    "a signed header's absence": lambda r: (
        r | {"headers": {k: v for k, v in r["headers"].items() if k != "x-amz-client-context"}}
    ),
    "a signed header twice": lambda r: r | {"headers": r["headers"] | {"x-amz-client-context": ["e30=", "e30="]}},
    "an unsigned x-amz header": lambda r: r | {"headers": r["headers"] | {"x-amz-log-type": ["Tail"]}},
    "the body's digest": lambda r: r | {"headers": r["headers"] | {"x-amz-content-sha256": ["UNSIGNED-PAYLOAD"]}},
    "no date": lambda r: r | {"headers": {k: v for k, v in r["headers"].items() if k != "x-amz-date"}},
    "a date of words": lambda r: r | {"headers": r["headers"] | {"x-amz-date": ["20260231T000000Z"]}},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_request_that_was_changed_is_refused(what: str) -> None:
    given = sign(headers={"X-Amz-Client-Context": "e30="})
    check(given)
    with pytest.raises(NotAuthenticated):
        check(CHANGES[what](given))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"secret": SECRET + "x"}, "doesn.t match this request"),
        ({"region": "eu-central-1"}, "region 'eu-central-1'; this is 'weft'"),
        ({"service": "s3"}, "service 's3'"),
    ],
)
def test_what_was_signed_otherwise_is_refused_and_says_why(more: dict[str, Any], said: str) -> None:
    with pytest.raises(NotAuthenticated, match=said):
        check(sign(**more))


@pytest.mark.parametrize(("seconds", "said"), [(310, "expired"), (-310, "not yet current"), (86400 * 400, "expired")])
def test_a_date_more_than_five_minutes_off_is_refused(seconds: float, said: str) -> None:
    given = sign()
    check(given, now=time_now() + (280 if seconds > 0 else -280))
    with pytest.raises(NotAuthenticated, match=said):
        check(given, now=time_now() + seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 ",
        "AWS4-HMAC-SHA1 Credential=a/20260101/weft/lambda/aws4_request, SignedHeaders=host, Signature=" + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=a/20260101/weft/lambda/aws4_request, SignedHeaders=host",
        "AWS4-HMAC-SHA256 Credential=a/20260101/weft/lambda, SignedHeaders=host, Signature=" + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=a/20260101/weft/lambda/aws4_request, SignedHeaders=host, Signature=xyz",
        "AWS4-HMAC-SHA256 Credential=a/20260101/weft/lambda/aws4_request, SignedHeaders=Host, Signature=" + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=a/20260101/weft/lambda/aws4_request, SignedHeaders=x;host, Signature=" + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=a/20260101/weft/lambda/aws4_request, SignedHeaders=host;host, Signature="
        + "0" * 64,
        "AWS4-HMAC-SHA256 Credential=a, Credential=b, SignedHeaders=host, Signature=" + "0" * 64,
        "AWS4-HMAC-SHA256 " + "x" * 50_000,
        "AWS4-HMAC-SHA256 " + "=" * 50_000,
    ],
)
def test_a_header_that_is_no_signature_is_refused(text: str) -> None:
    with pytest.raises(NotAuthenticated) as refused:
        read_authorization(text)
    assert refused.value.token == "incompleteSignature"


def test_the_documented_example_of_a_signing_key_and_signature() -> None:
    """AWS's published example (get-vanilla): service "service", region us-east-1, a known secret and signature."""
    signed = read_authorization(
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request,"
        " SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
    )
    verify(
        signed,
        "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
        method="GET",
        path="/",
        query="",
        headers={"host": ["example.amazonaws.com"], "x-amz-date": ["20150830T123600Z"]},
        body_sha256=hashlib.sha256(b"").hexdigest(),
    )
