"""`weft events`, `weft events -f`, `weft vm events web`: what happened, from the journal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import INTERRUPTED
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_targets, resolve
from weft.cli.command.target import Target
from weft.cli.output.formats import age_of, print_data, print_line, print_rows
from weft.cli.output.table import draw_table, make_columns
from weft.cli.output.terminal import clean
from weft.cli.session import Session
from weft.kinds.record import Kind
from weft.objects.errors import Forbidden, NotFound
from weft.objects.quantity import format_limit

COLUMNS = make_columns("AGE", "TYPE", "REASON", "OBJECT!", "MESSAGE~!")
Record = dict[str, Any]


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        options.targets(kind, required=False),
        click.Option(["-f", "--follow"], is_flag=True, help="Keep showing new events."),
        click.Option(
            ["-n", "--tail"], type=click.IntRange(min=1), default=None, metavar="N", help="Show only the last N."
        ),
        click.Option(["--since"], type=options.Duration(), default=None, help="Show events newer than this, like 5m."),
        options.output(),
    ]
    return options.build(verb, "Show events, oldest first.", _run, kind, params)


def _run(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    follow: bool,
    tail: int | None,
    since: float | None = None,
) -> int | None:
    targets = find_targets(session, kind, words) if words else []
    past = _read(session, kind, targets)
    if not past and targets:  # deleted objects still have events: an object without events must exist
        targets = resolve(session, kind, words)
        for target in targets:
            session.client.get(target.kind.name, target.name)
        past = _read(session, kind, targets)
    newest = max((record["id"] for record in past), default=0)
    if since is not None:
        past = [record for record in past if record["at"] > session.clock.now() - since]
    past = past[-tail:] if tail else past
    if not follow:
        if session.is_document:
            print_data(session, {"items": past})
        elif past:
            print_rows(session, COLUMNS, _make_rows(session, past))
        else:
            session.notify("no events" if since is None else f"no events in the last {format_limit(since)}")
        return None
    for record in past:
        _print_line(session, record)
    try:
        for record in _follow(session, _find_abouts(session, kind, targets), newest):
            _print_line(session, record)
    except KeyboardInterrupt:
        return INTERRUPTED  # enough was seen
    return None


def _read(session: Session, kind: Kind | None, targets: Sequence[Target]) -> list[Record]:
    if targets:
        records = [record for target in targets for record in read_own(session, target, _find_uid(session, target))]
    else:
        records = list(session.client.events(about=kind.name if kind else "", project=session.given_project or ""))
    return sorted(records, key=lambda r: (r["at"], r["id"]))  # a node that was cut off tells late


def _find_uid(session: Session, target: Target) -> str | None:
    with contextlib.suppress(NotFound, Forbidden):
        return str(session.client.get(target.kind.name, target.name)["uid"])
    return None


def read_own(session: Session, target: Target, uid: str | None) -> list[Record]:
    """The newest events of the object with ``uid``, and none of an earlier one with its name; None: it is gone, so of all."""
    records = list(session.client.events(about=about(session, target), project=session.given_project or ""))
    return [record for record in records if record["object"]["uid"] == uid or uid is None]


def _find_abouts(session: Session, kind: Kind | None, targets: Sequence[Target]) -> list[str]:
    return [about(session, target) for target in targets] or [kind.name if kind is not None else ""]


def about(session: Session, target: Target) -> str:
    """How the journal names an object: ``vm/default/web``, ``node/-/n1``."""
    return f"{target.kind.name}/{session.client.project if target.kind.scope == 'project' else '-'}/{target.name}"


def _follow(session: Session, abouts: list[str], since: int) -> Iterator[Record]:
    client, only = session.client, session.given_project or ""
    if len(abouts) == 1:
        yield from client.events(since=since, about=abouts[0], project=only, follow=True)
        return
    for record in client.events(since=since, project=only, follow=True):
        if _name(record) in abouts:
            yield record


def _name(record: Record) -> str:
    ref = record["object"]
    return f"{ref['kind']}/{ref.get('project') or '-'}/{ref['name']}"


def draw_events(session: Session, records: Sequence[Record], width: int | None) -> str:
    """Records as a table."""
    return draw_table(COLUMNS, _make_rows(session, records), width, session.paint)


def _make_rows(session: Session, records: Sequence[Record]) -> list[list[str]]:
    return [
        [
            age_of(session, record["at"]),
            record["type"],
            record["reason"],
            f"{record['object']['kind']}/{record['object']['name']}",
            record["message"] + (f" ({record['count']} times)" if record.get("count", 1) > 1 else ""),
        ]
        for record in records
    ]


def _print_line(session: Session, record: Record) -> None:
    if session.is_document:
        print_line(session, record)
        return
    ref = record["object"]
    clock = time.strftime("%H:%M:%S", time.localtime(record["at"]))
    print(
        clean(
            f"{clock}  {record['type']:<7}  {record['reason']:<16}  {ref['kind']}/{ref['name']}  {record['message']}"
        ),
        flush=True,
    )
