"""`weft quota set -p lab --cpu 2 --memory 1G`, `weft quota set -p lab --user ann --cpu 1`, `weft quota show -p lab`: a project has
one quota, so it needs no name."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.flags import flag_fields, flag_parameter, make_flags, read_flags
from weft.cli.command.grammar import Entry
from weft.cli.command.target import Target, usage
from weft.cli.output.formats import print_object, print_rows
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.cli.wait.finish import Done, finish
from weft.kinds.fields.cells import dig
from weft.kinds.quota import FIELDS, PASSING_FIELDS, QUOTA, AccountLimits, QuotaSpec, describe_user, format_amount
from weft.kinds.record import Kind, Object
from weft.objects.errors import AlreadyExists, NotFound

NONE = "none"
_COLUMNS = make_columns("USER~", "FIELD", "LIMIT>", "USED>", "FREE>", "SOFT LIMIT>")


def set_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    summary = f"Set limits of a project, and make its quota if it has none. Other limits keep their values; {NONE} removes one."
    params = [
        options.targets(QUOTA, required=False, many=False),
        *make_flags(QUOTA),
        _user("The limits are this user's, in place of those of --per-user; token:NAME is a token without a user."),
        click.Option(["--per-user"], is_flag=True, help="The limits are those of each user of the project."),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, summary, _set, kind, params)


def describe_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        options.targets(QUOTA, required=False, many=False),
        _user("Show the limits of this user, and how much of them the user's objects use."),
        options.output(),
    ]
    return options.build(
        verb, "Show the limits of a project and how much of them its objects use.", _show, kind, params
    )


def _user(text: str) -> click.Parameter:
    return click.Option(["--user"], metavar="NAME", help=text, shell_complete=complete_name("user"))


def _set(
    session: Session, kind: Kind | None, words: tuple[str, ...], user: str | None, per_user: bool, **given: Any
) -> int:
    _refuse_name(words, "set")
    if user is not None and per_user:
        raise usage("--user is one user and --per-user is each: give one of them", "weft quota set --help")
    removed = {name for name, value in given.items() if isinstance(value, str) and value.lower() == NONE}
    spec = read_flags(QUOTA, {name: value for name, value in given.items() if name not in removed}, {})
    for doc in flag_fields(QUOTA):
        if flag_parameter(doc.path) in removed:
            *way, last = doc.path.split(".")[1:]
            (spec.setdefault(way[0], {}) if way else spec)[last] = None
    if not spec:
        raise usage("nothing to set: give a limit", "weft quota set -p PROJECT --cpu 8 --memory 32G")
    whose = "" if user is None else f", {describe_user(user)},"
    if user is not None:
        spec = {"users": {user: spec}}
    elif per_user:
        spec, whose = {"per_user": spec}, ", each user,"
    made = _write(session, spec)
    line = f"of project {made['project']}{whose} set"
    return finish(session, [Done(Target(QUOTA, QUOTA.admission.only_name), made, "set", line)], [])


def _write(session: Session, spec: dict[str, Any]) -> Object:
    """Change these limits, or make the quota with them."""
    try:
        return session.client.patch(QUOTA.name, QUOTA.admission.only_name, {"spec": spec})
    except NotFound:
        pass
    try:
        return session.client.create(
            {"kind": QUOTA.name, "name": QUOTA.admission.only_name, "project": session.client.project, "spec": spec}
        )
    except AlreadyExists:  # somebody else has made it meanwhile
        return session.client.patch(QUOTA.name, QUOTA.admission.only_name, {"spec": spec})


def _show(session: Session, kind: Kind | None, words: tuple[str, ...], user: str | None) -> int:
    _refuse_name(words, "show")
    project = session.client.project
    try:
        quota = session.client.get(QUOTA.name, QUOTA.admission.only_name)
    except NotFound:
        raise NotFound(
            f"project {project} has no quota: nothing limits it", hint=f"weft quota set -p {project} --cpu 8"
        ) from None
    spec = msgspec.convert(quota["spec"], QuotaSpec)
    if user is not None and not spec.limits_users:
        raise NotFound(
            f"the quota of project {project} limits no users", hint=f"weft quota set -p {project} --user {user} --cpu 2"
        )
    if session.is_data:
        print_object(session, quota)
    else:
        print_rows(session, _COLUMNS, _make_rows(quota, spec, user))
        for one in quota.get("conditions") or []:
            if one["status"] == "False":
                session.notify(f"{one['reason']}: {one['message']}")
    return 0


def _make_rows(quota: Object, spec: QuotaSpec, user: str | None) -> list[list[str]]:
    """All fields of one user, or of the project, and then what each user has limits on."""
    by_user = dig(quota, "status.used_by_user", {})
    if user is not None:
        return [_make_row(user, spec.limits_of(user), by_user.get(user, {}), name) for name in FIELDS]
    rows = [_make_row("", spec, dig(quota, "status.used", {}), name) for name in FIELDS]
    passing = [(name, getattr(spec, name)) for name in PASSING_FIELDS]
    rows += [["", name, str(limit), "–", "–", "–"] for name, limit in passing if limit is not None]
    for one in sorted({*by_user, *spec.users}):
        limits = spec.limits_of(one)
        limited = [name for name in FIELDS if (getattr(limits, name), getattr(limits.soft, name)) != (None, None)]
        rows += [_make_row(one, limits, by_user.get(one, {}), name) for name in limited]
    return rows


def _make_row(user: str, limits: AccountLimits, amounts: Object, name: str) -> list[str]:
    used, limit, soft = amounts.get(name, 0), getattr(limits, name), getattr(limits.soft, name)
    free = None if limit is None else max(0, limit - used)
    cells = ("–" if amount is None else format_amount(name, amount) for amount in (limit, used, free, soft))
    return [user, name, *cells]


def _refuse_name(words: tuple[str, ...], verb: str) -> None:
    """Raise UsageError for a name that isn't the one that every quota has."""
    if words not in ((), (QUOTA.admission.only_name,), (f"{QUOTA.name}/{QUOTA.admission.only_name}",)):
        raise usage(f"{words[0]!r}: a quota has no name of its own", f"weft quota {verb} -p {words[0]}")
