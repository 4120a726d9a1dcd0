"""`weft schema vm`, `weft schema vm.spec.cpu`: the fields of a kind and what a change of each requires."""

from __future__ import annotations

import json

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.completion import complete_kind
from weft.cli.command.grammar import Entry
from weft.cli.command.target import find_noun
from weft.cli.output.formats import print_items
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.kinds.record import Kind
from weft.objects.errors import NotFound
from weft.objects.quantity import format_bytes
from weft.objects.schema import FieldDoc, describe_fields, suggest

_COLUMNS = make_columns("FIELD", "TYPE", "DEFAULT", "CHANGE", "FOR~")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    argument = click.Argument(
        ["word"], metavar="[FIELD]" if kind else "KIND[.FIELD]", required=kind is None, shell_complete=complete_kind
    )
    return options.build(
        verb,
        "List the fields of a kind; column CHANGE shows what a change of the field requires.",
        _run,
        kind,
        [argument, options.output()],
    )


def _run(session: Session, kind: Kind | None, word: str | None) -> None:
    path = word or ""
    if kind is None:
        first, _, path = path.partition(".")
        kind = find_noun(first)
    elif path.partition(".")[0] in (kind.name, kind.plural):
        path = path.partition(".")[2]
    docs = select_fields(kind, path)
    items, names = [msgspec.to_builtins(doc) for doc in docs], [f"{kind.name}.{doc.path}" for doc in docs]
    rows = [[doc.path, doc.type, _default(doc), doc.change, doc.description] for doc in docs]
    print_items(session, items, names, (_COLUMNS, rows), f"{kind.a_title}'s spec has no fields")


def select_fields(kind: Kind, path: str) -> list[FieldDoc]:
    """The fields at and below ``path`` (spec is understood). Raises NotFound with a suggestion."""
    docs = describe_fields(kind.spec)
    if not path or path == "spec":
        return docs
    path = path if path.startswith("spec.") else f"spec.{path}"
    found = [doc for doc in docs if doc.path == path or doc.path.startswith((f"{path}.", f"{path}["))]
    if not found:
        meant = suggest(path, [doc.path for doc in docs])
        hint = f"did you mean {kind.name}.{meant}?" if meant else f"weft schema {kind.name} lists them"
        raise NotFound(f"{kind.name}.{path} is not a field", reason="unknownField", field=path, hint=hint)
    return found


def _default(doc: FieldDoc) -> str:
    if doc.required:
        return "required"
    if doc.type == "size" and doc.default:
        return format_bytes(doc.default)
    return "" if doc.default in (None, "") else json.dumps(doc.default)
