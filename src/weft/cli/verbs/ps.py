"""`weft ps`: all that runs, of every kind that can."""

from __future__ import annotations

from typing import Any

import click

from weft.cli import options
from weft.cli.grammar import PLACED, Entry
from weft.cli.output.formats import MANIFEST, print_list
from weft.cli.session import Session
from weft.cli.verbs.list import leave_out, say_left_out
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME

KINDS = (*PLACED, "job")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        *options.selectors(),
        options.all_projects(),
        options.ended(),
        *options.table(),
        options.output(MANIFEST),
    ]
    return options.build(verb, "List VMs, containers and jobs.", _run, kind, params)


def _run(session: Session, kind: Kind | None, labels: tuple[str, ...], fields: tuple[str, ...], every: bool) -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    hidden = 0
    for name in KINDS:
        listing = session.client.list(
            name, all_projects=session.all_projects, labels=",".join(labels), fields=",".join(fields)
        )
        shown = listing.items if every or labels or fields else leave_out(BY_NAME[name], listing.items)
        hidden += len(listing.items) - len(shown)
        if shown:
            found[name] = shown
    if not found and not session.is_data:
        session.say("nothing runs" + ("" if session.all_projects else f" in project {session.client.project}"))
        say_left_out(session, hidden)
        return
    print_list(session, [item for items in found.values() for item in items], [BY_NAME[name] for name in found])
    say_left_out(session, hidden)
