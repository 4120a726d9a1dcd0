"""`weft ps`: all that runs, of every kind that can."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.grammar import PLACED, Entry
from weft.cli.output.formats import MANIFEST, print_list
from weft.cli.session import Session
from weft.cli.verbs.list import leave_out, read_selection, say_left_out, watch_kinds
from weft.kinds.fields.cells import dig
from weft.kinds.job import ENDED
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME

KINDS = (*PLACED, "job")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        *options.selectors(),
        options.all_projects(),
        *options.listing(),
        *options.table(),
        options.output(MANIFEST),
    ]
    return options.build(verb, "List VMs, containers and jobs.", _run, kind, params)


def _run(
    session: Session, kind: Kind | None, labels: tuple[str, ...], fields: tuple[str, ...], every: bool, watch: bool
) -> None:
    selected = read_selection(session, labels, fields)
    shows_all = bool(every or labels or fields)
    if watch:
        watch_kinds(session, [BY_NAME[name] for name in KINDS], selected, lambda item: shows_all or _goes_on(item))
        return
    items = [item for name in KINDS for item in session.client.list(name, **selected).items]
    shown = [item for item in items if shows_all or _goes_on(item)]
    if shown or session.is_data:
        print_list(
            session, shown, [BY_NAME[name] for name in dict.fromkeys(item["kind"] for item in shown)], named=True
        )
    else:
        session.say("nothing runs" + ("" if session.all_projects else f" in project {session.client.project}"))
    say_left_out(session, len(items) - len(shown))


def _goes_on(item: dict[str, Any]) -> bool:
    """Whether there is still something to come of it. A list of jobs tells of those that have ended; this is of what runs."""
    ended = item["kind"] == "job" and dig(item, "status.phase") in ENDED
    return not ended and bool(leave_out(BY_NAME[item["kind"]], [item]))
