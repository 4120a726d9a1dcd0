"""A workload's flows, from its node, as rows and data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click

from weft.cli.command.target import Target
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.cli.stream.client import Stream, dial, exchange
from weft.objects.errors import Unavailable
from weft.objects.quantity import format_bytes

FLOW_COLUMNS = make_columns(
    "PROTOCOL", "SOURCE!", "DESTINATION!", "BYTES>", "PACKETS>", "RATE>", "VERDICT", "GROUP~", "NETWORK"
)
_AGAIN_SECONDS = 1.0
_TRIES = 30
Answer = dict[str, Any]


def read_ports(text: str) -> list[dict[str, int]]:
    """``80,443,8000-8100`` as the verb takes it. Raises UsageError."""
    found = []
    for word in filter(None, text.replace(" ", "").split(",")):
        first, _, last = word.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal() and 1 <= int(first) <= int(last or first) <= 65535):
            raise click.UsageError(
                f"--ports: {word[:40]!r} is no port: give ports from 1 to 65535, like 80,443,8000-8100"
            )
        found.append({"first": int(first), "last": int(last or first)})
    return found


def fetch_flows(session: Session, target: Target, asked: dict[str, Any]) -> Answer:
    """Its flows now. Raises WeftError."""
    answer, _ = exchange(session, target.kind.name, target.name, "flows", asked)
    flows: Answer = json.loads(answer)
    return flows


def watch_flows(session: Session, target: Target, asked: dict[str, Any], show: Callable[[Answer], None]) -> int:
    """Give ``show`` the flows again and again; after a migration from the next node. Raises WeftError."""
    rest = bytearray()
    tries = 0

    def take(descriptor: int, data: bytes) -> None:
        nonlocal tries
        rest.extend(data)
        while b"\n" in rest:
            line, _, after = bytes(rest).partition(b"\n")
            rest[:] = after
            tries = 0
            show(json.loads(line))

    while True:
        rest.clear()
        try:
            ticket = session.client.verb(target.kind.name, target.name, "flows", {**asked, "watch": True})
            with dial(session.client.context, ticket) as sock:
                Stream(sock, forward_end=False, write=take).run(None)
        except Unavailable:
            tries += 1
            if tries > _TRIES:
                raise
        session.rests(_AGAIN_SECONDS)


def draw_flows(flows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each."""
    return [
        [
            flow["protocol"],
            _end(flow, "source"),
            _end(flow, "destination"),
            format_bytes(flow["bytes"]),
            str(flow["packets"]),
            "" if flow["bytes_per_second"] is None else f"{format_bytes(round(flow['bytes_per_second']))}/s",
            flow["verdict"],
            flow["security_group"],
            flow["network"],
        ]
        for flow in flows
    ]


def _end(flow: dict[str, Any], end: str) -> str:
    """``web 10.0.0.2:80``"""
    port = f":{flow[end + '_port']}" if flow[end + "_port"] else ""
    return f"{flow[end + '_name']} {flow[end]}{port}".strip()
