"""Amounts that pools, OSDs and backup repositories held over time, from the server's history of metrics."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple
from urllib.parse import urlencode

from weft.cli.metrics.samples import Answer
from weft.client.answer import raise_problem
from weft.client.api import Client

POINTS = 120  # of each series, at most
LEAST_STEP_SECONDS = 10.0  # how often the server records them


class Asked(NamedTuple):
    """A query whose answer has a series for each combination of ``labels``; ``part`` is the series' own word."""

    query: str
    part: str
    unit: str
    labels: tuple[str, ...]


OF_POOLS = tuple(Asked(f"weft_pool_{part}_bytes", part, "bytes", ("pool",)) for part in ("used", "given", "capacity"))
# Nodes on one machine see the same OSDs.
OF_OSDS = (
    Asked("max by (pool, osd) (weft_osd_used_bytes)", "used", "bytes", ("pool", "osd")),
    Asked("max by (pool, osd, operation) (weft_osd_latency_seconds)", "", "s", ("pool", "osd", "operation")),
)
OF_REPOSITORIES = (
    Asked("weft_backuprepository_used_bytes", "used", "bytes", ("repository",)),
    Asked("weft_backuprepository_free_bytes", "free", "bytes", ("repository",)),
    Asked("weft_backuprepository_backups", "backups", "", ("repository",)),
)


def fetch_storage(
    client: Client, asked: Collection[Asked], names: Collection[str], seconds: float, now: float
) -> tuple[list[Answer], float]:
    """The series of these pools or repositories, ``fast.used`` and so on, over so many seconds until ``now``, and the seconds from
    point to point. Raises Unavailable where the server keeps no history."""
    step = max(LEAST_STEP_SECONDS, seconds / POINTS)
    found: list[Answer] = []
    for one in asked:
        words = {"query": one.query, "start": now - seconds, "end": now, "step": f"{step:.3f}"}
        answer = client.http.request("GET", f"/api/v1/query_range?{urlencode(words)}")
        raise_problem(answer)
        found += read_series(answer.json(), one, names)
    order = sorted(names)
    return sorted(found, key=lambda one: order.index(one["name"].partition(".")[0])), step


def read_series(answer: Answer, asked: Asked, names: Collection[str]) -> list[Answer]:
    """Pure. Those of these pools or repositories in a Prometheus answer, as a node's samples are."""
    series = []
    for one in answer["data"]["result"]:
        words = [str(one["metric"].get(label, "")) for label in asked.labels]
        if words[0] in names:
            name = ".".join([*words, asked.part] if asked.part else words)
            points = [[at, float(value)] for at, value in one["values"]]
            series.append({"name": name, "unit": asked.unit, "points": points})
    return sorted(series, key=lambda one: str(one["name"]))
