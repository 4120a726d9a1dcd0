"""`weft vm logs web -f --tail 20`, `weft logs vm/a container/b -f`, `weft vm logs -l app=shop -f`: what guests printed."""

from __future__ import annotations

from collections.abc import Sequence

import click

from weft.cli.command import options
from weft.cli.command.grammar import PLACED, Entry, able
from weft.cli.command.lookup import look_up
from weft.cli.command.target import Target
from weft.cli.session import Session
from weft.cli.stream.logs import ask_log, show_log, show_logs
from weft.cli.verbs.job_logs import list_newest, show_job_logs
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        options.targets(kind, required=False, able=entry.kinds),
        click.Option(["-f", "--follow"], is_flag=True, help="Keep showing new output, also after a lost connection."),
        click.Option(
            ["-n", "--tail"],
            type=click.IntRange(min=-1),
            default=-1,
            metavar="N",
            help="Show only the last N lines of each.",
        ),
        click.Option(["--prefix/--no-prefix"], default=None, help="Begin each line with its guest. [if several]"),
        click.Option(["--since"], type=options.Duration(), default=None, help="Show lines newer than this, like 5m."),
        *options.selectors(kind),
    ]
    told = "invocations printed" if kind is not None and kind.name == "function" else "guests printed"
    return options.build(verb, f"Show what {told}.", _run, kind, params)


def _run(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    follow: bool,
    tail: int,
    prefix: bool | None,
    labels: tuple[str, ...],
    fields: tuple[str, ...],
    since: float | None = None,
) -> int:
    targets = _find(session, kind, words, ",".join(labels), ",".join(fields))
    if len(targets) == 1 and targets[0].kind.name == "job":
        return show_job_logs(session, targets[0], ask_log(follow, tail, since), prefix=prefix)
    targets = [one for target in targets for one in _open_job(session, target, follow)]
    if len(targets) == 1 and not prefix and not follow:
        return show_log(session, targets[0], ask_log(follow, tail, since))
    shown = len(targets) > 1 if prefix is None else prefix
    return show_logs(session, targets, follow=follow, tail=tail, since=since, prefix=shown)


def _open_job(session: Session, target: Target, follow: bool) -> list[Target]:
    """What a job is beside others: its tasks."""
    if target.kind.name != "job":
        return [target]
    if follow:
        session.say(f"{target.what}: tasks that begin later are not shown; weft job logs {target.name} -f shows them")
    return list_newest(session.client.get("job", target.name))


def _find(session: Session, kind: Kind | None, words: tuple[str, ...], labels: str, fields: str) -> Sequence[Target]:
    if not labels and not fields:
        return look_up(session, kind, words, (*able("logs"), "job") if kind is None else (kind.name,))
    if words:
        raise click.UsageError("give either names or a selector, not both")
    kinds = [kind.name] if kind is not None else PLACED
    found = [
        Target(BY_NAME[name], item["name"])
        for name in kinds
        for item in session.client.list(name, labels=labels, fields=fields).items
    ]
    if not found:
        session.say("no object matches")
    return found
