"""`weft vm logs web -f --tail 20`: what the guest printed on its console."""

from __future__ import annotations

import click

from weft.cli import options
from weft.cli.grammar import Entry, able
from weft.cli.lookup import look_up_one
from weft.cli.printed import show_log
from weft.cli.session import Session
from weft.cli.verbs.job_logs import show_job_logs
from weft.kinds.record import Kind


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
    kinds = (*able("logs"), "job") if kind is None else (kind.name,)
    target = look_up_one(session, kind, words, kinds, "the logs of one guest at a time")
    if target.kind.name == "job":
        return show_job_logs(session, target, None, None, follow, tail)
    if since is not None and target.kind.name != "function":
        raise click.UsageError("--since is for functions: their lines have a time")
    return show_log(session, target, follow, tail, since)
