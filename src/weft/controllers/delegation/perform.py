"""Carry out delegations at a linked cluster: list what it runs for this one, and create, change and delete there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec

from weft.client.answer import raise_problem
from weft.client.cluster.peer import PeerClient, PeerLink, connect_peer
from weft.contracts.clock import Clock
from weft.controllers.cluster.requests import ask_each
from weft.controllers.delegation.plan import Act, Seen, read_seen
from weft.objects.errors import InvalidInput, Unavailable, WeftError

MOST_PAGE_BYTES = 32 << 20
PAGE, MOST_PAGES = 100, 100  # workloads of a page, and pages of one project and kind
LIST_SECONDS, ACT_SECONDS = 60.0, 30.0  # what doesn't begin within this is left to the next turn
TOO_LONG = "answerTooLong"
DelegationPlace = tuple[str, str, str]  # kind, project there, and project here


class _Page(msgspec.Struct):
    items: list[dict[str, Any]]
    next: str | None = msgspec.field(name="continue", default=None)


_decode = msgspec.json.Decoder(_Page).decode


def list_seen(
    link: PeerLink, places: Iterable[DelegationPlace], clock: Clock
) -> dict[DelegationPlace, dict[str, Seen] | WeftError]:
    """List what this cluster has made there, by name, or why a place can't be listed. Blocks. Raises Unavailable."""
    found: dict[DelegationPlace, dict[str, Seen] | WeftError] = {}
    client = connect_peer(link, most_answer_bytes=MOST_PAGE_BYTES)
    try:
        for place in places:
            kind, project, own = place
            try:
                found[place] = _list(client.ask_for(own), kind, project, clock)
            except WeftError as problem:
                if isinstance(problem, Unavailable) and problem.token != TOO_LONG:
                    raise
                found[place] = problem
    finally:
        client.close()
    return found


def _list(client: PeerClient, kind: str, project: str, clock: Clock) -> dict[str, Seen]:
    path, query, began = client.path(kind, project=project), {"limit": str(PAGE)}, clock.elapsed()
    found: dict[str, Seen] = {}
    for _ in range(MOST_PAGES):
        if clock.elapsed() - began > LIST_SECONDS:
            break
        answer = client.http.request("GET", f"{path}?{urlencode(query)}")
        raise_problem(answer)
        try:
            page = _decode(answer.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise InvalidInput("its answer is not a list of objects", reason="linkProtocol") from None
        if len(page.items) > PAGE:
            break
        found |= {name: read_seen(item) for item in page.items if isinstance(name := item.get("name"), str)}
        if not page.next:
            return found
        query = {"limit": str(PAGE), "continue": page.next}
    raise Unavailable(f"its list of {kind}s is too long: more than {PAGE * MOST_PAGES}, or too slow", reason=TOO_LONG)


def perform_acts(link: PeerLink, acts: Sequence[Act], clock: Clock) -> list[Seen | WeftError]:
    """Perform each act, as ``ask_each`` does."""
    return ask_each(link, acts, _perform, ACT_SECONDS, clock)


def _perform(client: PeerClient, act: Act) -> Seen:
    client = client.ask_for(act.own_project)
    if act.what == "put":
        return read_seen(client.put(act.manifest))
    return read_seen(client.delete(act.kind, act.name, project=act.project, uid=act.uid))
