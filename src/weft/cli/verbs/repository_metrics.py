"""`weft backuprepository metrics safe --time-range 30d`: what a repository took up over time, as the history of metrics has it."""

from __future__ import annotations

import sys

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.metrics.samples import COLUMNS, draw_rows
from weft.cli.metrics.storage_history import OF_REPOSITORIES, fetch_storage
from weft.cli.output.formats import print_data, print_rows
from weft.cli.output.terminal import find_width
from weft.cli.session import Session
from weft.kinds.backup_repository import BACKUP_REPOSITORY
from weft.kinds.record import Kind

DEFAULT_RANGE, WIDTH = "7d", 80


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(
            ["--time-range"], type=options.Duration(), metavar="TIME", default=DEFAULT_RANGE, help="How long. [7d]"
        ),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], time_range: float) -> None:
    if not time_range:
        raise click.UsageError("--time-range: 0s has no values; give a longer time, like 7d")
    target = find_one(session, kind or BACKUP_REPOSITORY, words, (), "give one backup repository")
    session.client.get(BACKUP_REPOSITORY.name, target.name)
    series, step = fetch_storage(session.client, OF_REPOSITORIES, [target.name], time_range, session.clock.now())
    series = [{**one, "name": one["name"].rpartition(".")[2]} for one in series]
    if session.is_data:
        print_data(session, {"repository": target.name, "granularity": step, "series": series})
    elif not series:
        session.notify(f"{target.what}: nothing was recorded in that time")
    else:
        print_rows(session, COLUMNS, draw_rows(series, step, find_width(sys.stdout) or WIDTH))
