"""Log of the servers' own processes, over HTTP, a page at a time; for those who administer the fabric. Lines of another server come
from there: each has numbers of its own, so a page is one server's."""

from __future__ import annotations

import asyncio
import re

import msgspec

from weft.api.auth.authenticate import read_credentials
from weft.api.auth.authorise import require_permission
from weft.api.context import ApiContext
from weft.api.request.call import JSON, Call, json_answer
from weft.api.route import Route, Topic
from weft.client.answer import raise_problem
from weft.objects.errors import InvalidInput, NotFound, StoreUnavailable, Unavailable
from weft.serving.answer import Answer
from weft.telemetry.logs.lines import PrintedLine, show_line
from weft.telemetry.logs.match import Matcher, make_matcher
from weft.telemetry.logs.query import Range, StoredLine, read_last, read_lines
from weft.telemetry.logs.server import PROCESSES, ServerLog, name_source

MOST_LINES, MOST_BYTES = 5_000, 4 << 20  # of one page
ANSWER_SECONDS = 30.0  # of another server that takes the request
_PARAMETERS = ("since", "until", "filter", "regex", "tail", "from", "server")
_AT_ONCE = asyncio.Semaphore(2)  # of old lines, which takes memory
_NUMBER = re.compile(r"\d{1,18}(\.\d{1,9})?", re.ASCII)


class LogPage(msgspec.Struct):
    """``next``: the number of the line that comes next: ask for it with ``from``. ``more``: there are some already."""

    items: list[PrintedLine]
    next: int
    more: bool = False


async def get(context: ApiContext, call: Call, process: str) -> Answer:
    """``GET /v1/server/logs/{process}``. ``since``, ``until``: seconds ago; ``filter``, ``regex``: only lines that have it;
    ``tail``: only the last lines; ``from``: only lines from this number on; ``server``: another server of the fabric, by name."""
    require_permission(call.actor, "server:logs", None, "read the server's own log")
    query = call.query(*_PARAMETERS)
    if process not in PROCESSES:
        raise NotFound(f"the server has no process {process[:40]!r}", hint=f"it has {', '.join(PROCESSES)}")
    server, own = query.get("server", ""), context.own.name if context.own is not None else ""
    if server not in ("", own):
        return await _ask_server(context, call, server)
    shown = name_source(process, server)
    log = context.server_log
    if log is None:
        raise Unavailable("this server keeps no log of its own", reason="noLogs")
    now = context.clock.now()
    since, until = (_read_number(query, name) for name in ("since", "until"))
    tail = int(_read_number(query, "tail", -1))
    if tail > MOST_LINES:
        raise InvalidInput(f"tail must be at most {MOST_LINES}", field="tail")
    asked = Range(
        name_source(process),
        first=int(_read_number(query, "from")),
        since=int((now - since) * 1e6) if since else 0,
        until=int((now - until) * 1e6) if until else 0,
    )

    def read() -> LogPage:
        log.gather()
        matcher = make_matcher(query.get("filter", ""), query.get("regex", ""), context.clock, call.actor.name)
        try:
            return _read_page(log, asked, matcher, tail, shown)
        finally:
            if matcher is not None:
                matcher.close()

    async with _AT_ONCE:
        try:
            return json_answer(await asyncio.to_thread(read))
        except OSError as problem:
            raise StoreUnavailable(f"the server's log can't be read: {problem}") from None


async def _ask_server(context: ApiContext, call: Call, server: str) -> Answer:
    """The page of that server. Raises Unavailable, NotFound, and what it refuses."""
    if server not in context.others.list_all() or call.is_forwarded:
        raise NotFound(f"the fabric has no server {server[:63]!r}", hint="weft server list shows those that it has")
    headers = {"Authorization": read_credentials(call), "X-Request-Id": call.request_id}
    path = f"{call.path}?{call.request.query}"
    answer = await context.others.ask(server, "GET", path, headers=headers, seconds=ANSWER_SECONDS)
    raise_problem(answer)
    return Answer(200, answer.body, JSON)


def _read_page(log: ServerLog, asked: Range, matcher: Matcher | None, tail: int, shown: str) -> LogPage:
    """Raises InvalidInput, OSError."""
    end = log.store.next_number(asked.uid)
    asked = msgspec.structs.replace(asked, end=end)
    found: list[StoredLine] = []
    if not end or asked.first >= end or tail == 0:
        return LogPage([], max(end, asked.first))
    if tail > 0:
        found = read_last(log.store, asked, matcher, tail)
        return LogPage([show_line(line, shown) for line in found], end)
    size = 0
    for lines in read_lines(log.store, asked, matcher):
        for line in lines:
            if len(found) >= MOST_LINES or size >= MOST_BYTES:
                return LogPage([show_line(one, shown) for one in found], line.number, True)
            found.append(line)
            size += len(line.text)
    return LogPage([show_line(line, shown) for line in found], end)


def _read_number(query: dict[str, str], name: str, default: float = 0.0) -> float:
    text = query.get(name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise InvalidInput(f"query parameter {name}: {text[:40]!r} is not a number", field=name)
    return float(text)


ROUTES = (
    Route(
        "GET",
        "/v1/server/logs/{process}",
        get,
        "What one of the server's own processes logged",
        permission="server:logs",
        where="all",
        topic=Topic("by people", "logs", "server", name="{process}"),
        query=_PARAMETERS,
        answers=LogPage,
        names=(PrintedLine,),
    ),
)
