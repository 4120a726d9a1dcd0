"""The network between the nodes, as rows of a table."""

from __future__ import annotations

import urllib.parse
from typing import Any

from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.client.answer import raise_problem
from weft.objects.quantity import format_age

LINK_COLUMNS = make_columns("SOURCE!", "TARGET!", "LATENCY>!", "BANDWIDTH>", "USE>", "AGE>", "KNOWN")
Answer = dict[str, Any]


def fetch_topology(session: Session, by: str, node: str) -> Answer:
    """``GET /v1/topology``. Raises WeftError."""
    query = urllib.parse.urlencode({"by": by, "node": node})
    answer = session.client.http.request("GET", f"/v1/topology?{query}")
    raise_problem(answer)
    found: Answer = answer.json()
    return found


def draw_links(topology: Answer) -> list[list[str]]:
    """A row for each link, the nearest ends first."""
    links = sorted(topology["links"], key=lambda link: (link["latency_ms"] is None, link["latency_ms"], link["source"]))
    return [
        [
            link["source"],
            link["target"],
            format_latency(link["latency_ms"]),
            format_bandwidth(link["bandwidth_mbps"]),
            "–" if link["utilisation"] is None else f"{link['utilisation']:.0%}",
            "–" if link["age_seconds"] is None else format_age(link["age_seconds"]),
            "declared" if link["declared"] else "measured" if link["measured"] else "estimated",
        ]
        for link in links
    ]


def format_latency(latency_ms: float | None) -> str:
    """``0.42 ms``"""
    return "–" if latency_ms is None else f"{latency_ms:.3g} ms" if latency_ms < 1000 else f"{latency_ms:.0f} ms"


def format_bandwidth(mbps: float | None) -> str:
    """``940 Mbit/s``, ``9.4 Gbit/s``"""
    if mbps is None:
        return "–"
    return f"{mbps / 1000:.3g} Gbit/s" if mbps >= 1000 else f"{mbps:.3g} Mbit/s"
