"""The last week of a workload or a node, from the server's history of metrics."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from weft.client.answer import raise_problem
from weft.client.api import Client

WEEK_SECONDS, STEP_SECONDS = 604_800.0, 600.0
_OF = "{{project='{project}',kind='{kind}',name='{name}'}}[{step:.0f}s]"
_GUEST = f"max by (name) (avg_over_time(weft_guest_cpu_cores{_OF}))"
_QUERIES = {
    "function": f"sum by (name) (rate(weft_function_invocations_total{_OF}))",
    "node": "max by (node) (avg_over_time(weft_node_cpu_used_cores{{node='{name}'}}[{step:.0f}s]))",
}


def fetch_week(
    client: Client, project: str, kind: str, name: str, since: float, now: float
) -> list[tuple[float, float]]:
    """(unix seconds, value) in ten-minute means, or finer ones where it is younger. Raises Unavailable where no history is kept."""
    start = max(now - WEEK_SECONDS, since)
    step = max(60.0, (now - start) / (WEEK_SECONDS / STEP_SECONDS))
    query = _QUERIES.get(kind, _GUEST).format(project=project, kind=kind, name=name, step=step)
    asked = {"query": query, "start": f"{start:.0f}", "end": f"{now:.0f}", "step": f"{step:.0f}"}
    answer = client.http.request("GET", f"/api/v1/query_range?{urlencode(asked)}")
    raise_problem(answer)
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return [(float(at), float(value)) for at, value in found[0]["values"]] if found else []
