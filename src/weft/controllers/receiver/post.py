"""Posts JSON to an http(s) URL, and reads the beginning of the answer. Blocks."""

from __future__ import annotations

import contextlib
import http.client
import math
from collections.abc import Mapping
from urllib.parse import urlsplit

from weft.contracts.http.connection import FAILURES, HttpConnection
from weft.controllers.receiver.line import SECONDS, ReceiverConnection, make_context
from weft.controllers.receiver.outcome import MOST_ANSWER, DeliveryOutcome, clean, judge

_BODY_SECONDS = 1.0  # that are waited for an answer's body
_MOST_BYTES = 4 * MOST_ANSWER


def post(line: ReceiverConnection, url: str, body: bytes, headers: Mapping[str, str], ca: str) -> DeliveryOutcome:
    """One attempt, until ``line`` is cut. Raises OSError, http.client.HTTPException."""
    tls = make_context(ca) if urlsplit(url).scheme == "https" else None
    fixed = {"Content-Type": "application/json", "User-Agent": "weft", "Connection": "close"}
    with contextlib.closing(HttpConnection(url, tls=tls, silence_seconds=SECONDS, dial=line.connect)) as connection:
        answer = connection.begin("POST", url, body, {**fixed, **headers}, ends=math.inf, most_bytes=_MOST_BYTES)
        connection.shorten(_BODY_SECONDS)
        with answer:
            return judge(answer.status, _read_answer(answer) if line.is_open_place else "")


def _read_answer(answer: http.client.HTTPResponse) -> str:
    """The beginning of its body, if that comes at once: the status is what counts."""
    body = b""
    with contextlib.suppress(*FAILURES):
        body = answer.read1(_MOST_BYTES)
    return clean(body.decode(errors="replace"))
