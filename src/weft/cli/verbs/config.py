"""`weft config view --show-origin`: which settings are in force, and who said each of them."""

from __future__ import annotations

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.output.formats import print_data, print_rows
from weft.cli.output.table import Column
from weft.cli.session import Session
from weft.client.context import Setting, find_setting, locate_context
from weft.kinds.record import Kind
from weft.objects.errors import NotFound


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["act"], type=click.Choice(["view"]), default="view", metavar="[view]"),
        click.Option(["--show-origin", "origins"], is_flag=True, help="Say which flag, variable or file says it."),
        *options.table(),
        options.output(),
    ]
    return options.build(
        verb, "Show the settings in force; flags go before variables, a project, a user.", _run, kind, params
    )


def _run(session: Session, kind: Kind | None, act: str, origins: bool) -> None:
    found = find_settings(session)
    if session.is_document:
        told = {name: one._asdict() if origins else one.value for name, one in found.items()}
        print_data(session, told)
        return
    columns = [Column("SETTING"), Column("VALUE"), *([Column("ORIGIN", flexible=True)] if origins else [])]
    rows = [[name, one.value or "–", *([one.origin] if origins else [])] for name, one in found.items()]
    print_rows(session, columns, rows)


def find_settings(session: Session) -> dict[str, Setting]:
    """All that is in force, by name. A token is said to be there, and never shown."""
    try:
        used = locate_context(session.context_file, session.environ)
    except NotFound:
        used = None
    own = used.origin if used is not None else "nobody says one"
    given = session.given_project
    project = Setting(given, "--project") if given else find_setting("project", session.environ)
    if not project.value and used is not None:
        project = Setting(used.context.project, own)
    output = find_setting("output", session.environ)
    if session.given_form is not None:
        output = Setting(session.given_form.name, "--output")
    found = {
        "context": Setting(used.place if used is not None else "", own),
        "server": Setting(used.context.server if used is not None else "", used.place if used is not None else own),
        "project": project,
        "output": output if output.value else Setting("table", "default"),
    }
    if used is not None:
        by_variable = used.origin != "--context" and session.environ.get("WEFT_TOKEN")
        who = "token" if used.context.token else "certificate" if used.context.certificate else "none"
        found["identity"] = Setting(who, "WEFT_TOKEN" if by_variable else used.place)
    if session.no_color:
        found["color"] = Setting("no", "NO_COLOR" if session.environ.get("NO_COLOR") else "--no-color")
    return found
