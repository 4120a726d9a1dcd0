"""``GET /v1/dashboard/search``: objects by name, address or any word of their rows, in all kinds that people make."""

from __future__ import annotations

import heapq

import msgspec

from weft.api.auth.authorise import require_own_person
from weft.api.context import ApiContext
from weft.api.dashboard.row import Row, ShownRow
from weft.api.dashboard.table import encode_row, find_sights, note_topic, read_words
from weft.api.request.call import JSON, Call
from weft.api.route import Route, Topic
from weft.kinds.registry import BY_NAME, KINDS
from weft.objects.errors import InvalidInput
from weft.serving.answer import Answer

MOST_FOUND = 50
SEARCHED = [kind for kind in KINDS if kind.access.writer == "people" and not kind.lifetime.ephemeral]
_encoder = msgspec.json.Encoder()


class SearchAnswer(msgspec.Struct, frozen=True):
    """The answer to ``GET /v1/dashboard/search``."""

    items: list[ShownRow]  # the best first; each has the cells of its own kind


async def search(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/dashboard/search?q=TEXT``."""
    require_own_person(call.actor, "use the dashboard")
    words = read_words(call.query("q").get("q", ""), "q")
    if not words:
        raise InvalidInput("q is missing", field="q", hint="write some letters of a name, or an address")
    found: list[tuple[int, int, int, Row]] = []
    async with context.lists.take(call.actor):
        sights = await find_sights(context, call.actor, SEARCHED, None)
        for place, sight in enumerate(sights):
            rows = await context.boards.rows.find(BY_NAME[sight.kind])
            for number, made in enumerate(rows.found.values()):
                row = sight.pick(made)
                if row is not None and all(word in row.text or row.uid.startswith(word) for word in words):
                    found.append((_rank(row, words), place, number, row))
    best = heapq.nsmallest(MOST_FOUND, found)
    note_topic(call, {row.kind for *_, row in best}, None)
    items = [msgspec.Raw(encode_row((row.kind,), row)) for *_, row in best]
    return context.lists.hold(call.actor, Answer(200, _encoder.encode({"items": items}), JSON))


def _rank(row: Row, words: tuple[str, ...]) -> int:
    """How far a row is from what was meant: its name, the beginning of it, a part of it, a whole cell, anything else."""
    name = row.name.lower()
    if name in words:
        return 0
    if any(name.startswith(word) for word in words):
        return 1
    if any(word in name for word in words):
        return 2
    cells = row.text.split("\n")
    return 3 if any(word in cells for word in words) else 4 if all(word in row.text for word in words) else 5


ROUTES = (
    Route(
        "GET",
        "/v1/dashboard/search",
        search,
        "Objects that the caller may list, of all kinds, by name, address or other words of their rows",
        topic=Topic("refused", "read"),
        query=("q",),
        answers=SearchAnswer,
        names=(ShownRow,),
    ),
)
