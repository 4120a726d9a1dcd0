"""`weft get vm`, `weft get vm web`, `weft vm get web`, `weft get vm/web network/blue`: objects, or a list of them."""

from __future__ import annotations

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import partial_code
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import resolve
from weft.cli.command.target import Target, find_noun, is_noun
from weft.cli.output.formats import MANIFEST, print_list, print_object
from weft.cli.session import Session
from weft.cli.verbs.list import list_kind
from weft.cli.wait.batch import each
from weft.kinds.record import Kind


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    summary = f"Show one {kind.title} or several, or list all." if kind else "Show objects, or list all of a kind."
    params = [
        options.targets(kind, required=kind is None),
        *options.selectors(kind),
        options.all_projects(),
        *options.listing(),
        *options.table(),
        options.output(MANIFEST),
    ]
    return options.build(verb, summary, show_objects, kind, params)


def show_objects(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    labels: tuple[str, ...],
    fields: tuple[str, ...],
    every: bool,
    watch: bool,
) -> int | None:
    if kind is None and len(words) == 1 and is_noun(words[0]):
        kind, words = find_noun(words[0]), ()
    if kind is not None and not words:
        list_kind(session, kind, labels, fields, every=every, watch=watch)
        return None
    if labels or fields:
        raise click.UsageError("give either names or a selector, not both")
    if watch:
        raise click.UsageError("-w watches a list: give a kind, and -l or --field to narrow it")
    targets = resolve(session, kind, words)
    found: list[dict[str, object]] = []

    def show(target: Target) -> None:
        found.append(session.client.get(target.kind.name, target.name))

    codes = each(session, targets, show)
    if len(targets) == 1 and found:
        print_object(session, found[0])
    elif found:
        kinds = {target.kind.name: target.kind for target in targets}
        print_list(session, found, list(kinds.values()))
    return partial_code(codes)
