"""Puts together an answer of what each server of the fabric has: the others get the same request, with the person's own token, and
answer from what they have themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import urlencode

import msgspec

from weft.api.auth.authenticate import read_credentials
from weft.api.context import ApiContext
from weft.api.request.call import Call
from weft.client.answer import read_reason
from weft.client.server.others import ANSWER_SECONDS

T = TypeVar("T")
KEEPS_NONE = ("noTraces", "noLogs")  # reasons of a server that keeps none of the sort


class Parts(NamedTuple, Generic[T]):
    """The other servers' parts, by name, and the names of those that gave none."""

    found: dict[str, T]
    away: list[str]


async def ask_others(
    context: ApiContext,
    call: Call,
    shape: type[T],
    *,
    query: Callable[[str], Mapping[str, str]] | None = None,
    seconds: float = ANSWER_SECONDS,
) -> Parts[T]:
    """Ask the other servers for their parts of the answer to ``call``, each ``shape``; nobody, if it comes from one of them.
    ``query`` gives the query for a server by its name, by default the call's own. A server that finds nothing adds no part, and
    doesn't count as away."""
    parts: Parts[T] = Parts({}, [])
    if call.is_forwarded:
        return parts
    given = call.loose_query
    asked = await context.others.ask_all(
        "GET",
        lambda name: f"{call.path}?{urlencode(given if query is None else query(name))}",
        headers={"Authorization": read_credentials(call), "X-Request-Id": call.request_id},
        seconds=seconds,
    )
    parts.away.extend(asked.away)
    for name, answer in asked.found.items():
        try:
            if answer.status == 200:
                parts.found[name] = msgspec.json.decode(answer.body, type=shape)
            elif answer.status != 404 and read_reason(answer) not in KEEPS_NONE:
                parts.away.append(name)
        except (msgspec.MsgspecError, RecursionError):
            parts.away.append(name)
    parts.away.sort()
    return parts
