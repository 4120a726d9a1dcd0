"""`weft vm logs web -f --tail 20`: what the guest printed on its console."""

from __future__ import annotations

import click

from weft.cli import options
from weft.cli.grammar import Entry, able
from weft.cli.session import Session
from weft.cli.stream import Stream, dial
from weft.cli.words import read_targets
from weft.kinds.record import Kind


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(["-f", "--follow"], is_flag=True, help="Go on with what it prints."),
        click.Option(
            ["-n", "--tail"], type=click.IntRange(min=-1), default=-1, metavar="N", help="Only the last N lines."
        ),
    ]
    return options.build(verb, "Show what the guest printed on its console.", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], follow: bool, tail: int) -> int:
    targets = read_targets(kind, words, able("logs"))
    if len(targets) != 1:
        raise click.UsageError("the logs of one guest at a time")
    target = targets[0]
    ticket = session.client.verb(target.kind.name, target.name, "logs", {"follow": follow, "tail": tail})
    with dial(session.client.context, ticket) as sock:
        return Stream(sock, forward_end=False).run(None) or 0
