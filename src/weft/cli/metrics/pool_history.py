"""What pools held over time, from the server's history of metrics."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlencode

from weft.cli.metrics.samples import Answer
from weft.client.answer import raise_problem
from weft.client.api import Client

POINTS = 120  # of each series, at most
LEAST_STEP_SECONDS = 10.0  # how often the server records them
_PARTS = ("used", "given", "capacity")


def fetch_pools(client: Client, pools: Collection[str], seconds: float, now: float) -> tuple[list[Answer], float]:
    """The series of these pools, ``fast.used`` and so on, over so many seconds until ``now``, and the seconds from point to point.
    Raises Unavailable where the server keeps no history."""
    step = max(LEAST_STEP_SECONDS, seconds / POINTS)
    found: dict[str, Answer] = {}
    for part in _PARTS:
        asked = {"query": f"weft_pool_{part}_bytes", "start": now - seconds, "end": now, "step": f"{step:.3f}"}
        answer = client.http.request("GET", f"/api/v1/query_range?{urlencode(asked)}")
        raise_problem(answer)
        found |= read_series(answer.json(), part, pools)
    return [found[name] for pool in sorted(pools) for part in _PARTS if (name := f"{pool}.{part}") in found], step


def read_series(answer: Answer, part: str, pools: Collection[str]) -> dict[str, Answer]:
    """Pure. Those of these pools in a Prometheus answer, as a node's samples are, by name."""
    return {
        f"{one['metric']['pool']}.{part}": {
            "name": f"{one['metric']['pool']}.{part}",
            "unit": "bytes",
            "points": [[at, float(value)] for at, value in one["values"]],
        }
        for one in answer["data"]["result"]
        if one["metric"].get("pool") in pools
    }
