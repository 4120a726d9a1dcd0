"""`weft queue`: the pending workloads in the scheduler's order, their expected start, and what holds them. `weft fairness`:
what each project has of the cluster."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.output.formats import print_data, print_items
from weft.cli.output.table import make_columns
from weft.cli.placement.question import ask
from weft.cli.session import Session
from weft.kinds.record import Kind
from weft.objects.quantity import format_age, format_amount, format_bytes

_TITLES = ("PLACE>", "WORKLOAD!", "PRIORITY>", "WAITING>", "STARTS!", "CONFIDENCE!", "HELD BY~!")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [options.all_projects(), *options.table(), options.answer_timeout(), options.output()]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(session: Session, kind: Kind | None) -> None:
    answered = ask(session, "report" if session.all_projects else "recommendation", {"subject": "queue"})
    items, count = answered["status"]["queue"], answered["status"]["queued"]
    if session.is_document:
        print_data(session, {"items": items, "queued": count})
        return
    titles = ("PROJECT", *_TITLES) if session.all_projects else _TITLES
    now = session.clock.now()
    rows = [[*([one["project"]] if session.all_projects else []), *_row(one, now)] for one in items]
    if any(passed := [one.get("passed_by", "") for one in items]):
        titles, rows = (*titles, "PASSED BY~!"), [[*row, text] for row, text in zip(rows, passed, strict=True)]
    table = make_columns(*titles), rows
    print_items(session, items, [one["workload"] for one in items], table, "the queue is empty")
    if count > len(items) and not session.is_data:
        session.notify(f"showing the first {len(items)} of {count}")


def _row(one: dict[str, Any], now: float) -> list[str]:
    start, held = one["expected_start"], one["held_by"]
    return [
        "–" if one["place"] is None else str(one["place"]),
        one["workload"],
        str(one["priority"]),
        format_age(one["waiting_seconds"]),
        "unknown" if start is None else f"in {format_age(start - now)}" if start > now else "now",
        one["confidence"],
        held["message"] or held["reason"],
    ]


_SHARES = make_columns(
    "PROJECT!", "WEIGHT>", "SHARE>", "ENTITLED>", "OF", "PENDING>", "CPU>", "MEMORY>", "GPUS>"
)  # SHARE: of its dominant resource


def fairness_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [*options.table(), options.answer_timeout(), options.output()]
    return options.build(verb, f"{entry.summary}.", _report, kind, params)


def _report(session: Session, kind: Kind | None) -> None:
    items = ask(session, "report", {"subject": "fairness"})["status"]["fairness"]
    rows = [
        [
            one["project"],
            f"{one['weight']:g}",
            f"{one['dominant_share']:.1%}",
            f"{one['entitled_share']:.1%}",
            one["dominant_resource"] or "–",
            str(one["pending"]),
            format_amount(one["used"]["cpu"]),
            format_bytes(one["used"]["memory"]),
            format_amount(one["used"]["gpus"]),
        ]
        for one in items
    ]
    print_items(session, items, [f"project/{one['project']}" for one in items], (_SHARES, rows), "no projects")
