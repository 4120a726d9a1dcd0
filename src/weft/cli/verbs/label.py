"""`weft label vm web tier=db old-`: set labels, or remove them with a minus behind the key."""

from __future__ import annotations

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_targets
from weft.cli.session import Session
from weft.cli.wait.finish import Done, finish
from weft.kinds.record import Kind


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    name = "NAME..." if kind else "KIND/NAME..."
    words = click.Argument(["words"], nargs=-1, metavar=f"{name} KEY=VALUE|KEY-...")
    params = [words, *options.waits(), options.output()]
    return options.build(verb, "Set labels (KEY=VALUE) or remove them (KEY-).", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...]) -> int:
    changes = {w.partition("=")[0]: w.partition("=")[2] for w in words if "=" in w}
    removals = {w[:-1]: None for w in words if "=" not in w and w.endswith("-")}
    targets = find_targets(session, kind, [w for w in words if "=" not in w and not w.endswith("-")])
    if not changes and not removals:
        raise click.UsageError("no label given: write KEY=VALUE, or KEY- to remove one")
    done = []
    for target in targets:
        obj = session.client.patch(target.kind.name, target.name, {"labels": {**changes, **removals}})
        done.append(Done(target, obj, "label", "labelled"))
    return finish(session, done, [])
