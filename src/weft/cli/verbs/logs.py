"""`weft vm logs web -f --tail 20`: what the guest printed on its console."""

from __future__ import annotations

from typing import Any

import click

from weft.cli import options
from weft.cli.grammar import Entry, able
from weft.cli.session import Session
from weft.cli.stream import Stream, dial
from weft.cli.words import Target, read_targets
from weft.kinds.record import Kind
from weft.kinds.registry import is_workload


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(["-f", "--follow"], is_flag=True, help="Go on with what it prints."),
        click.Option(
            ["-n", "--tail"], type=click.IntRange(min=-1), default=-1, metavar="N", help="Only the last N lines."
        ),
    ]
    if kind is None or kind.name == "function":
        params.append(
            click.Option(["--since"], type=options.Duration(), default=None, help="Of a function: from so long ago on.")
        )
    told = (
        "its invocations printed"
        if kind is not None and kind.name == "function"
        else "the guest printed on its console"
    )
    return options.build(verb, f"Show what {told}.", _run, kind, params)


def _run(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    follow: bool,
    tail: int,
    since: float | None = None,
) -> int:
    if kind is None and words and words[0].startswith("job/"):
        raise click.UsageError(f"of a job: weft job logs {words[0][4:]} [--task N]")
    kinds = able("logs")
    if kind is None and len(words) == 1 and "/" not in words[0]:
        kinds = tuple(name for name in kinds if is_workload(name))  # a NAME alone is of these
    targets = read_targets(kind, words, kinds)
    if len(targets) != 1:
        raise click.UsageError("the logs of one guest at a time")
    if since is not None and targets[0].kind.name != "function":
        raise click.UsageError("--since is for functions: their lines have a time")
    return show_log(session, targets[0], follow, tail, **({} if since is None else {"since": since}))


def show_log(session: Session, target: Target, follow: bool, tail: int, **more: Any) -> int:
    """What a guest printed, its standard error on ours; ends when all is read, or with ``follow`` when the guest has."""
    ticket = session.client.verb(target.kind.name, target.name, "logs", {"follow": follow, "tail": tail, **more})
    with dial(session.client.context, ticket) as sock:
        return Stream(sock, forward_end=False).run(None) or 0
