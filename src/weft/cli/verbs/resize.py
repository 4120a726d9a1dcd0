"""`weft volume resize data 2G`: make a volume larger, also while a VM uses it."""

from __future__ import annotations

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.target import Target
from weft.cli.session import Session
from weft.cli.verbs.set import change, change_options
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    volume = BY_NAME["volume"]
    words = click.Argument(["words"], nargs=-1, metavar="VOLUME SIZE")

    def run(session: Session, kind: Kind | None, words: tuple[str, ...], dry_run: bool) -> int:
        given = [word for word in words if word not in ("volume", "volumes")]
        if len(given) != 2:
            raise click.UsageError("give a volume and its new size: weft volume resize data 2G")
        target = Target(volume, given[0].removeprefix("volume/"))
        return change(session, target, {"spec__size": given[1]}, dry_run=dry_run, restart=False)

    return options.build(verb, "Make a volume larger.", run, kind, [words, *change_options(volume)])
