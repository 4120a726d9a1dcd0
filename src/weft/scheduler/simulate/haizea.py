"""Lease workloads of Haizea (github.com/borjasotomayor/haizea): a site and lease requests, as XML. Times count from the trace's
beginning."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, fromstring

import msgspec

from weft.objects.errors import InvalidInput
from weft.scheduler.lease.plan import Lease, Mode
from weft.scheduler.simulate.csv_file import read_text

SUSPEND_MB_PER_SECOND = 32.0  # as Haizea's own tests have it
_MEMORY = "Memory"  # the resource that a suspension writes, in MB
_MOST_MACHINES = 100_000


class Site(msgspec.Struct, frozen=True):
    """Contents of a file."""

    capacity: list[tuple[float, ...]]  # of each node
    leases: list[Lease]
    real_seconds: dict[str, float]  # of those that end sooner than they asked for


def read_site(path: Path) -> Site:
    """Raises NotFound, InvalidInput."""
    text = read_text(path)
    try:
        if "<!" in text.replace("<!--", ""):
            raise ValueError("a lease workload needs no document type and no entities")
        root = fromstring(text)  # noqa: S314 — without a document type there is nothing in it to expand
        site = _find(root, "site")
        names = tuple(_get(_find(site, "resource-types"), "names").split())
        leases, real = [], {}
        for request in root.iter("lease-request"):
            lease = _read_lease(request, names)
            leases.append(lease)
            if (found := request.find(".//realduration")) is not None:
                real[lease.id] = read_seconds(_get(found, "time"))
        if len({lease.id for lease in leases}) != len(leases):
            raise ValueError("two leases have the same id")
        return Site(_read_node_sets(_find(site, "nodes"), names), leases, real)
    except (ParseError, ValueError) as problem:
        raise InvalidInput(
            f"{path}: {problem}", hint="--format haizea takes Haizea's lease workloads with a <site>"
        ) from None


def read_seconds(text: str) -> float:
    """``HH:MM:SS.cc``, or with days ``D:HH:MM:SS.cc``. Raises ValueError."""
    *more, hours, minutes, seconds = text.split(":") if text.count(":") in (2, 3) else ("", "", "")
    days = more[0] if more else "0"
    if not (all(part.isdecimal() for part in (days, hours, minutes)) and 0 <= float(seconds) < math.inf):
        raise ValueError(f"{text[:40]!r} is not a time like 01:30:00.00, or 1:06:30:00.00 with days")
    return int(days) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _read_lease(request: Element, names: tuple[str, ...]) -> Lease:
    lease = _find(request, "lease")
    machines = tuple(_read_node_sets(_find(lease, "nodes"), names))
    mode: Mode = "best-effort"
    start = lease.find("start")
    exact = start.find("exact") if start is not None else None
    deadline = lease.find("deadline")
    if start is not None and start.find("now") is not None:
        mode = "immediate"
    elif deadline is not None:
        mode = "deadline"
    elif exact is not None:
        mode = "reservation"
    memory = max(machine[names.index(_MEMORY)] for machine in machines) if _MEMORY in names else 0.0
    return Lease(
        id=_get(lease, "id"),
        mode=mode,
        arrival=read_seconds(_get(request, "arrival")),
        machines=machines,
        duration=read_seconds(_get(_find(lease, "duration"), "time")),
        start=read_seconds(_get(exact, "time")) if exact is not None else 0.0,
        deadline=read_seconds(_get(deadline, "time")) if deadline is not None else math.inf,
        preemptible=_get(lease, "preemptible").lower() == "true",
        suspend_seconds=memory / SUSPEND_MB_PER_SECOND,
    )


def _read_node_sets(nodes: Element, names: tuple[str, ...]) -> list[tuple[float, ...]]:
    found: list[tuple[float, ...]] = []
    for group in nodes.iter("node-set"):
        amounts = {_get(resource, "type"): float(_get(resource, "amount")) for resource in group.iter("res")}
        if unknown := set(amounts) - set(names):
            raise ValueError(f"the site has no resource {min(unknown)}")
        count = int(_get(group, "numnodes"))
        if not 0 < count <= _MOST_MACHINES - len(found):
            raise ValueError(f"numnodes {count} is not from 1 to {_MOST_MACHINES:,}")
        if not all(0 <= amount < math.inf for amount in amounts.values()):
            raise ValueError("an amount of a resource is not a number of 0 or more")
        found += [tuple(amounts.get(name, 0.0) for name in names)] * count
    if not found:
        raise ValueError("there is a <nodes> without a <node-set>")
    return found


def _find(element: Element, name: str) -> Element:
    if (found := element.find(name)) is None:
        raise ValueError(f"a <{element.tag}> has no <{name}>")
    return found


def _get(element: Element, name: str) -> str:
    if (found := element.get(name)) is None:
        raise ValueError(f"a <{element.tag}> has no {name}")
    return found
