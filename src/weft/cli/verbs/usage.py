"""`weft usage`: what projects and their users requested and used over a span of time, in core-, GiB- and GPU-hours."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.output.formats import print_data, print_rows
from weft.cli.output.local_time import read_past, render_time
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.client.answer import raise_problem
from weft.kinds.fields.cells import dig
from weft.kinds.record import Kind

DEFAULT_SINCE = "30d"
_FIELDS = {
    "CORE-H": "requested.core_hours",
    "USED-CORE-H": "used.core_hours",
    "GIB-H": "requested.memory_gib_hours",
    "USED-GIB-H": "used.memory_gib_hours",
    "DISK-GIB-H": "requested.disk_gib_hours",
    "USED-DISK-GIB-H": "used.disk_gib_hours",
    "GPU-H": "requested.gpu_hours",
}
_OF = ("project", "user")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Option(["--since"], metavar="TIME", default=DEFAULT_SINCE, help="From when: 30d ago, or a date. [30d]"),
        click.Option(["--until"], metavar="TIME", default="", help="Until when: 1d ago, or a date. [now]"),
        click.Option(["--by"], type=click.Choice(_OF), help="One row for each. [each user of each project]"),
        options.all_projects(),
        *options.table(),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(session: Session, kind: Kind | None, since: str, until: str, by: str | None) -> None:
    now = session.clock.now()
    asked = f"since={read_past(since, now, '--since')}" + (
        f"&until={read_past(until, now, '--until')}" if until else ""
    )
    where = "" if session.all_projects else f"projects/{quote(session.client.project, safe='')}/"
    answer = session.client.http.request("GET", f"/v1/{where}accounting?{asked}")
    raise_problem(answer)
    found: dict[str, Any] = answer.json()
    items = found["items"] = _add_up(found["items"], by) if by else found["items"]
    total = {field: round(sum(dig(one, field) for one in items), 6) for field in _FIELDS.values()}
    if session.is_document:
        print_data(session, {**found, "total": _unfold(total)})
        return
    if not items and not session.is_data:
        session.notify("nothing was requested or used in that time")
        return
    of = [by] if by else _OF
    rows = [
        [
            *(one[name] or ("" if session.is_data else "–") for name in of),
            *(_hours(session, dig(one, field)) for field in _FIELDS.values()),
        ]
        for one in items
    ]
    if not session.is_data:
        rows.append(["total", *[""] * (len(of) - 1), *(_hours(session, amount) for amount in total.values())])
    columns = make_columns(*(f"{name.upper()}!" for name in of), *(f"{title}>" for title in _FIELDS))
    print_rows(session, columns, rows)
    if not session.is_data:
        through = f", counted until {render_time(found['through'])}" if found["through"] else ""
        session.notify(f"from {render_time(found['since'])} to {render_time(found['until'])}{through}")


def _add_up(items: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """One item for each project or user, with what all of its items have together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in items:
        found.setdefault(one[by], []).append(one)
    return [
        {by: name, **_unfold({field: round(sum(dig(one, field) for one in own), 6) for field in _FIELDS.values()})}
        for name, own in sorted(found.items())
    ]


def _unfold(total: dict[str, float]) -> dict[str, dict[str, float]]:
    parts: dict[str, dict[str, float]] = {}
    for path, amount in total.items():
        part, _, name = path.partition(".")
        parts.setdefault(part, {})[name] = amount
    return parts


def _hours(session: Session, amount: float) -> str:
    return f"{amount:.6f}" if session.is_data else f"{amount:.2f}"
