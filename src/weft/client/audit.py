"""The audit log, as the server shows it to the client's token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import urlencode

import msgspec

from weft.client.answer import raise_problem
from weft.client.http import Http
from weft.trust.audit_chain import AuditVerdict


class _Page(msgspec.Struct, rename={"follow": "continue"}):
    items: list[msgspec.Raw]
    follow: int | str | None = None


class ServerVerdicts(AuditVerdict, kw_only=True):
    """Verdict on the log of ``server``, and those on the other servers' by name; ``away``: servers that gave none."""

    server: str = ""
    others: dict[str, AuditVerdict] = msgspec.field(default_factory=dict)
    away: list[str] = msgspec.field(default_factory=list)


def read_newest(http: Http, query: Mapping[str, str], limit: int = 100) -> list[msgspec.Raw]:
    """The newest records that ``query`` selects (since, until, actor, kind, project, outcome), oldest first; each as its
    line in the log. At most 1000."""
    return _read(http, {**query, "limit": str(limit)}).items


def read_all(http: Http, query: Mapping[str, str], after: int = 0) -> Iterator[msgspec.Raw]:
    """All records after number ``after`` that ``query`` selects, oldest first; they are fetched page by page."""
    follow: int | str | None = after
    while follow is not None:
        page = _read(http, {**query, "after": str(follow)})
        yield from page.items
        follow = page.follow


def verify_servers(http: Http) -> ServerVerdicts:
    """Verdicts of the servers when each follows its log's chain."""
    answer = http.request("GET", "/v1/audit:verify", timeout_seconds=600.0)
    raise_problem(answer)
    return msgspec.json.decode(answer.body, type=ServerVerdicts)


def _read(http: Http, query: Mapping[str, str]) -> _Page:
    answer = http.request("GET", f"/v1/audit?{urlencode(query)}")
    raise_problem(answer)
    return msgspec.json.decode(answer.body, type=_Page)
