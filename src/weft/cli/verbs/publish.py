"""`weft function publish thumb`: keep what it is now as thumb:1, thumb:2, …"""

from __future__ import annotations

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.output.formats import print_names, print_object
from weft.cli.session import Session
from weft.kinds.record import Kind
from weft.kinds.registry import find_kind


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(["--description"], metavar="TEXT", default="", help="What is new in this version."),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}: NAME:1, NAME:2, …", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], description: str) -> int:
    target = find_one(session, kind, words, (find_kind("function").name,), "give one function")
    made = session.client.verb(target.kind.name, target.name, "publish", {"description": description})
    if session.output == "name":
        print_names([made])
    elif session.is_data:
        print_object(session, made)
    else:
        print(f"{target.what}  published as {target.name}:{made['spec']['number']}")
    return 0
