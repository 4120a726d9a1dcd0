"""`weft diff -f FILE`: what apply would change. Exit 0: nothing; 1: something; more: it can't be told."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.errors import complain
from weft.cli.command.exit_codes import ERROR, OK, USAGE
from weft.cli.command.grammar import Entry
from weft.cli.output.formats import print_data
from weft.cli.session import Session
from weft.cli.verbs.apply import describe_change, files, read_all, send
from weft.kinds.record import Kind
from weft.objects.errors import WeftError

DIFFERS = 1


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    return options.build(
        verb, "Show what apply would change; exit 1 if anything would.", _run, kind, [*files(), options.output()]
    )


def _run(session: Session, kind: Kind | None, paths: tuple[str, ...], files: tuple[str, ...]) -> int:
    try:
        manifests = read_all(session, (*files, *paths))
        results = send(session, manifests, dry_run=True)
    except WeftError as problem:
        code = complain(problem, session.output, session.color, session.debug)
        return USAGE if code == ERROR else code  # 1 already means: it differs
    differing = [(m, r) for m, r in zip(manifests, results, strict=True) if r["action"] != "unchanged"]
    if session.is_document:
        print_data(
            session,
            {"items": [{"action": r["action"], "changes": r.get("changes", []), **_ref(m.data)} for m, r in differing]},
        )
    for manifest, result in differing if not session.is_document else ():
        print(manifest.what if session.output == "name" else f"{manifest.what}  would be {result['action']}")
        for change in result.get("changes") or () if session.output != "name" and result["action"] == "updated" else ():
            print(f"  {describe_change(change, manifest.kind)}")
    return DIFFERS if differing else OK


def _ref(data: dict[str, Any]) -> dict[str, Any]:
    return {key: data[key] for key in ("kind", "name", "project") if key in data}
