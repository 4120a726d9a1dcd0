"""Usage of nodes and guests, by their latest reports to the server."""

from __future__ import annotations

from typing import Any

from weft.client.answer import raise_problem
from weft.client.http import Http

Objects = list[dict[str, Any]]


def fetch_usage(http: Http, *, guests: bool = False) -> Objects:
    """Fetch the usage of each node that reports it: ``node`` (its uid), ``use``, ``age_seconds`` and, on request, the ``guests`` by
    their workloads' uids. Empty from a server that doesn't know it yet."""
    answer = http.request("GET", f"/v1/usage?guests={int(guests)}")
    if answer.status == 404:
        return []
    raise_problem(answer)
    items: Objects = answer.json()["items"]
    return items
