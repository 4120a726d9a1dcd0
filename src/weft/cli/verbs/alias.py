"""`weft function alias thumb prod 3`, `… prod 3=0.9 4=0.1`, `… prod --remove`; alone it lists them."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_targets
from weft.cli.output.formats import print_data, print_rows
from weft.cli.output.table import Column
from weft.cli.session import Session
from weft.kinds.record import Kind
from weft.objects.errors import NotFound


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    metavar = "NAME [ALIAS [VERSION | VERSION=SHARE...]]"
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar=metavar if kind else f"function/{metavar}"),
        click.Option(["--remove"], is_flag=True, help="Remove the alias."),
        options.output(),
    ]
    return options.build(verb, "Name versions of a function: list aliases, set one, or remove one.", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], remove: bool) -> int:
    (target,) = find_targets(session, kind, words[:1], ("function",))
    name, *weights = words[1:] or ("",)
    if remove and (not name or weights):
        raise click.UsageError("--remove needs the function and one alias")
    if name and not weights and not remove:
        raise click.UsageError("the version is missing: give its number, or two with shares: 3=0.9 4=0.1")
    function = session.client.get("function", target.name)
    if not name:
        return _show(session, function)
    if remove and name not in function["spec"]["aliases"]:
        raise NotFound(f'{target.what} has no alias "{name}"', hint=f"weft function alias {target.name}")
    aim = None if remove else _read_weights(weights)
    # A map of a spec is merged: what it named before and shall not name now is taken away.
    before = function["spec"]["aliases"].get(name) or {}
    change = aim if aim is None else {**dict.fromkeys(before), **aim}
    spec = {"generation": function["generation"], "spec": {"aliases": {name: change}}}
    changed = session.client.patch("function", target.name, spec)
    if session.is_data:
        return _show(session, changed)
    print(
        f"{target.what}  {name} " + ("removed" if aim is None else f"is {_describe(changed['spec']['aliases'][name])}")
    )
    return 0


def _read_weights(words: list[str]) -> dict[str, float]:
    """``3``, or ``3=0.9 4=0.1``: shares by number. Raises UsageError."""
    if len(words) == 1 and "=" not in words[0]:
        return {words[0].lstrip(":"): 1.0}
    shares: dict[str, float] = {}
    for word in words:
        number, _, share = word.partition("=")
        try:
            shares[number] = float(share.removesuffix("%")) / (100 if share.endswith("%") else 1)
        except ValueError:
            raise click.UsageError(f"{word!r}: write VERSION=SHARE, like 3=0.9 4=0.1") from None
    return shares


def _describe(weights: dict[str, float]) -> str:
    if len(weights) == 1:
        return f"version {next(iter(weights))}"
    return ", ".join(f"version {number} for {share:.0%}" for number, share in weights.items())


def _show(session: Session, function: dict[str, Any]) -> int:
    aliases: dict[str, dict[str, float]] = function["spec"]["aliases"]
    if session.output == "name":
        print("\n".join(f"{function['name']}:{alias}" for alias in sorted(aliases)))
    elif session.is_document:
        print_data(session, {"items": [{"alias": alias, "versions": aliases[alias]} for alias in sorted(aliases)]})
    elif not aliases:
        session.say(f"function/{function['name']} has no aliases")
    else:
        rows = [[alias, _describe(aliases[alias])] for alias in sorted(aliases)]
        print_rows(session, (Column("ALIAS"), Column("STANDS FOR", flexible=True)), rows)
    return 0
