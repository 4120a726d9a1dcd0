"""`weft function metrics thumb`: how often, how long and how well it ran."""

from __future__ import annotations

import json
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.output.formats import print_data
from weft.cli.output.table import Column, draw_table
from weft.cli.session import Session
from weft.cli.stream.request import exchange
from weft.kinds.record import Kind
from weft.objects.quantity import format_age, format_bytes

_TIMES = (("duration", "its code"), ("latency", "round trip"), ("init", "starting"))


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [options.targets(kind, many=False, able=entry.kinds), options.output()]
    return options.build(verb, "Show how often, how long and how well a function ran.", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...]) -> int:
    target = find_one(session, kind, words, ("function",), "give one function")
    answer, _ = exchange(session, "function", target.name, "metrics", {})
    told: dict[str, Any] = json.loads(answer)
    if session.is_data:
        print_data(session, told)
        return 0
    print("\n".join(describe_metrics(told, session.clock.now())))
    return 0


def describe_metrics(told: dict[str, Any], now: float) -> list[str]:
    """The lines for people."""
    invocations, errors = told["invocations"], sum(told["errors"].values())
    lines = [
        f"{told['function']}  in the last {format_age(now - told['since'])}",
        f"  invocations  {invocations}, {told['concurrent']} running now, {told['most_concurrent']} at most",
        f"  errors       {errors}{_kinds(told['errors'])}",
        f"  throttled    {told['throttles']}",
        f"  refused      {sum(told['refused'].values())}{_kinds(told['refused'])}",
        f"  lost         {told['lost']}",
        f"  starts       {_list(told['starts']) or 'none'}{_share_cold(told['starts'])}",
        f"  most memory  {format_bytes(told['most_memory'])}",
    ]
    columns = (Column("MILLISECONDS"), *(Column(title, right=True) for title in ("MEAN", "P50", "P90", "P99", "MOST")))
    rows = [
        [words, *(f"{told[name][part]:.1f}" for part in ("mean", "p50", "p90", "p99", "most"))]
        for name, words in _TIMES
    ]
    lines += ["", draw_table(columns, rows)]
    if told["instances"]:
        columns = (
            Column("NODE"),
            *(Column(title, right=True) for title in ("RUNNING", "IDLE", "READY")),
            Column("PREPARED"),
        )
        rows = [
            [
                there["node"],
                *(str(there[part]) for part in ("busy", "idle", "ready")),
                "yes" if there["prepared"] else "no",
            ]
            for there in told["instances"]
        ]
        lines += ["", draw_table(columns, rows)]
    return lines


def _share_cold(starts: dict[str, int]) -> str:
    """How many of them waited for an instance to come up."""
    cold, whole = starts.get("cold", 0) + starts.get("clone", 0), sum(starts.values())
    return f" ({100 * cold / whole:.0f} % waited for an instance to start)" if cold else ""


def _kinds(counts: dict[str, int]) -> str:
    return f": {_list(counts)}" if counts else ""


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda one: -one[1]) if count)
