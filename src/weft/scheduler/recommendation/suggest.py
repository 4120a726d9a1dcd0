"""Better nodes for a VM that runs, by a rebalancing's score, each with its reasons and its price. Pure."""

from __future__ import annotations

import numpy as np

from weft.informer.view import Item, View
from weft.insight.course import HOUR_SECONDS, find_shortage
from weft.kinds.profile import ProfileStatus
from weft.kinds.recommendation import Suggestion
from weft.objects.identity import object_key
from weft.objects.quantity import format_bytes, format_time
from weft.scheduler.rebalance.gains import find_gains
from weft.scheduler.rebalance.model import Flags, State
from weft.scheduler.rebalance.problem import list_places, plan_step, read_course, read_problem
from weft.scheduler.table.snapshot import Snapshot
from weft.transfer.history import read_history

MOST = 5
HOURS = 24


def suggest(view: View, snapshot: Snapshot, workload: Item, fits: Flags, now: float) -> list[Suggestion]:
    """The best first; none for what isn't a VM that runs. ``fits``: nodes (n) that would take it."""
    places = list_places(view, snapshot)
    guest = next((number for number, place in enumerate(places) if place.workload.uid == workload.uid), None)
    if guest is None:
        return []
    problem, names = read_problem(view, snapshot, places, [read_course(view, place, now, HOURS) for place in places])
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
