"""`weft context show`, `weft context use FILE`: which server is asked, and as whom."""

from __future__ import annotations

from pathlib import Path

import click

from weft.cli import options
from weft.cli.grammar import Entry
from weft.cli.output.formats import print_data
from weft.cli.session import Session
from weft.client.context import FILE, find_context, hash_ca, read_context, write_context
from weft.kinds.record import Kind
from weft.objects.errors import InvalidInput


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["act"], type=click.Choice(["show", "use"]), default="show", metavar="[show|use]"),
        click.Argument(["file"], required=False, metavar="[FILE]"),
        options.output(),
    ]
    return options.build(verb, "Show the context in use, or make FILE the one of this user.", _run, kind, params)


def _run(session: Session, kind: Kind | None, act: str, file: str | None) -> None:
    if act == "use":
        if not file:
            raise click.UsageError("give the context file to use")
        home = session.environ.get("HOME")
        if not home:
            raise InvalidInput(
                "HOME is not set, so there is nowhere to keep it", hint="export WEFT_CONTEXT=FILE instead"
            )
        place = Path(home) / ".config" / "weft" / FILE
        write_context(place, read_context(Path(file)))
        print(f"context  {place}")
        return
    context = find_context(session.context_file, session.environ)
    shown = {
        "server": context.server,
        "project": session.project or context.project,
        "ca_sha256": hash_ca(context.ca) if context.ca else "",
        "identity": "token" if context.token else "certificate" if context.certificate else "none",
    }
    if session.is_document:
        print_data(session, shown)
    else:
        print("\n".join(f"{key:<10} {value}" for key, value in shown.items()))
