"""The settings in force: a flag goes before a variable, a project's context, a user's. Each with its origin."""

from __future__ import annotations

from weft.cli.session import Session
from weft.client.context import Setting, find_setting, locate_context
from weft.objects.errors import NotFound


def find_settings(session: Session) -> dict[str, Setting]:
    """All settings in force, by name. A token is only reported as present."""
    try:
        used = locate_context(session.context_file, session.environ)
    except NotFound:
        used = None
    own = used.origin if used is not None else "not set"
    given = session.given_project
    project = Setting(given, "--project") if given else find_setting("project", session.environ)
    if not project.value and used is not None:
        project = Setting(used.context.project, used.place)
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
