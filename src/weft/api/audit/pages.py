"""The audit log over HTTP: pages of its records, and whether its chain is whole. Each server of the fabric has a log with a chain
of its own; they are read merged by time."""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from weft.api.audit.merge import Part, merge_newest, merge_parts, read_place, show_place
from weft.api.auth.authorise import require_permission, require_person
from weft.api.context import ApiContext
from weft.api.request.call import JSON, Call, json_answer, read_count
from weft.api.route import Route, Topic, refer_to
from weft.api.servers.away import AWAY, name_away
from weft.api.servers.merge import ask_others
from weft.client.audit import ServerVerdicts
from weft.objects.errors import InvalidInput, Unavailable
from weft.objects.quantity import parse_moment
from weft.serving.answer import Answer
from weft.telemetry.audit.files import find_before, read_after, read_newest
from weft.trust.audit_chain import AuditRecord, AuditVerdict, read_link, read_record
from weft.trust.credentials import TOKEN_PREFIX

_PAGE, _MOST = 100, 1000
VERIFY_SECONDS = 600.0  # in which a server follows the chain of a log of 4 GiB
_MOST_READ = 50_000  # records, for one page
_SELECTION = ("since", "until", "actor", "kind", "project", "outcome", "after", "limit")
_OUTCOMES = ("allowed", "refused", "failed")
_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)
_encoder = msgspec.json.Encoder()


class _Wanted(msgspec.Struct, frozen=True):
    """Filter of records: "" is any."""

    since: str = ""  # as in records
    until: str = ""
    actor: str = ""
    kind: str = ""
    projects: frozenset[str] | None = None  # None: any
    outcome: str = ""

    def takes(self, record: AuditRecord) -> bool:
        return (
            (not self.since or record.at >= self.since)
            and (not self.until or record.at < self.until)
            and self.actor in ("", record.actor.name, f"{TOKEN_PREFIX}{record.actor.id}")
            and (self.projects is None or record.project in self.projects)
            and self.outcome in ("", record.outcome)
            and (not self.kind or any(one.kind == self.kind for one in record.objects))
        )


class AuditPage(msgspec.Struct, rename={"follow": "continue"}):
    """Records, oldest first, each as its line in the log. ``continue``: ``after`` for the next page; null: there is none. ``away``:
    servers whose records are missing."""

    items: list[msgspec.Raw]
    follow: int | str | None = None
    away: list[str] = []


async def read(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/audit``: the newest records; with ``after`` those after that one, page by page. Only
    records of the projects in which the actor may read them."""
    what = "read the audit log"
    if asked := call.loose_query.get("project"):
        require_permission(call.actor, "audit:list", asked, what)
    else:
        require_person(call.actor, what)
        call.actor.require_somewhere("audit:list", what)
    projects = frozenset({asked}) if asked else call.actor.find_projects("audit:list")
    query = call.query(*_SELECTION)
    wanted = _Wanted(
        since=_read_moment(query, "since"),
        until=_read_moment(query, "until"),
        actor=query.get("actor", ""),
        kind=query.get("kind", ""),
        projects=projects,
        outcome=query.get("outcome", ""),
    )
    if wanted.outcome and wanted.outcome not in _OUTCOMES:
        raise InvalidInput(
            f"query parameter outcome: {wanted.outcome[:20]!r} is not a valid outcome",
            field="outcome",
            hint=f"one of {', '.join(_OUTCOMES)}",
        )
    limit = read_count(query, "limit", 0, _MOST) or (_MOST if "after" in query else _PAGE)
    own = context.own.name if context.own is not None else ""
    after = read_place(query["after"], own) if "after" in query else None
    page = await asyncio.to_thread(
        _read_page, context.audit.folder, wanted, None if after is None else after.get(own, 0), limit
    )
    if context.others.list_all() and not call.is_forwarded:
        page = await _add_others(context, call, query, page, own, after, limit)
    return Answer(200, _encoder.encode(page), (*JSON, *name_away(page.away)))


async def _add_others(
    context: ApiContext,
    call: Call,
    query: dict[str, str],
    page: AuditPage,
    own: str,
    after: dict[str, int] | None,
    limit: int,
) -> AuditPage:
    """Merge the other servers' pages into this server's."""

    def ask(name: str) -> dict[str, str]:
        return {**query, "limit": str(limit)} | ({} if after is None else {"after": str(after.get(name, 0))})

    others = await ask_others(context, call, AuditPage, query=ask)
    pages = {own: page, **others.found}
    if after is None:
        items = await asyncio.to_thread(merge_newest, [one.items for one in pages.values()], limit)
        return AuditPage(items, None, others.away)
    parts = {name: Part(one.items, one.follow if isinstance(one.follow, int) else None) for name, one in pages.items()}
    merged = await asyncio.to_thread(merge_parts, parts, after, limit)
    away = {name: after[name] for name in others.away if name in after}
    place = show_place({**merged.reached, **away}) if merged.more else None
    return AuditPage(merged.items, place, others.away)


async def verify(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/audit:verify``: an AuditVerdict on the whole log, up to its newest record, and on those of the other servers."""
    require_permission(call.actor, "audit:verify", None, "verify the audit log")
    call.query()
    if context.audit.is_verified:
        raise Unavailable("the audit log is being verified", hint="try again", retry_after_seconds=5)
    own, others = await asyncio.gather(
        asyncio.to_thread(context.audit.verify),
        ask_others(context, call, AuditVerdict, seconds=VERIFY_SECONDS),
    )
    verdicts = msgspec.convert(
        msgspec.to_builtins(own)
        | {
            "server": context.own.name if context.own is not None else "",
            "others": msgspec.to_builtins(others.found),
            "away": others.away,
        },
        ServerVerdicts,
    )
    answer = json_answer(verdicts)
    answer.headers += name_away(others.away)
    return answer


def _read_page(folder: Path, wanted: _Wanted, after: int | None, limit: int) -> AuditPage:
    if after is None:
        return AuditPage(_list_newest(folder, wanted, limit))
    if wanted.since:
        after = max(after, find_before(folder, wanted.since))
    items: list[msgspec.Raw] = []
    reached = after
    for count, (line, record) in enumerate(_decode(read_after(folder, after))):
        if wanted.until and record.at >= wanted.until:
            break
        if len(items) == limit or count == _MOST_READ:
            return AuditPage(items, reached)
        reached = record.sequence
        if wanted.takes(record):
            items.append(msgspec.Raw(line))
    return AuditPage(items)


def _list_newest(folder: Path, wanted: _Wanted, limit: int) -> list[msgspec.Raw]:
    items: list[msgspec.Raw] = []
    for count, (line, record) in enumerate(_decode(read_newest(folder))):
        if len(items) == limit or count == _MOST_READ or (wanted.since and record.at < wanted.since):
            break
        if wanted.takes(record):
            items.append(msgspec.Raw(line))
    return items[::-1]


def _decode(lines: Iterator[bytes]) -> Iterator[tuple[bytes, AuditRecord]]:
    """The lines that are records; ``verify`` finds the others."""
    for line in lines:
        if read_link(line) is not None:
            yield line, read_record(line)


def _read_moment(query: dict[str, str], name: str) -> str:
    """A time as in records; one that was taken from a record is kept to the microsecond."""
    text = query.get(name, "")
    if not text:
        return ""
    try:
        moment = datetime.datetime.fromtimestamp(parse_moment(text, name), datetime.UTC)
    except (ValueError, OverflowError, OSError):
        raise InvalidInput(
            f"{name}: {text[:40]!r} is not a valid time", field=name, hint="like 2026-12-24T22:00:00Z"
        ) from None
    return text if _AT.fullmatch(text) else moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


ROUTES = (
    Route(
        "GET",
        "/v1/audit",
        read,
        "The audit log's newest records; with after= those after that one",
        permission="audit:list",
        where="own",
        topic=Topic("by people", "read", "audit"),
        query=_SELECTION,
        answers={
            "type": "object",
            "required": ["items", "continue"],
            "properties": {
                "items": {"type": "array", "items": refer_to(AuditRecord)},
                "continue": {"type": ["integer", "string", "null"], "description": "after= for the next page"},
                "away": AWAY,
            },
        },
        names=(AuditRecord,),
    ),
    Route(
        "GET",
        "/v1/audit:verify",
        verify,
        "Whether the audit log's chain is whole",
        permission="audit:verify",
        where="all",
        topic=Topic("by people", "verify", "audit"),
        answers=ServerVerdicts,
        names=(AuditVerdict,),
    ),
)
