"""``GET /v1/dashboard/table``: one page of a table, filtered and sorted by the server, and how its parameters are read."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from weft.api.audit.topic import topic_of
from weft.api.auth.authorise import authorise_read, require_own_person
from weft.api.auth.ownership import find_own
from weft.api.context import ApiContext
from weft.api.dashboard.row import AGE, KIND, ColumnHead, Row, ShownRow, find_phase_title
from weft.api.dashboard.selection import PHASE, PROJECT, Query, Selection
from weft.api.dashboard.sight import Sight
from weft.api.object.narrowing import is_narrowed
from weft.api.request.call import JSON, Call, read_count, read_flag
from weft.api.request.target import Target
from weft.api.route import Route, Topic
from weft.kinds.record import Column, Kind
from weft.kinds.registry import BY_NAME, find_kind
from weft.objects.errors import Forbidden, InvalidInput
from weft.objects.identity import check_name
from weft.objects.schema import suggest
from weft.serving.answer import Answer
from weft.trust.credentials import Actor

PARAMETERS = ("kinds", "project", "filter", "where", "sort", "offset", "limit", "ended")
LIMIT, MOST_ROWS = 200, 500
MOST_KINDS = 16
MOST_LETTERS, MOST_WORDS = 200, 10  # of a filter
_FARTHEST = 1_000_000
_MOST_ENCODED = 8192
_encoder = msgspec.json.Encoder()
Layout = tuple[str, ...]  # the kinds of a table, in its order


class Asked(msgspec.Struct, frozen=True):
    """A table's parameters."""

    kinds: tuple[str, ...]
    project: str | None
    words: tuple[str, ...]
    where: str
    title: str
    descending: bool
    ended: bool
    offset: int
    limit: int


class TableAnswer(msgspec.Struct):
    """The answer to ``GET /v1/dashboard/table``."""

    columns: tuple[ColumnHead, ...]
    rows: list[ShownRow]
    total: int  # rows, on all pages
    phases: dict[str, int]  # how many the filter lets through, by phase
    cursor: str


async def table(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/dashboard/table``. Raises Forbidden for one kind that the actor may not list."""
    require_own_person(call.actor, "use the dashboard")
    asked = read_asked(call.query(*PARAMETERS))
    async with context.lists.take(call.actor):
        selection, layout = await select(context, call.actor, asked)
    note_topic(call, asked.kinds, asked.project)
    page = selection.page(asked.offset, asked.limit)
    answer = {
        "columns": list_heads(layout),
        "rows": [msgspec.Raw(encode_row(layout, row)) for row in page],
        "total": selection.total,
        "phases": selection.phases,
        "cursor": selection.cursor,
    }
    return context.lists.hold(call.actor, Answer(200, _encoder.encode(answer), JSON))


def note_topic(call: Call, kinds: Iterable[str], project: str | None) -> None:
    """Have the audit log record what only few may read, as it does for lists."""
    topics = (topic_of("GET", Target(BY_NAME[name], project, None)) for name in kinds)
    call.topic = next((topic for topic in topics if topic.when != "refused"), call.topic)


def read_asked(query: Mapping[str, str]) -> Asked:
    """The parameters of a table, from a query or from a stream's. Raises InvalidInput."""
    kinds = _read_kinds(query.get("kinds", ""))
    project = query.get("project") or None
    if project is not None:
        check_name(project, "project")
    sort = query.get("sort") or "NAME"
    title = sort.removeprefix("-")
    known = [*dict.fromkeys([head.title for head in list_heads(tuple(kinds))] + [PHASE, PROJECT, KIND])]
    if title not in known:
        meant = suggest(title[:40], known)
        raise InvalidInput(
            f"sort: {title[:40]!r} is not a column of this table",
            field="sort",
            hint=f"did you mean {meant}?" if meant else "there are " + ", ".join(known),
        )
    return Asked(
        tuple(kinds),
        project,
        read_words(query.get("filter", "")),
        _read_where(query),
        title,
        sort.startswith("-"),
        read_flag(query, "ended"),
        read_count(query, "offset", 0, _FARTHEST),
        read_count(query, "limit", LIMIT, MOST_ROWS) or LIMIT,
    )


def read_words(text: str, field: str = "filter") -> tuple[str, ...]:
    """The words of a filter, in small letters. Raises InvalidInput."""
    words = text.lower().split()
    if len(text) > MOST_LETTERS or len(words) > MOST_WORDS:
        raise InvalidInput(
            f"{field} is longer than {MOST_LETTERS} letters or {MOST_WORDS} words", field=field, hint="use fewer words"
        )
    return tuple(sorted(set(words)))


def _read_where(query: Mapping[str, str]) -> str:
    where = query.get("where", "")
    if len(where) > MOST_LETTERS:
        raise InvalidInput(f"where is longer than {MOST_LETTERS} letters", field="where", hint="write a phase")
    return where


def _read_kinds(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise InvalidInput("kinds is missing", field="kinds", hint="write kinds=vm, or several: kinds=vm,container")
    if len(words) > MOST_KINDS:
        raise InvalidInput(f"kinds: at most {MOST_KINDS} in a table", field="kinds", hint="use fewer kinds")
    return list(dict.fromkeys(find_kind(word).name for word in words))


async def select(context: ApiContext, actor: Actor, asked: Asked) -> tuple[Selection, Layout]:
    """The selection that shows ``asked``, as far as ``actor`` sees it. Raises Forbidden for one kind that it may not list."""
    sights = await find_sights(context, actor, [BY_NAME[name] for name in asked.kinds], asked.project)
    query = Query(
        sights=tuple(sights),
        words=asked.words,
        where=asked.where,
        title=asked.title,
        descending=asked.descending,
        ended=asked.ended,
    )
    return await context.boards.select(query), asked.kinds


@functools.lru_cache(100)
def list_heads(layout: Layout) -> tuple[ColumnHead, ...]:
    """The columns of a table: those of its kinds in order, each title once, and those for wide places last, so that a note is seen
    without scrolling; of several kinds, after the kind's own."""
    heads = {} if len(layout) == 1 else {KIND: ColumnHead(KIND)}
    columns = [(column, find_phase_title(name)) for name in layout for column in BY_NAME[name].display.columns]
    for column, phase in sorted(columns, key=lambda one: one[0].wide):
        heads.setdefault(column.title, _head(column, phase))
    return tuple(heads.values())


def _head(column: Column, phase: str | None) -> ColumnHead:
    return ColumnHead(column.title, column.align, _find_type(column, phase), column.flexible)


def _find_type(column: Column, phase: str | None) -> Literal["text", "number", "phase", "age"]:
    if column.title == AGE:
        return "age"
    if column.title == phase:
        return "phase"
    return "number" if column.align == "right" else "text"


@functools.lru_cache(_MOST_ENCODED)
def encode_row(layout: Layout, row: Row) -> bytes:
    """A row as tables of this layout show it; encoded once for all of them."""
    titles = [column.title for column in BY_NAME[row.kind].display.columns]
    by_title = {KIND: row.kind, **dict(zip(titles, row.cells, strict=True))}
    cells = [by_title.get(head.title, "") for head in list_heads(layout)]
    shown = ShownRow(
        row.kind,
        row.project,
        row.name,
        row.uid,
        row.revision,
        row.phase,
        row.health,
        row.note,
        row.created_at,
        cells,
    )
    return _encoder.encode(shown)


async def find_sight(context: ApiContext, actor: Actor, kind: Kind, project: str | None) -> Sight:
    """Find the rows that ``actor`` sees of ``kind``: of ``project``, or of all projects in which it may list it. Raises Forbidden
    as lists do."""
    projects: frozenset[str] | None = None
    if kind.scope == "project":
        if project is None and actor.kind == "person":
            projects = actor.find_projects(f"{kind.name}:list")
        elif project is not None:
            projects = frozenset((project,))
    if projects is None:
        await authorise_read(context, actor, kind, None, None, {})
    elif not projects:
        raise actor.refuse(f"{kind.name}:list", actor.project, f"see {kind.plural}")
    for one in projects or ():
        await authorise_read(context, actor, kind, one, None, {})
    owner = actor if find_own(actor, kind, "list") is not None else None
    return Sight(kind.name, projects, is_narrowed(kind, actor, "list"), owner)


async def find_sights(context: ApiContext, actor: Actor, kinds: list[Kind], project: str | None) -> list[Sight]:
    """Those of the kinds that ``actor`` may list. Raises Forbidden if it is one kind, and that is refused."""
    found = []
    for kind in kinds:
        try:
            found.append(await find_sight(context, actor, kind, project))
        except Forbidden:
            if len(kinds) == 1:
                raise
    return found


ROUTES = (
    Route(
        "GET",
        "/v1/dashboard/table",
        table,
        "A page of a table of the objects that the caller may list, filtered and sorted",
        topic=Topic("refused", "read"),
        query=PARAMETERS,
        answers=TableAnswer,
        names=(ColumnHead, ShownRow),
    ),
)
