"""What nodes and guests really use, as the server has heard of it last."""

from __future__ import annotations

from typing import Any

from weft.client.answer import raise_problem
from weft.client.http import Http

Objects = list[dict[str, Any]]


def fetch_usage(http: Http, *, guests: bool = False) -> Objects:
    """Of each node that says it: ``node`` (its uid), ``use``, ``age_seconds`` and, where asked for, the ``guests`` by their
    workloads' uids. A server that doesn't know of it yet says nothing."""
    answer = http.request("GET", f"/v1/usage?guests={int(guests)}")
    if answer.status == 404:
        return []
    raise_problem(answer)
    items: Objects = answer.json()["items"]
    return items
