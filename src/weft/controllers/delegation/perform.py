"""What is done at a linked cluster about delegations: it lists what it runs for this one, and creates, changes and deletes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.client.api import Client
from weft.client.cluster.peer import PeerLink, connect_peer
from weft.controllers.delegation.plan import Act, Seen, read_seen
from weft.objects.errors import InvalidInput, Unavailable, WeftError

MOST_LIST_BYTES = 16 << 20
MOST_LISTED = 10_000  # workloads of one project and kind
Place = tuple[str, str]  # kind and project


def list_seen(link: PeerLink, places: Iterable[Place]) -> dict[Place, dict[str, Seen] | WeftError]:
    """What this cluster has made there, by name, or why a place can't be listed. Blocks. Raises Unavailable."""
    found: dict[Place, dict[str, Seen] | WeftError] = {}
    client = connect_peer(link, most_answer_bytes=MOST_LIST_BYTES)
    try:
        for kind, project in places:
            try:
                found[kind, project] = _list(client, kind, project)
            except Unavailable:
                raise
            except WeftError as problem:
                found[kind, project] = problem
    finally:
        client.close()
    return found


def _list(client: Client, kind: str, project: str) -> dict[str, Seen]:
    items = client.list(kind, project=project).items
    if len(items) > MOST_LISTED:
        raise InvalidInput(f"it lists {len(items)} {kind}s: more than {MOST_LISTED}", reason="answerTooLong")
    return {name: read_seen(item) for item in items if isinstance(name := item.get("name"), str)}


def perform_acts(link: PeerLink, acts: Sequence[Act]) -> list[Seen | WeftError]:
    """The answer to each, in order; once the cluster doesn't answer, Unavailable for the others. Blocks."""
    answers: list[Seen | WeftError] = []
    client = connect_peer(link)
    try:
        for act in acts:
            if answers and isinstance(answers[-1], Unavailable):
                answers.append(answers[-1])
                continue
            try:
                answers.append(_perform(client, act))
            except WeftError as problem:
                answers.append(problem)
    finally:
        client.close()
    return answers


def _perform(client: Client, act: Act) -> Seen:
    if act.what == "put":
        return read_seen(client.put(act.manifest))
    return read_seen(client.delete(act.kind, act.name, project=act.project, uid=act.uid))
