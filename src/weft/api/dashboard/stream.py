"""``GET /v1/dashboard/stream``: all that one tab shows, as server-sent events: whole states first, then what changes.

Woken by what it shows, by changes of rights, and by its own timers. What is sent is made when the reader takes it, from the newest
state, so nothing waits for a slow one. It ends when the reader's rights change: the page connects again.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import msgspec

from weft import __version__
from weft.api.auth.authenticate import identify_again
from weft.api.auth.authorise import require_own_person
from weft.api.context import ApiContext
from weft.api.dashboard.part import DashboardPart, TablePart, open_events, open_object, open_summary
from weft.api.dashboard.selection import find_newest
from weft.api.dashboard.summary import read_project
from weft.api.dashboard.table import MOST_LETTERS, note_topic, read_asked, select
from weft.api.dashboard.window import RowWindow
from weft.api.request.call import Call
from weft.api.route import Route, Topic
from weft.api.watch.stream import wait
from weft.kinds.registry import find_kind
from weft.objects.errors import InvalidInput, WeftError
from weft.objects.identity import check_shared_name
from weft.objects.schema import read_strict
from weft.serving.answer import Answer

FOLD_SECONDS = 0.2  # between two events of the same
COMMENT_SECONDS = 8.0
MOST_BYTES = 4_000  # of ``show``
_HEADERS = (("content-type", "text/event-stream"), ("cache-control", "no-store"))
_encoder = msgspec.json.Encoder()


class ShowTable(msgspec.Struct, frozen=True, kw_only=True):
    """Table to show, as the parameters of ``GET /v1/dashboard/table``."""

    kinds: str
    project: str | None = None
    filter: str = ""
    where: str = ""
    sort: str = ""
    offset: int = 0
    limit: int = 200
    ended: bool | int = False


class ShowSummary(msgspec.Struct, frozen=True, kw_only=True):
    project: str | None = None


class ShowObject(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    name: str
    project: str | None = None


class ShowEvents(msgspec.Struct, frozen=True, kw_only=True):
    project: str | None = None
    object: str = ""  # KIND, KIND/NAME or KIND/PROJECT/NAME


class Show(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of a tab."""

    table: ShowTable | None = None
    summary: ShowSummary | None = None
    object: ShowObject | None = None
    events: ShowEvents | None = None


async def stream(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/dashboard/stream?show=JSON``. Raises InvalidInput, Forbidden, Throttled for too many of one token."""
    require_own_person(call.actor, "use the dashboard")
    show = _read_show(call.query("show").get("show", ""))
    with ExitStack() as opened:
        opened.enter_context(context.boards.count_stream(call.actor))
        woken = asyncio.Event()
        parts = await _open(context, call, show, woken, opened)
        pieces = _Stream(context, call, parts, woken, opened.pop_all())
    return Answer(200, headers=_HEADERS, pieces=pieces)


def _read_show(text: str) -> Show:
    if len(text) > MOST_BYTES:
        raise InvalidInput(f"show is longer than {MOST_BYTES} characters", field="show", hint="show less in one tab")
    if not text:
        raise InvalidInput("show is missing", field="show", hint='like show={"table": {"kinds": "vm"}}, URL-encoded')
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidInput("show is not JSON", field="show", hint='like {"table": {"kinds": "vm"}}') from None
    return read_strict(raw, Show, "show")


async def _open(
    context: ApiContext, call: Call, show: Show, woken: asyncio.Event, opened: ExitStack
) -> list[DashboardPart]:
    actor, parts = call.actor, list[DashboardPart]()

    def add(part: DashboardPart) -> None:
        opened.callback(part.close)
        parts.append(part)

    if show.table is not None:
        given = {
            name: str(int(value) if isinstance(value, bool) else value or "") for name, value in _fields(show.table)
        }
        asked = read_asked(given)
        async with context.lists.take(actor):
            selection, layout = await select(context, actor, asked)
        note_topic(call, asked.kinds, asked.project)
        add(TablePart(RowWindow(selection, layout, asked.offset, asked.limit), woken))
    if show.summary is not None:
        add(await open_summary(context, actor, read_project(show.summary.project)))
    if show.object is not None:
        name = check_shared_name(show.object.name, "show.object.name")
        kind = find_kind(show.object.kind)
        add(await open_object(context, actor, kind, show.object.project, name, woken))
        note_topic(call, [kind.name], show.object.project)
    if show.events is not None:
        about = show.events.object[:MOST_LETTERS]
        add(open_events(context, actor, read_project(show.events.project), about))
    return parts


def _fields(show: ShowTable) -> list[tuple[str, object]]:
    return list(msgspec.structs.asdict(show).items())


class _Stream:
    """The events of ``parts``, until the reader leaves, the server stops, or the reader's rights change."""

    def __init__(
        self, context: ApiContext, call: Call, parts: list[DashboardPart], woken: asyncio.Event, opened: ExitStack
    ) -> None:
        self._context, self._actor, self._parts, self._woken, self._opened = context, call.actor, parts, woken, opened
        self._spoke = self._asked = context.clock.elapsed()
        self._version: object = None  # the rights that it was let in with may have gone since: they are asked for first
        self._has_begun = False
        context.streams[woken] = call.actor
        woken.set()

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> bytes:
        clock = self._context.clock
        while not self._context.stopping.is_set():
            if self._has_begun:
                await self._rest()
            try:
                if not await self._is_still_allowed():
                    break
            except WeftError:  # nobody can say: the page connects again
                break
            events = [await self._write(part) for part in self._parts]
            if not self._has_begun:
                self._has_begun = True
                events.insert(0, _event("hello", _encoder.encode({"version": __version__, "now": clock.now()})))
            if piece := b"".join(events):
                self._spoke = clock.elapsed()
                return piece
            if clock.elapsed() - self._spoke >= COMMENT_SECONDS:
                self._spoke = clock.elapsed()
                return b":\n\n"
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._context.streams.pop(self._woken, None)
        self._opened.close()

    async def _rest(self) -> None:
        """Wait for news, but not before the last news is a while ago."""
        clock = self._context.clock
        await clock.sleep(max(0.0, self._spoke + FOLD_SECONDS - clock.elapsed()))
        seconds = min([COMMENT_SECONDS, *(part.seconds for part in self._parts)])
        await wait(self._woken, seconds)
        self._woken.clear()

    async def _is_still_allowed(self) -> bool:
        """Ask every few seconds, and when rights may have changed. False if they have, or the token is gone."""
        now, version = self._context.clock.elapsed(), self._context.rights_version
        if now - self._asked >= COMMENT_SECONDS or version != self._version:
            self._asked, self._version = now, version
            return await identify_again(self._context, self._actor) == self._actor
        return True

    async def _write(self, part: DashboardPart) -> bytes:
        try:
            data = await part.take()
        except WeftError:  # the store is away: what is shown stays as it is, and the part is asked again
            return b""
        return _event(part.name, data, find_newest(one.cursor for one in self._parts)) if data else b""


def _event(name: str, data: bytes, id_: str = "") -> bytes:
    """One server-sent event; JSON has no line breaks of its own."""
    head = f"id: {id_}\nevent: {name}\ndata: " if id_ else f"event: {name}\ndata: "
    return head.encode() + data + b"\n\n"


ROUTES = (
    Route(
        "GET",
        "/v1/dashboard/stream",
        stream,
        "All that one tab of the dashboard shows, as server-sent events; show is JSON",
        topic=Topic("refused", "read"),
        query=("show",),
        names=(Show, ShowTable, ShowSummary, ShowObject, ShowEvents),
        media_type="text/event-stream",
    ),
)
