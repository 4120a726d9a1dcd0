"""`weft calendar`: which leases and workloads have which node, and when; as a table with bars, or as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.grammar import PLACED, Entry
from weft.cli.output.formats import print_data, print_items
from weft.cli.output.local_time import render_time
from weft.cli.output.table import make_columns
from weft.cli.output.time_scale import TimeScale, draw_bar, find_span, make_scale, write_scale
from weft.cli.session import Session
from weft.cli.stream.whole_file import refuse_existing
from weft.kinds.fields.cells import dig
from weft.kinds.record import Kind

_HOLDING = ("Scheduled", "Preparing", "Active", "Suspended")
_BAR, _STEPS = 36, 4  # characters, and labels of time above them


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Option(["--node"], metavar="NODE", help="Only this node."),
        click.Option(["--plot"], metavar="FILE", help="Write a picture to this SVG file."),
        options.replace(),
        options.all_projects(),
        *options.table(),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(session: Session, kind: Kind | None, node: str | None, plot: str | None, force: bool) -> None:
    if plot is not None:
        refuse_existing(Path(plot), "--plot", force=force)
    if node is not None:
        session.client.get("node", node)  # raises NotFound
    entries = [one for one in _list(session) if node in (None, one["node"])]
    if plot is not None:
        from weft.cli.output.gantt import draw_gantt  # noqa: PLC0415 - only where a picture is wanted

        Path(plot).write_text(draw_gantt(entries, session.clock.now()))
        session.notify(f"{plot}  written")
        return
    if session.is_document:
        print_data(session, {"entries": entries})
        return
    now = session.clock.now()
    scale = make_scale(*find_span(entries, now), _STEPS)
    when = "WHEN" if session.is_data else write_scale(scale, _BAR).rstrip()
    columns = make_columns("WORKLOAD!", f"{when}!", "START", "END", "NODE", "PROJECT")
    rows = [_row(one, scale, now) for one in entries]
    print_items(session, entries, [one["workload"] for one in entries], (columns, rows), "nothing is placed here")


def _list(session: Session) -> list[dict[str, Any]]:
    """List whatever has a place now, or was promised one."""
    found = _list_reservations(session)
    for kind in PLACED:
        for obj in session.client.list(kind, all_projects=session.all_projects).items:
            lease, status = dig(obj, "status.lease"), obj.get("status") or {}
            if not status.get("node") or status.get("ended") or (lease and lease["state"] not in _HOLDING):
                continue
            found.append(
                {
                    "workload": f"{obj['kind']}/{obj['name']}",
                    "node": status["node"],
                    "project": obj.get("project"),
                    "start": lease["start"] if lease else obj["created_at"],
                    "end": lease["end"] if lease else None,
                    "kind": _name_kind(obj) if lease else "unlimited",
                    "state": lease["state"] if lease else "",
                    "reservation": dig(obj, "spec.reservation"),
                }
            )
    return sorted(found, key=lambda one: (one["node"], one["start"], one["workload"]))


def _name_kind(obj: Any) -> str:
    return "reservation" if dig(obj, "spec.reservation") else dig(obj, "spec.lease.mode") or "unlimited"


def _list_reservations(session: Session) -> list[dict[str, Any]]:
    """List what is kept for projects, once for each node; the workloads in it stand beside it."""
    return [
        {
            "workload": f"reservation/{obj['name']}",
            "node": node,
            "project": obj.get("project"),
            "start": obj["status"]["start"],
            "end": obj["status"]["end"],
            "kind": "reservation",
            "state": obj["status"]["state"],
            "reservation": obj["name"],
        }
        for obj in session.client.list("reservation", all_projects=session.all_projects).items
        for node in dig(obj, "status.slots") or {}
        if dig(obj, "status.state") in ("Scheduled", "Active")
    ]


def _row(one: dict[str, Any], scale: TimeScale, now: float) -> list[str]:
    sign = "░" if one["state"] == "Suspended" else "█"
    return [
        one["workload"],
        draw_bar(scale, max(now, one["start"]), one["end"] or scale.last, _BAR, sign, now),
        render_time(one["start"]),
        render_time(one["end"]) if one["end"] else "",
        one["node"],
        one["project"] or "",
    ]
