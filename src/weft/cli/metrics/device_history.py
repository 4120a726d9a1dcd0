"""Numbers that a device reported over time, from the server's history of metrics."""

from __future__ import annotations

import math
from collections.abc import Collection
from urllib.parse import urlencode

from weft.cli.metrics.samples import Answer
from weft.client.answer import raise_problem
from weft.client.api import Client

POINTS = 360  # of each series, at most
LEAST_STEP_SECONDS = 10.0  # how often the server records them


def fetch_device(client: Client, project: str, device: str, seconds: float, now: float) -> tuple[Answer, float]:
    """The server's answer (Prometheus' form) on all properties of a device over so many seconds until ``now``, and the seconds from
    point to point. Raises Unavailable where the server keeps no history."""
    step = float(math.ceil(max(LEAST_STEP_SECONDS, seconds / POINTS)))
    query = f'weft_device_property{{project="{project}",device="{device}"}}'  # names have letters, digits and hyphens
    asked = {"query": query, "start": now - seconds, "end": now, "step": f"{step:g}"}
    answer = client.http.request("GET", f"/api/v1/query_range?{urlencode(asked)}")
    raise_problem(answer)
    return answer.json(), step


def read_properties(answer: Answer, only: Collection[str] = ()) -> list[Answer]:
    """Pure. The series in a Prometheus answer as a node's samples are, by property; with ``only``, of these. At a time that one has
    no value for, it has None."""
    found = {
        str(one["metric"].get("property", "")): {float(at): float(value) for at, value in one["values"]}
        for one in answer["data"]["result"]
    }
    times = sorted({at for values in found.values() for at in values})
    return [
        {"name": name, "unit": "", "points": [[at, values.get(at)] for at in times]}
        for name, values in sorted(found.items())
        if not only or name in only
    ]


def fill(series: list[Answer], step: float) -> list[Answer]:
    """Pure. The same with None for times at which nobody knew anything: a cut shows as a gap."""
    times = [at for at, _ in series[0]["points"]] if series else []
    every = [] if not times else [times[0] + step * n for n in range(round((times[-1] - times[0]) / step) + 1)]
    filled = []
    for one in series:
        known = {round(at): value for at, value in one["points"]}
        filled.append({**one, "points": [[at, known.get(round(at))] for at in every]})
    return filled
