"""`weft config view --show-origin`: which settings are in force, and who said each of them."""

from __future__ import annotations

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.settings import find_settings
from weft.cli.output.formats import print_data, print_rows
from weft.cli.output.table import Column
from weft.cli.session import Session
from weft.kinds.record import Kind


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["act"], type=click.Choice(["view"]), default="view", metavar="[view]"),
        click.Option(
            ["--show-origin", "origins"],
            is_flag=True,
            help="Show which flag, variable or file each setting comes from.",
        ),
        *options.table(),
        options.output(),
    ]
    return options.build(
        verb,
        "Show the settings in force: flags override variables, those the project's file, that the user's.",
        _run,
        kind,
        params,
    )


def _run(session: Session, kind: Kind | None, act: str, origins: bool) -> None:
    found = find_settings(session)
    if session.is_document:
        told = {name: one._asdict() if origins else one.value for name, one in found.items()}
        print_data(session, told)
        return
    columns = [Column("SETTING"), Column("VALUE"), *([Column("ORIGIN", flexible=True)] if origins else [])]
    rows = [[name, one.value or "–", *([one.origin] if origins else [])] for name, one in found.items()]
    print_rows(session, columns, rows)
