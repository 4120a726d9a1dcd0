"""`weft vm list`, `weft list vm`: the objects of one kind."""

from __future__ import annotations

from typing import Any

import click

from weft.cli import options
from weft.cli.completion import complete_kind
from weft.cli.grammar import Entry
from weft.cli.output.formats import MANIFEST, print_json, print_list
from weft.cli.session import Session
from weft.cli.words import find_noun
from weft.client.usage import fetch_usage
from weft.kinds.record import Kind

Object = dict[str, Any]


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [*options.selectors(), options.all_projects(), options.output(MANIFEST)]
    if kind is None:
        params.insert(0, click.Argument(["word"], metavar="KIND", shell_complete=complete_kind))
    return options.build(verb, f"List {kind.plural if kind else 'objects'}.", _run, kind, params)


def _run(session: Session, kind: Kind | None, labels: tuple[str, ...], fields: tuple[str, ...], word: str = "") -> None:
    list_kind(session, kind or find_noun(word), labels, fields)


def list_kind(session: Session, kind: Kind, labels: tuple[str, ...], fields: tuple[str, ...]) -> None:
    """Print the objects of ``kind`` that match; the server does the matching."""
    listing = session.client.list(
        kind.name, all_projects=session.all_projects, labels=",".join(labels), fields=",".join(fields)
    )
    if session.output == "json":
        print_json({"items": listing.raws})
    else:
        print_list(session, with_use(session, kind, listing.items), [kind])


def with_use(session: Session, kind: Kind, items: list[Object]) -> list[Object]:
    """Nodes that are shown in all columns with what they use now: it stands in no object."""
    if kind.name != "node" or session.output != "wide":
        return items
    used = {each["node"]: each["use"] for each in fetch_usage(session.client.http)}
    return [{**item, "use": used.get(item["uid"])} for item in items]
