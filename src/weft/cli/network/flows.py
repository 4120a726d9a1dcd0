"""A workload's flows, from its node, as rows and data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from weft.cli.command.target import Target
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.cli.stream.client import exchange
from weft.objects.quantity import format_bytes
from weft.objects.schema import suggest

FLOW_COLUMNS = make_columns(  # FLOWS are of groups, RATE is of a watch
    "PROTOCOL", "SOURCE!", "DESTINATION!", "FLOWS>~", "BYTES>", "PACKETS>", "RATE>~", "VERDICT!", "GROUP~", "NETWORK"
)
_SAME = ("protocol", "source", "destination", "destination_port", "verdict", "security_group", "network")
_PROTOCOLS = ["tcp", "udp", "icmp"]
_VERDICTS = {"unanswered": "sent, no answer"}
Answer = dict[str, Any]


def read_ports(text: str) -> list[dict[str, int]]:
    """``80,443,8000-8100`` as the verb takes it. Raises UsageError."""
    found = []
    for word in filter(None, text.replace(" ", "").split(",")):
        first, dash, last = word.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last) <= 65535):
            raise click.UsageError(
                f"--ports: {word[:40]!r} is not a port; give ports from 1 to 65535, like 80,443,8000-8100"
            )
        found.append({"first": int(first), "last": int(last)})
    return found


def read_protocol(text: str) -> str:
    """A protocol as the verb takes it; "" is any. Raises UsageError."""
    word = text.strip().lower()
    if word in ("", *_PROTOCOLS) or (word.isdecimal() and int(word) <= 255):
        return word
    meant = suggest(word, _PROTOCOLS)
    remedy = f"did you mean {meant}?" if meant else "give tcp, udp, icmp, or a number up to 255"
    raise click.UsageError(f"--protocol: {text[:40]!r} is not a protocol; {remedy}")


def fetch_flows(session: Session, target: Target, asked: dict[str, Any]) -> Answer:
    """Its flows now. Raises WeftError."""
    answer, _ = exchange(session, target.kind.name, target.name, "flows", asked)
    flows: Answer = json.loads(answer)
    return flows


def group_flows(flows: Sequence[Answer]) -> list[Answer]:
    """One for all flows of the same opener to the same port with the same outcome, with sums and their number as ``flows``; those
    with most bytes first."""
    groups: dict[tuple[Any, ...], Answer] = {}
    for flow in flows:
        key = tuple(flow[name] for name in _SAME)
        group = groups.setdefault(
            key, {**flow, "source_port": 0, "flows": 0, "bytes": 0, "packets": 0, "bytes_per_second": None}
        )
        group["flows"] += flow.get("flows") or 1
        for name in ("bytes", "packets"):
            group[name] += flow[name]
        if flow["bytes_per_second"] is not None:
            group["bytes_per_second"] = (group["bytes_per_second"] or 0) + flow["bytes_per_second"]
    return sorted(groups.values(), key=lambda group: -group["bytes"])


def draw_flows(flows: Sequence[Answer]) -> list[list[str]]:
    """A row for each flow or group of flows."""
    return [
        [
            flow["protocol"],
            _end(flow, "source"),
            _end(flow, "destination"),
            str(flow.get("flows", "")),
            format_bytes(flow["bytes"]),
            str(flow["packets"]),
            "" if flow["bytes_per_second"] is None else f"{format_bytes(round(flow['bytes_per_second']))}/s",
            _VERDICTS.get(flow["verdict"]) or flow["verdict"],
            flow["security_group"],
            flow["network"],
        ]
        for flow in flows
    ]


def _end(flow: Answer, end: str) -> str:
    """``web 10.0.0.2:80``"""
    port = f":{flow[end + '_port']}" if flow[end + "_port"] else ""
    return f"{flow[end + '_name']} {flow[end]}{port}".strip()
