"""`weft quota set -p lab --cpu 2 --memory 1G`, `weft quota show -p lab`: a project has one quota, so it needs no name."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.flags import flag_fields, flag_parameter, make_flags, read_flags
from weft.cli.command.grammar import Entry
from weft.cli.command.target import Target, usage
from weft.cli.output.formats import print_object, print_rows
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.cli.wait.finish import Done, finish
from weft.kinds.fields.cells import dig
from weft.kinds.quota import FIELDS, QUOTA, format_amount
from weft.kinds.record import Kind, Object
from weft.objects.errors import AlreadyExists, NotFound

NONE = "none"
_COLUMNS = make_columns("FIELD", "LIMIT>", "USED>", "FREE>", "SOFT LIMIT>")


def set_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    summary = f"Set limits of a project, and make its quota if it has none. Other limits keep their values; {NONE} removes one."
    params = [
        options.targets(QUOTA, required=False, many=False),
        *make_flags(QUOTA),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, summary, _set, kind, params)


def describe_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [options.targets(QUOTA, required=False, many=False), options.output()]
    return options.build(
        verb, "Show the limits of a project and how much of them its objects use.", _show, kind, params
    )


def _set(session: Session, kind: Kind | None, words: tuple[str, ...], **given: Any) -> int:
    _refuse_name(words, "set")
    removed = {name for name, value in given.items() if isinstance(value, str) and value.lower() == NONE}
    spec = read_flags(QUOTA, {name: value for name, value in given.items() if name not in removed}, {})
    for doc in flag_fields(QUOTA):
        if flag_parameter(doc.path) in removed:
            *way, last = doc.path.split(".")[1:]
            (spec.setdefault(way[0], {}) if way else spec)[last] = None
    if not spec:
        raise usage("nothing to set: give a limit", "weft quota set -p PROJECT --cpu 8 --memory 32G")
    made = _write(session, spec)
    line = f"of project {made['project']} set"
    return finish(session, [Done(Target(QUOTA, QUOTA.only_name), made, "set", line)], [])


def _write(session: Session, spec: dict[str, Any]) -> Object:
    """Change these limits, or make the quota with them."""
    try:
        return session.client.patch(QUOTA.name, QUOTA.only_name, {"spec": spec})
    except NotFound:
        pass
    try:
        return session.client.create(
            {"kind": QUOTA.name, "name": QUOTA.only_name, "project": session.client.project, "spec": spec}
        )
    except AlreadyExists:  # somebody else has made it meanwhile
        return session.client.patch(QUOTA.name, QUOTA.only_name, {"spec": spec})


def _show(session: Session, kind: Kind | None, words: tuple[str, ...]) -> int:
    _refuse_name(words, "show")
    project = session.client.project
    try:
        quota = session.client.get(QUOTA.name, QUOTA.only_name)
    except NotFound:
        raise NotFound(
            f"project {project} has no quota: nothing limits it", hint=f"weft quota set -p {project} --cpu 8"
        ) from None
    if session.is_data:
        print_object(session, quota)
    else:
        print_rows(session, _COLUMNS, [_make_row(quota, name) for name in FIELDS])
        for one in quota.get("conditions") or []:
            if one["status"] == "False":
                session.notify(f"{one['reason']}: {one['message']}")
    return 0


def _make_row(quota: Object, name: str) -> list[str]:
    used, limit, soft = (
        dig(quota, f"status.used.{name}", 0),
        dig(quota, f"spec.{name}"),
        dig(quota, f"spec.soft.{name}"),
    )
    free = None if limit is None else max(0, limit - used)
    cells = ("–" if amount is None else format_amount(name, amount) for amount in (limit, used, free, soft))
    return [name, *cells]


def _refuse_name(words: tuple[str, ...], verb: str) -> None:
    """Raise UsageError for a name that isn't the one that every quota has."""
    if words not in ((), (QUOTA.only_name,), (f"{QUOTA.name}/{QUOTA.only_name}",)):
        raise usage(f"{words[0]!r}: a quota has no name of its own", f"weft quota {verb} -p {words[0]}")
