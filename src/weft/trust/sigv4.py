"""Verifies AWS Signature Version 4: who signed a request, and that it wasn't changed. Pure.

Source: AWS, "Create a signed AWS API request" (header form, for services other than S3). A captured request can be replayed
while its date is accepted, ± 5 minutes: that is the scheme's own limit, and TLS keeps requests from being captured."""

from __future__ import annotations

import datetime
import functools
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from posixpath import normpath
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from weft.objects.errors import NotAuthenticated

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW_SECONDS = 300.0
_PART = re.compile(r"\s*(Credential|SignedHeaders|Signature)=([^,\s]+)\s*")
_SCOPE = re.compile(r"([A-Za-z0-9_-]{1,128})/(\d{8})/([A-Za-z0-9_-]{1,64})/([A-Za-z0-9_-]{1,64})/aws4_request")
_DATE = re.compile(r"\d{8}T\d{6}Z")
_SIGNATURE = re.compile(r"[0-9a-f]{64}")


class Signed(NamedTuple):
    """The parts of an Authorization header."""

    key_id: str
    day: str
    region: str
    service: str
    headers: tuple[str, ...]
    signature: str


def is_signed(authorization: str) -> bool:
    return authorization.startswith("AWS4-")


def read_authorization(text: str) -> Signed:
    """An Authorization header of this scheme. Raises NotAuthenticated (``incompleteSignature``)."""
    algorithm, _, rest = text.partition(" ")
    if algorithm != ALGORITHM:
        raise _incomplete(f"the signature's algorithm is {algorithm[:40]!r}, not {ALGORITHM}")
    parts: dict[str, str] = {}
    for piece in rest.split(","):
        found = _PART.fullmatch(piece)
        if found is None or found[1] in parts:
            raise _incomplete("the Authorization header isn't Credential=…, SignedHeaders=…, Signature=…")
        parts[found[1]] = found[2]
    if missing := {"Credential", "SignedHeaders", "Signature"} - parts.keys():
        raise _incomplete(f"the Authorization header lacks {', '.join(sorted(missing))}")
    scope = _SCOPE.fullmatch(parts["Credential"])
    if scope is None:
        raise _incomplete("the credential isn't KEY/DATE/REGION/SERVICE/aws4_request")
    names = tuple(parts["SignedHeaders"].split(";"))
    if list(names) != sorted(set(names)) or any(name != name.lower() for name in names):
        raise _incomplete("SignedHeaders are not sorted and in lower case")
    if not _SIGNATURE.fullmatch(parts["Signature"]):
        raise _incomplete("the signature isn't 64 hexadecimal digits")
    return Signed(scope[1], scope[2], scope[3], scope[4], names, parts["Signature"])


def check_scope(signed: Signed, region: str, service: str, date: str, now: float) -> None:
    """Raises NotAuthenticated for another region, service or time than ``now`` (unix seconds). ``date`` is X-Amz-Date."""
    if signed.service != service:
        raise _invalid(f"the credential is for service {signed.service!r}, not {service!r}")
    if signed.region != region:
        raise _invalid(
            f"the credential is for region {signed.region!r}; this is {region!r}", hint="set AWS_DEFAULT_REGION"
        )
    try:
        if not _DATE.fullmatch(date):
            raise ValueError(date)
        made = datetime.datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    except ValueError:
        raise _incomplete("X-Amz-Date is missing, or isn't like 20260131T235959Z") from None
    if date[:8] != signed.day:
        raise _invalid("the credential's date is not X-Amz-Date's")
    if abs(made.timestamp() - now) > SKEW_SECONDS:
        here = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        word = "expired" if made.timestamp() < now else "not yet current"
        raise _invalid(
            f"signature {word}: it was made at {date}, and it is {here} here (at most 5 minutes apart)",
            hint="set the clock of the calling machine",
        )


def verify(
    signed: Signed,
    secret: str,
    *,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, Sequence[str]],
    body_sha256: str,
) -> None:
    """Raises NotAuthenticated unless ``secret`` signed exactly this request. ``path`` and ``query`` are as they came on the
    wire, ``headers`` by name in lower case, ``body_sha256`` in hexadecimal digits."""
    for name in headers:
        if (name == "host" or name.startswith("x-amz-")) and name not in signed.headers:
            raise _invalid(f"header {name[:60]} is not signed")
    if "host" not in signed.headers or any(name not in headers for name in signed.headers):
        raise _invalid("a signed header is missing")
    signed_digest = headers.get("x-amz-content-sha256")
    if signed_digest is not None and list(signed_digest) != [body_sha256]:
        raise _invalid("the body isn't the signed one (x-amz-content-sha256)")
    date = headers["x-amz-date"][0] if headers.get("x-amz-date") else ""
    canonical = "\n".join(
        (
            method,
            _canonical_path(path),
            _canonical_query(query),
            "".join(f"{name}:{','.join(' '.join(v.split()) for v in headers[name])}\n" for name in signed.headers),
            ";".join(signed.headers),
            body_sha256,
        )
    )
    scope = f"{signed.day}/{signed.region}/{signed.service}/aws4_request"
    text = f"{ALGORITHM}\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = _signing_key(secret, signed.day, signed.region, signed.service)
    if not hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), signed.signature):
        raise _invalid(
            "the signature doesn't match this request and the access key's secret", hint="check AWS_SECRET_ACCESS_KEY"
        )


@functools.lru_cache(maxsize=256)
def _signing_key(secret: str, day: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _canonical_path(path: str) -> str:
    """Path without dot segments, each segment encoded once more than it came."""
    if not path or path == "/":
        return "/"
    clean = normpath(path) if "/." in path or "//" in path else path
    clean = "/" + clean.lstrip("/")
    if path.endswith(("/", "/.", "/..")) and not clean.endswith("/"):
        clean += "/"
    return quote(clean, safe="/~")


def _canonical_query(query: str) -> str:
    if not query:
        return ""
    pairs = []
    for piece in query.split("&"):
        name, _, value = piece.partition("=")
        pairs.append(tuple(quote(unquote_to_bytes(part), safe="-_.~") for part in (name, value)))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def _incomplete(message: str) -> NotAuthenticated:
    return NotAuthenticated(
        message, reason="incompleteSignature", hint="sign with Signature Version 4, as AWS's SDKs do"
    )


def _invalid(message: str, hint: str | None = None) -> NotAuthenticated:
    return NotAuthenticated(message, reason="invalidSignature", hint=hint)
