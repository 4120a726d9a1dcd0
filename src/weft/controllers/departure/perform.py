"""Ask a linked cluster about the Arrivals of the VMs that migrate there; make, cancel and forget them."""

from __future__ import annotations

from collections.abc import Sequence

from weft.client.cluster.peer import PeerClient, PeerLink
from weft.contracts.clock import Clock
from weft.controllers.cluster.requests import ask_each
from weft.controllers.departure.seen import ArrivalAct, SeenArrival, read_absence, read_seen
from weft.kinds.arrival import ARRIVAL
from weft.kinds.fields.cells import dig
from weft.objects.errors import WeftError

ROUND_SECONDS = 20.0  # what doesn't begin within this is left to the next turn
DeparturePlace = tuple[str, str, str]  # project there, name, and project here
Seen = SeenArrival | WeftError | None  # None: there surely is none


def list_seen(link: PeerLink, places: Sequence[DeparturePlace], clock: Clock) -> list[Seen]:
    """How each Arrival is, as ``ask_each``."""
    return ask_each(link, places, _read_one, ROUND_SECONDS, clock)


def find_seen(link: PeerLink, places: Sequence[DeparturePlace], clock: Clock) -> list[Seen]:
    """How the Arrival with each key of a migration is, as ``ask_each``; ``places`` are projects there, with keys."""
    return ask_each(link, places, _find_one, ROUND_SECONDS, clock)


def _read_one(client: PeerClient, place: DeparturePlace) -> Seen:
    project, name, own = place
    try:
        return read_seen(client.ask_for(own).get(ARRIVAL.name, name, project=project))
    except WeftError as problem:
        return read_absence(problem)


def _find_one(client: PeerClient, place: DeparturePlace) -> Seen:
    project, key, own = place
    items = client.ask_for(own).list(ARRIVAL.name, project=project, fields=f"spec.key={key}").items
    return next((read_seen(one) for one in items if dig(one, "spec.key") == key), None)


def perform_acts(link: PeerLink, acts: Sequence[ArrivalAct], clock: Clock) -> list[SeenArrival | WeftError]:
    """Perform each act, as ``ask_each`` does."""
    return ask_each(link, acts, _perform, ROUND_SECONDS, clock)


def _perform(client: PeerClient, act: ArrivalAct) -> SeenArrival:
    client = client.ask_for(act.own_project)
    if act.what == "create":
        return read_seen(client.create({**act.manifest, "name": act.name, "project": act.project}))
    return read_seen(client.verb(ARRIVAL.name, act.name, act.what, project=act.project))
