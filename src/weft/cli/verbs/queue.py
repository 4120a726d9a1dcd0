"""`weft queue`: the pending workloads in the scheduler's order, their expected start, and what holds them. `weft fairness`:
what each project has of the cluster."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.grammar import PLACED, Entry
from weft.cli.output.formats import print_data, print_items
from weft.cli.output.table import make_columns
from weft.cli.placement.question import ask
from weft.cli.session import Session
from weft.cli.verbs.list import list_allowed
from weft.kinds.fields.cells import dig
from weft.kinds.parts.goal import find_condition
from weft.kinds.record import Kind, Object
from weft.objects.errors import Forbidden
from weft.objects.quantity import format_age, format_amount, format_bytes

_TITLES = ("PLACE>", "WORKLOAD!", "PRIORITY>", "WAITING>", "STARTS!", "CONFIDENCE!", "HELD BY~!")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [options.all_projects(), *options.table(), options.answer_timeout(), options.output()]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(session: Session, kind: Kind | None) -> None:
    items, count = _ask(session)
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


def _ask(session: Session) -> tuple[list[dict[str, Any]], int]:
    """The scheduler's answer; where asking it is refused, what waits, without its place and its start."""
    try:
        answered = ask(session, "report" if session.all_projects else "recommendation", {"subject": "queue"})
    except Forbidden as refused:
        if session.all_projects:
            raise
        items = [
            _read(one, session.clock.now()) for one in list_allowed(session, PLACED, {"fields": "phase=Pending"})[0]
        ]
        session.notify(f"without the scheduler's order and expected starts: {refused.message}")
        return sorted(items, key=lambda one: (-one["priority"], -one["waiting_seconds"])), len(items)
    return answered["status"]["queue"], answered["status"]["queued"]


def _read(workload: Object, now: float) -> dict[str, Any]:
    """One that waits, as the scheduler's answer has them."""
    placed = find_condition(workload, "Placed") or {}
    undecided = {"reason": "undecided", "message": "the scheduler has not decided on it yet"}
    held = {"reason": placed["reason"], "message": placed["message"]} if placed.get("status") == "False" else undecided
    return {
        "place": None,
        "workload": f"{workload['kind']}/{workload['name']}",
        "kind": workload["kind"],
        "project": workload["project"],
        "priority": dig(workload, "spec.lease.priority") or 0,
        "waiting_seconds": max(0.0, now - workload["created_at"]),
        "expected_start": None,
        "confidence": "none",
        "held_by": held,
    }


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
