"""`weft function dead-letters thumb`: the events that failed for good; `--redrive` runs them again, `--purge` lets go of them."""

from __future__ import annotations

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.output.formats import age_of, print_data, print_rows
from weft.cli.output.table import Column
from weft.cli.session import Session
from weft.client.function_endpoint import act_on_dead_letters, list_dead_letters
from weft.kinds.record import Kind

_SHOWN = 60  # characters of an error or an event


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(["--redrive"], is_flag=True, help="Run all of them again, as new invocations."),
        click.Option(["--purge"], is_flag=True, help="Delete all of them."),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], redrive: bool, purge: bool) -> int:
    target = find_one(session, kind, words, ("function",), "give one function")
    if redrive and purge:
        raise click.UsageError("give either --redrive or --purge, not both")
    if redrive or purge:
        count = act_on_dead_letters(session.client, target.name, "redrive" if redrive else "purge")
        if session.is_document:
            print_data(session, {"count": count})
        else:
            print(f"{target.what}  {count} " + ("run again" if redrive else "purged"))
        return 0
    letters = list_dead_letters(session.client, target.name)
    if session.is_document:
        print_data(session, {"items": letters})
    elif session.output == "name":
        print("\n".join(letter["id"] for letter in letters))
    elif not letters:
        session.say(f"{target.what} has no dead letters")
    else:
        columns = (
            Column("ID"),
            Column("AGE", right=True),
            Column("TRIES", right=True),
            Column("ERROR"),
            Column("EVENT"),
        )
        rows = [
            [
                letter["id"],
                age_of(session, letter["dead_at"]),
                str(letter["tries"]),
                _cut(f"{letter['error_type']}: {letter['error']}"),
                _cut(letter.get("payload", "(binary)")),
            ]
            for letter in letters
        ]
        print_rows(session, columns, rows)
    return 0


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
