"""What must hold in a shared cluster, told from plain lists of its objects and by nothing of weft's own code. Pure.

Each function says what is wrong, or nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Object = Mapping[str, Any]
REVOKED_SECONDS = 1.0  # from the answer to a change of rights until it must hold
RUNS = ("starting", "running", "stopping")
LATE_END_SECONDS = 30.0  # after a lease's end and its grace, agents that were killed included
_SLACK = 1e-6


class Turn(NamedTuple):
    """A change of rights: its request was sent at ``begun`` and answered at ``answered`` (infinite: not yet)."""

    begun: float
    answered: float
    allowed: bool


def find_possible(turns: Sequence[Turn], began: float, ended: float) -> set[bool]:
    """Whether a request from ``began`` to ``ended`` may be allowed, and whether it may be refused; before the first turn nothing
    is allowed."""
    found, state, since = set[bool](), False, -math.inf
    for turn in turns:
        if began <= turn.answered + REVOKED_SECONDS and ended >= since:
            found.add(state)
        state, since = turn.allowed, turn.begun
    return found | ({state} if ended >= since else set())


def holds(allocation: Object) -> bool:
    """Whether an allocation has its cores and memory, or is promised them."""
    lease, report = allocation["spec"].get("lease"), allocation["report"]
    if lease is None:
        return True
    if is_withdrawn(allocation):
        return False
    if report["state"] in ("stopped", "stopping", "released") and report["reason"] == "leaseEnded":
        return False
    return not (
        lease.get("suspension") and report["state"] in ("suspended", "stopped") and report["reason"] == "preempted"
    )


def is_withdrawn(allocation: Object) -> bool:
    """Whether it is a former place that was never begun: its lease begins elsewhere, and its node may be lost."""
    leased = allocation["spec"]["lease"] is not None
    return leased and allocation.get("deleting_since") is not None and allocation["report"]["state"] == "pending"


def find_twice_placed(allocations: Iterable[Object]) -> list[str]:
    """The workloads that have two places, none of which is on its way out or part of a migration."""
    places: dict[str, list[str]] = defaultdict(list)
    for one in allocations:
        if one["spec"]["role"] == "active" and one.get("deleting_since") is None:
            places[one["spec"]["workload"]["name"]].append(one["spec"]["node"])
    return [f"{name} has places on {' and '.join(nodes)}" for name, nodes in places.items() if len(nodes) > 1]


def find_double_booked(allocations: Iterable[Object], nodes: Iterable[Object], now: float) -> list[str]:
    """The nodes that give more than they have: at some moment by their calendar, or now by what runs."""
    capacity = {node["name"]: (node["report"]["cpu"], node["report"]["memory"]) for node in nodes}
    stretches: dict[str, list[tuple[float, float, float, int, str]]] = defaultdict(list)
    running: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
    for one in allocations:
        spec, report = one["spec"], one["report"]
        if _is_ending(spec.get("lease"), now):
            continue  # its node ends it, and ``find_overdue`` says when that takes too long
        cpu, memory, name = spec["resources"]["cpu"], spec["resources"]["memory"], spec["workload"]["name"]
        if report["state"] in RUNS and holds(one):
            running[spec["node"]].append((cpu, memory, name))
        if holds(one) and not spec.get("slot"):  # what is in a slot takes nothing beside it
            begin, end = _find_stretch(spec, report, now)
            stretches[spec["node"]].append((begin, end, cpu, memory, name))
    found = []
    for node, (cores, size) in capacity.items():
        for moment in sorted({now, *(one[0] for one in stretches[node] if one[0] > now)}):
            taken = [one for one in stretches[node] if one[0] <= moment < one[1]]
            if sum(one[2] for one in taken) > cores + _SLACK or sum(one[3] for one in taken) > size:
                told = ", ".join(f"{one[4]} {one[2]:g} from {one[0] - now:.1f} to {one[1] - now:.1f}" for one in taken)
                found.append(f"{node} is promised to too many in {moment - now:.1f} s: {told}")
                break
        if sum(one[0] for one in running[node]) > cores + _SLACK or sum(one[1] for one in running[node]) > size:
            found.append(f"{node} runs more than it has: {[f'{one[2]} {one[0]:g}' for one in running[node]]}")
    return found


def _find_stretch(spec: Object, report: Object, now: float) -> tuple[float, float]:
    lease = spec.get("lease")
    if lease is None:
        return -math.inf, math.inf
    begin = lease.get("prepare_at", 0.0) if report["state"] == "pending" else -math.inf
    if lease.get("suspension"):
        return begin, lease["suspension"]["at"]
    if lease.get("cancelled"):
        return begin, now + _SLACK
    end = lease.get("end")
    return begin, math.inf if end is None else end


def _is_ending(lease: Object | None, now: float) -> bool:
    return lease is not None and not lease.get("suspension") and bool(lease.get("end")) and lease["end"] <= now


def find_overdue(allocations: Iterable[Object], now: float, lost: Container[str] = ()) -> list[str]:
    """The leases whose guests run long after their end; not those on nodes of which nobody knows (``lost``)."""
    found = []
    for one in allocations:
        spec, lease = one["spec"], one["spec"].get("lease")
        if lease is None or not lease.get("end") or lease.get("suspension") or one["report"]["state"] != "running":
            continue
        if spec["node"] in lost:
            continue
        late = now - lease["end"] - spec["grace_seconds"]
        if late > LATE_END_SECONDS:
            found.append(f"{spec['workload']['name']} runs {late:.0f} s after its lease's end")
    return found


def find_over_quota(workloads: Iterable[Object], limits: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The projects whose workloads and reservations, all there are at one moment, together exceed their quota."""
    used: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for one in workloads:
        if one["project"] in limits:
            mine, spec, times = used[one["project"]], one["spec"], 0
            if one["kind"] == "reservation":
                times = 0 if one["status"].get("state") in ("Done", "Rejected") else spec["count"]
            elif one["status"].get("reason") != "leaseEnded":
                mine["instances"] += 1
                times = 0 if spec.get("reservation") else 1  # its reservation counts
            mine["cpu"] += spec["cpu"] * times
            mine["memory"] += spec["memory"] * times
    return [
        f"project {project} has {field} {used[project][field]:g} of {limit:g}"
        for project, fields in limits.items()
        for field, limit in fields.items()
        if used[project][field] > limit + _SLACK
    ]


def find_full_slots(allocations: Sequence[Object]) -> list[str]:
    """The slots of reservations that are given to more than they have, or to what isn't of their project or node."""
    slots = {one["name"]: one["spec"] for one in allocations if one["spec"]["role"] == "reserved"}
    users: dict[str, list[Object]] = defaultdict(list)
    for one in allocations:
        if one["spec"].get("slot") in slots and holds(one):
            users[one["spec"]["slot"]].append(one["spec"])
    found = []
    for name, inside in users.items():
        slot, told = slots[name], ", ".join(f"{one['workload']['name']} {one['resources']['cpu']:g}" for one in inside)
        whose = f"a slot of {slot['workload']['name']} on {slot['node']}"
        found += [
            f"{whose} has {slot['resources'][kind]:g} {kind}, and in it are {told}"
            for kind in ("cpu", "memory")
            if sum(one["resources"][kind] for one in inside) > slot["resources"][kind] + _SLACK
        ]
        if any(
            (one["node"], one["workload"]["project"]) != (slot["node"], slot["workload"]["project"]) for one in inside
        ):
            found.append(f"{whose} is used from elsewhere: {told}")
    return found


def find_half_reserved(allocations: Iterable[Object], reservations: Iterable[Object]) -> list[str]:
    """The reservations that are accepted, tell of no lost slot, and have fewer or more than all; or that aren't, and have some."""
    counts: dict[str, int] = defaultdict(int)
    for one in allocations:
        if one["spec"]["role"] == "reserved" and one.get("deleting_since") is None:
            counts[one["spec"]["workload"]["name"]] += 1
    found = []
    for one in reservations:
        status, count = one["status"], counts[one["name"]]
        accepted = status.get("state") in ("Scheduled", "Active")
        whole = one["spec"]["count"] if accepted else 0
        told = accepted and status.get("message") and count < whole
        if count != whole and not told and status.get("state") != "Done" and one.get("deleting_since") is None:
            found.append(
                f"reservation/{one['name']} is {status.get('state')} with {count} of {one['spec']['count']} slots"
            )
    return found


class Gang(NamedTuple):
    size: int
    members: Sequence[str]


def find_split_gangs(allocations: Iterable[Object], gangs: Mapping[str, Gang]) -> tuple[set[str], list[str]]:
    """The gangs of which all have a place, and the others of which some have."""
    placed = {one["spec"]["workload"]["name"] for one in allocations if one["spec"]["role"] == "active"}
    whole, found = set[str](), []
    for name, gang in gangs.items():
        there = [member for member in gang.members if member in placed]
        if len(there) == gang.size:
            whole.add(name)
        elif there:
            found.append(f"of gang {name} only {', '.join(there)} have a place, of {gang.size}")
    return whole, found


def find_over_budget(allocations: Iterable[Object], members: Container[str], most: int) -> list[str]:
    """Whether more of ``members`` are suspended for others than their disruption budget lets be down."""
    down = [
        spec["workload"]["name"]
        for one in allocations
        if (spec := one["spec"])["workload"]["name"] in members
        and one.get("deleting_since") is None
        and spec["role"] != "target"
        and (spec.get("lease") or {}).get("suspension")
    ]
    return [f"{', '.join(sorted(down))} are suspended at once, of which {most} may"] if len(down) > most else []


def find_above_ceiling(workloads: Iterable[Object], ceilings: Mapping[str, int | None]) -> list[str]:
    """The workloads with a higher priority than their project allows."""
    found = []
    for one in workloads:
        lease, ceiling = one["spec"].get("lease"), ceilings.get(one["project"])
        if lease is not None and ceiling is not None and lease["priority"] > ceiling:
            found.append(
                f"{one['kind']}/{one['name']} of {one['project']} has priority {lease['priority']}, above {ceiling}"
            )
    return found


def count_core_seconds(records: Iterable[Object], projects: Iterable[str]) -> dict[str, float]:
    """What accounting says that each project requested."""
    found = dict.fromkeys(projects, 0.0)
    for one in records:
        if one["spec"]["project"] in found:
            found[one["spec"]["project"]] += sum(entry.get("cpu", 0.0) for entry in one["status"]["entries"])
    return found


class Held(NamedTuple):
    """An allocation had its cores from ``earliest`` on at most and from ``begin`` on at least; it was last seen to have them at
    ``last``, and first seen without at ``until``."""

    project: str
    cpu: float
    earliest: float
    begin: float
    last: float
    until: float


def find_miscounted(held: Iterable[Held], counted: Mapping[str, float]) -> list[str]:
    """The projects of which accounting counts more than they had, or less."""
    least, most = dict.fromkeys(counted, 0.0), dict.fromkeys(counted, 0.0)
    for one in held:
        least[one.project] += one.cpu * max(0.0, one.last - one.begin)
        most[one.project] += one.cpu * max(0.0, one.until - one.earliest)
    return [
        f"accounting has {count:.0f} core-seconds of project {project}, which had {least[project]:.0f} to {most[project]:.0f}"
        for project, count in counted.items()
        if not least[project] - 1.0 <= count <= most[project] + 1.0
    ]
