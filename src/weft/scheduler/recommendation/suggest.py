"""Better nodes for a VM that runs, by a rebalancing's score, each with its reasons and its price. Pure."""

from __future__ import annotations

import msgspec
import numpy as np

from weft.informer.view import Item, View
from weft.insight.course import HOUR_SECONDS, find_shortage
from weft.kinds.profile import ProfileStatus
from weft.kinds.recommendation import Suggestion
from weft.objects.identity import object_key
from weft.objects.quantity import format_bytes, format_time
from weft.scheduler.rebalance.gains import find_gains
from weft.scheduler.rebalance.model import Flags, Problem, State
from weft.scheduler.rebalance.problem import MigratableWorkload, list_places, plan_step, read_course, read_problem
from weft.scheduler.table.snapshot import Snapshot
from weft.transfer.history import read_history

MOST = 5
HOURS = 24
FRESH_SECONDS = 5.0


class Fabric(msgspec.Struct, frozen=True):
    """All guests that may migrate, and the nodes."""

    read_at: float
    uids: list[str]  # of the nodes
    places: list[MigratableWorkload]
    problem: Problem
    names: list[str]  # of the guests


class FabricCache:
    """The fabric as it was read last: many questions of a few seconds read it once."""

    def __init__(self) -> None:
        self._known: Fabric | None = None

    def read(self, view: View, snapshot: Snapshot, now: float) -> Fabric:
        known, uids = self._known, list(snapshot.uids)
        if known is None or not 0 <= now - known.read_at < FRESH_SECONDS or known.uids != uids:
            places = list_places(view, snapshot)
            courses = [read_course(view, place, now, HOURS) for place in places]
            known = self._known = Fabric(now, uids, places, *read_problem(view, snapshot, places, courses))
        return known


def suggest(
    view: View, snapshot: Snapshot, fabric: Fabric, workload: Item, node: str, fits: Flags, now: float
) -> list[Suggestion]:
    """The best first; none for what isn't a VM that runs on ``node``. ``fits``: nodes (n) that would take it."""
    places, problem, names = fabric.places, fabric.problem, fabric.names
    guest = next((number for number, place in enumerate(places) if place.workload.uid == workload.uid), None)
    if guest is None or places[guest].spec.node != node:
        return []
    state, source = State(problem), int(problem.at[guest])
    gains, price = find_gains(state, guest), float(problem.price[guest])
    better = np.flatnonzero(fits & problem.target & (gains > price))
    found = []
    for target in better[np.argsort(-gains[better], kind="stable")][:MOST].tolist():
        there = State(problem)
        there.apply(guest, target)
        reasons = []
        if there.spread() < state.spread():
            reasons.append(f"load is more even: {state.spread():.2f} → {there.spread():.2f}")
        if there.far < state.far:
            peer, rate = max(state.peers[guest], key=lambda one: one[1])
            known = (
                names[peer]
                if _is_of(places[peer].spec.workload.project if peer < len(places) else None, workload)
                else ""
            )
            reasons.append(f"nearer to {known or 'what it talks with'} ({format_bytes(rate)}/s)")
        reasons += (
            [f"{snapshot.names[source]} {short}"] if (short := _find_shortage(view, snapshot, source, now)) else []
        )
        step = plan_step(
            read_history(view),
            places[guest],
            snapshot.names[source],
            snapshot.names[target],
            "",
            int(problem.size[guest]),
        )
        found.append(
            Suggestion(
                node=snapshot.names[target],
                gain=round(float(gains[target]) - price, 2),
                seconds=step.seconds,
                bytes=step.bytes,
                reasons=reasons,
            )
        )
    return found


def _is_of(project: str | None, workload: Item) -> bool:
    """Whether people of the workload's project may know the name."""
    return project == workload.envelope.project


def _find_shortage(view: View, snapshot: Snapshot, row: int, now: float) -> str:
    item = view.get(object_key("nodeprofile", None, snapshot.names[row]))
    short = find_shortage(item.status(ProfileStatus), now, HOURS) if item is not None else None
    return f"is forecast to be short of cores from {format_time(now + short.first * HOUR_SECONDS)}" if short else ""
