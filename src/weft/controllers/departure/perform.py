"""What is done at a linked cluster about the VMs that migrate there: it is asked how their Arrivals are, makes them, cancels
them and forgets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weft.client.api import Client
from weft.client.cluster.peer import PeerLink, connect_peer
from weft.contracts.clock import Clock
from weft.controllers.departure.seen import ArrivalAct, SeenArrival, read_absence, read_seen
from weft.kinds.arrival import ARRIVAL
from weft.kinds.fields.cells import dig
from weft.objects.errors import Unavailable, WeftError

ROUND_SECONDS = 20.0  # what doesn't begin within this is left to the next turn
SETTLED_SECONDS = 100.0  # so long a request that had no answer may still arrive there
NOT_BEGUN = Unavailable("it is left to the next turn")
Place = tuple[str, str, str]  # project there, name, and project here
Seen = SeenArrival | WeftError | None  # None: there surely is none


def list_seen(link: PeerLink, places: Sequence[Place], clock: Clock) -> list[Seen]:
    """How each Arrival is, in order; once the cluster doesn't answer, the others have that, too. Blocks."""
    return _ask_each(link, places, clock, _read_one)


def find_seen(link: PeerLink, places: Sequence[Place], clock: Clock) -> list[Seen]:
    """How the Arrival with each key of a migration is, in order; ``places`` are projects there, with keys. Blocks."""
    return _ask_each(link, places, clock, _find_one)


def _ask_each(
    link: PeerLink, places: Sequence[Place], clock: Clock, ask: Callable[[Client, str, str], Seen]
) -> list[Seen]:
    client, begun, found = connect_peer(link), clock.elapsed(), list[Seen]()
    try:
        for project, what, own in places:
            if found and isinstance(found[-1], Unavailable):
                found.append(found[-1])
            elif clock.elapsed() - begun > ROUND_SECONDS:
                found.append(NOT_BEGUN)
            else:
                found.append(ask(client.ask_for(own), project, what))
    finally:
        client.close()
    return found


def _read_one(client: Client, project: str, name: str) -> Seen:
    try:
        return read_seen(client.get(ARRIVAL.name, name, project=project))
    except WeftError as problem:
        return read_absence(problem)


def _find_one(client: Client, project: str, key: str) -> Seen:
    try:
        items = client.list(ARRIVAL.name, project=project, fields=f"spec.key={key}").items
    except WeftError as problem:
        return problem
    return next((read_seen(one) for one in items if dig(one, "spec.key") == key), None)


def perform_acts(link: PeerLink, acts: Sequence[ArrivalAct], clock: Clock) -> list[SeenArrival | WeftError]:
    """The answer to each, in order. Blocks."""
    client, begun, answers = connect_peer(link), clock.elapsed(), list[SeenArrival | WeftError]()
    try:
        for act in acts:
            if clock.elapsed() - begun > ROUND_SECONDS or (answers and isinstance(answers[-1], Unavailable)):
                answers.append(NOT_BEGUN)
                continue
            try:
                answers.append(_perform(client.ask_for(act.own_project), act))
            except WeftError as problem:
                answers.append(problem)
    finally:
        client.close()
    return answers


def _perform(client: Client, act: ArrivalAct) -> SeenArrival:
    if act.what == "create":
        return read_seen(client.create({**act.manifest, "name": act.name, "project": act.project}))
    return read_seen(client.verb(ARRIVAL.name, act.name, act.what, project=act.project))
