"""`weft capacity`: how full the fabric is and where, what waits and why, how long deciding takes."""

from __future__ import annotations

import sys

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.output.formats import print_object
from weft.cli.output.terminal import find_width
from weft.cli.placement.answer import render_capacity
from weft.cli.placement.question import ask
from weft.cli.session import Session
from weft.kinds.record import Kind


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    summary = "Show how full the nodes are, what waits and why, and how placement decides."
    return options.build(verb, summary, _run, kind, [options.timeout(), options.output()])


def _run(session: Session, kind: Kind | None) -> None:
    answered = ask(session, "report", {"subject": "capacity"})
    if session.is_data:
        print_object(session, answered)
    else:
        print(render_capacity(answered, find_width(sys.stdout), session.paint))
