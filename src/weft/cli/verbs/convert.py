"""`weft convert container/web --to vm`: go on as another kind, on the same image."""

from __future__ import annotations

from typing import Any

import click

from weft.cli import options
from weft.cli.grammar import Entry
from weft.cli.output.formats import print_names, print_object
from weft.cli.session import Session
from weft.cli.words import read_targets
from weft.kinds.convert import KINDS
from weft.kinds.record import Kind


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=KINDS),
        click.Option(["--to"], type=click.Choice(KINDS), required=True, help="What it is to become."),
        click.Option(["--as", "new_name"], metavar="NAME", help="The new one's name; else its own."),
        click.Option(["--memory"], metavar="SIZE", help="The new one's memory."),
        click.Option(["--disk"], metavar="SIZE", help="A new VM's root disk."),
        click.Option(["--confirm"], is_flag=True, help="Delete the old one as soon as the new one runs."),
        click.Option(["--timeout"], type=options.Duration(), help="Undo it if the new one doesn't run by then (10m)."),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], **given: Any) -> int:
    targets = read_targets(kind, words, KINDS)
    if len(targets) != 1:
        raise click.UsageError("convert one at a time")
    (target,) = targets
    given["timeout_seconds"] = given.pop("timeout")
    body = {name: value for name, value in given.items() if value is not None}
    made = session.client.verb(target.kind.name, target.name, "convert", body)
    if session.output == "name":
        print_names([made])
    elif session.is_data:
        print_object(session, made)
    else:
        print(f"{target.what}  is converted; watch: weft get conversion/{made['name']}")
    return 0
