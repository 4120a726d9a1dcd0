"""Commands for the server that is asked, and for the settings that are in force."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.completion import Completer, complete_context
from weft.cli.command.grammar import Entry
from weft.cli.command.settings import find_settings
from weft.cli.output.formats import print_data, print_items, print_rows
from weft.cli.output.table import Column, make_columns
from weft.cli.session import Session
from weft.client.context import (
    CONFIG,
    FILE,
    FOLDER,
    NAMED,
    Context,
    hash_ca,
    list_named,
    locate_context,
    place_of,
    place_of_named,
    read_context,
    read_settings,
    refuse_other_server,
    user_folder,
    write_context,
    write_settings,
)
from weft.kinds.record import Kind
from weft.objects.errors import AlreadyExists, InvalidInput, NotFound, WeftError
from weft.objects.identity import check_name

_ACTS = ("show", "list", "use", "add", "remove")
_COLUMNS = make_columns("IN USE", "NAME", "SERVER!", "PROJECT", "FILE~")


def context_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft context list|show`, `weft context prod`, `weft context add prod FILE`: which server is asked, and as whom."""
    params = [
        click.Argument(
            ["act"],
            default="show",
            metavar=f"[{'|'.join(_ACTS)}]",
            shell_complete=Completer({"words": [[act, ""] for act in _ACTS]}),
        ),
        click.Argument(["name"], required=False, metavar="[NAME]", shell_complete=complete_context),
        click.Argument(["file"], required=False, metavar="[FILE]"),
        click.Option(["--force"], is_flag=True, help="With add, and use of a file: replace the context that is there."),
        *options.table(),
        options.output(),
    ]
    return options.build(
        verb,
        "Show, list, use, add or remove contexts. NAME alone uses that context.",
        _context,
        kind,
        params,
    )


def _context(session: Session, kind: Kind | None, act: str, name: str | None, file: str | None, force: bool) -> None:
    if act not in _ACTS and name is None:
        act, name = "use", act
    if act not in _ACTS:
        raise click.UsageError(f"{act!r} is not one of {', '.join(_ACTS)}")
    if act in ("show", "list"):
        if name:
            raise click.UsageError(f"context {act} takes no name; -o json shows all fields")
        return _show(session) if act == "show" else _list(session)
    if not name or (act == "add") != bool(file):
        raise click.UsageError({"add": "give a name and the context's file"}.get(act, "give one context's name"))
    session.would(f"{act} a context below {user_folder(session.environ)}")
    if act == "add":
        path = user_folder(session.environ) / NAMED / f"{check_name(name)}.json"
        if path.exists() and not force:
            raise AlreadyExists(f"context/{name} exists already", hint="give another name, or --force to replace it")
        write_context(path, read_context(Path(str(file))))
        print(f"context/{name}  added; weft context use {name}")
    elif act == "remove":
        _remove(session, check_name(name))
    else:
        use_context(session, name, force=force)
    return None


def _remove(session: Session, name: str) -> None:
    path = place_of_named(name, session.environ)
    config = path.parent.parent / CONFIG
    settings = read_settings(config)
    if settings.context == name:  # before its deletion, or every command would look for a deleted one
        write_settings(config, msgspec.structs.replace(settings, context=""))
        session.notify("it was in use: weft context NAME uses another one")
    path.unlink()
    print(f"context/{name}  removed")


def use_context(session: Session, name: str, *, force: bool = False) -> None:
    """Use this context from now on, for this user, unless a flag, variable or project names another. Raises AlreadyExists where
    a file would replace the user's own context of another server, without ``force``."""
    if not session.environ.get("HOME") and not session.environ.get("XDG_CONFIG_HOME"):
        raise InvalidInput("HOME is not set, so there is nowhere to keep it", hint="export WEFT_CONTEXT=FILE instead")
    folder = user_folder(session.environ)
    path, named = place_of(name, session.environ), name
    context = read_context(path)
    if path.parent.name == NAMED and path.parent.parent.name == FOLDER:
        folder = path.parent.parent  # a login to the project's own cluster: it is used there
    elif path.parent != folder / NAMED:
        named = ""  # a file: it is kept as the user's own, which has no name
        if not force:
            refuse_other_server(
                folder / FILE, context, "weft context add NAME FILE gives this one a name; --force replaces that one"
            )
        write_context(folder / FILE, context)
    settings = read_settings(folder / CONFIG)
    write_settings(folder / CONFIG, msgspec.structs.replace(settings, context=named))
    print(f"context  {named or folder / FILE}")
    try:
        found = locate_context(None, session.environ)
    except WeftError:
        return
    if found.place != str(path if named else folder / FILE):
        session.notify(
            f"{found.origin} overrides this context here: commands go to {found.context.server}, project {found.context.project}"
        )


def _show(session: Session) -> None:
    found = locate_context(session.context_file, session.environ)
    context = found.context
    shown = {
        "server": context.server,
        "project": session.project or context.project,
        "ca_sha256": hash_ca(context.ca) if context.ca else "",
        "identity": "token" if context.token else "certificate" if context.certificate else "none",
        "file": found.place,
        "chosen_by": found.origin,
    }
    if session.is_document:
        print_data(session, shown)
    else:
        print("\n".join(f"{key.replace('_', ' '):<10} {value}" for key, value in shown.items()))


def _list(session: Session) -> None:
    try:
        used = locate_context(session.context_file, session.environ)
    except NotFound:
        used = None
    rows = []
    known = {name: place_of(name, session.environ) for name in list_named(session.environ)}
    for name, path in known.items():
        rows.append(_describe(name, read_context(path), str(path), used is not None and used.place == str(path)))
    if used is not None and used.place not in map(str, known.values()):
        rows.insert(0, _describe("", used.context, used.place, True))
    names = [str(row["name"]) for row in rows if row["name"]]
    cells = [["*" if row["in_use"] else "", *(str(row[part] or "–") for part in _PARTS)] for row in rows]
    print_items(session, rows, names, (_COLUMNS, cells), "no contexts: weft context add NAME FILE")


_PARTS = ("name", "server", "project", "file")


def _describe(name: str, context: Context, place: str, in_use: bool) -> dict[str, object]:
    return {"name": name, "server": context.server, "project": context.project, "file": place, "in_use": in_use}


def config_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft config view --show-origin`: the settings in force, and where each comes from."""
    params = [
        click.Argument(["act"], type=click.Choice(["view"]), default="view", metavar="[view]"),
        click.Option(
            ["--show-origin", "origins"],
            is_flag=True,
            help="Show which flag, variable or file each setting comes from.",
        ),
        *options.table(),
        options.output(),
    ]
    return options.build(
        verb,
        "Show the settings in force. Flags override variables, variables the project's file, and that file the user's.",
        _config,
        kind,
        params,
    )


def _config(session: Session, kind: Kind | None, act: str, origins: bool) -> None:
    found = find_settings(session)
    if session.is_document:
        settings = {name: one._asdict() if origins else one.value for name, one in found.items()}
        print_data(session, settings)
        return
    columns = [Column("SETTING"), Column("VALUE"), *([Column("ORIGIN", flexible=True)] if origins else [])]
    rows = [[name, one.value or "–", *([one.origin] if origins else [])] for name, one in found.items()]
    print_rows(session, columns, rows)
