"""Traces, as the server shows them to the client's token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from weft.client.answer import raise_problem
from weft.client.http import Http


def read_trace(http: Http, trace: str) -> dict[str, Any]:
    """Its spans as OTLP has them in JSON. Raises NotFound, InvalidInput."""
    return _get(http, f"/v1/traces/{quote(trace, safe='')}")


def list_traces(http: Http, query: Mapping[str, str]) -> list[dict[str, Any]]:
    """Newest first, those that ``query`` selects (project, since, slow, object, limit)."""
    items: list[dict[str, Any]] = _get(http, f"/v1/traces?{urlencode(query)}")["items"]
    return items


def _get(http: Http, path: str) -> dict[str, Any]:
    answer = http.request("GET", path, timeout_seconds=60.0)
    raise_problem(answer)
    return msgspec.json.decode(answer.body, type=dict[str, Any])
