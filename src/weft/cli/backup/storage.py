"""`weft storage backup` and `weft storage restore`: a policy for all that lies in a pool, and back to a point in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from weft.cli.backup.container import describe_next, describe_restored, is_of_container, list_restored
from weft.cli.backup.moment import choose, describe_grain, name_all
from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.exit_codes import OK
from weft.cli.command.target import Target, usage
from weft.cli.output.local_time import read_past
from weft.cli.session import Session
from weft.cli.wait.finish import Done, finish, finish_one, plan_waits
from weft.kinds.backup_policy import BACKUP_POLICY
from weft.kinds.fields.cells import dig
from weft.kinds.fields.subject import split_subject
from weft.objects.errors import NotFound

_OF_BACKUP = ("name", "to", "schedule", "time_zone", "keep", "keep_daily", "keep_weekly", "keep_monthly")
_OF_RESTORE = ("point_in_time", "new_name")


def backup_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--destination", "--to", "to"],
            metavar="REPOSITORY",
            shell_complete=complete_name("backuprepository"),
            help="backup: the backup repository that it goes to.",
        ),
        click.Option(["--schedule"], metavar="CRON", help="backup: hourly, daily, weekly, or cron's five fields."),
        click.Option(["--time-zone"], metavar="ZONE", help="backup: time zone of the schedule. [UTC]"),
        click.Option(
            ["--retention", "--keep", "keep"],
            type=options.Duration(unit=True),
            help="backup: how long each is kept. [30d]",
        ),
        *(
            click.Option([f"--keep-{period}"], type=int, metavar="N", help=f"backup: {what} whose newest is kept.")
            for period, what in (("daily", "days"), ("weekly", "weeks"), ("monthly", "months"))
        ),
        click.Option(["--name"], metavar="NAME", help="backup: the policy's name. [that of the pool]"),
    ]


def restore_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--point-in-time"],
            metavar="TIME",
            help='restore: to the newest backup at or before this, like "2024-12-09 15:30:00". [the newest]',
        ),
        click.Option(
            ["--new-name"],
            metavar="NAME",
            help="restore: the name of what is created; of several: what their names begin with. [the old name, if free]",
        ),
    ]


def refuse_strange(act: str, given: Mapping[str, Any]) -> None:
    """Raises UsageError for an option of another act."""
    own = {"backup": _OF_BACKUP, "restore": _OF_RESTORE}.get(act, ())
    for name in (*_OF_BACKUP, *_OF_RESTORE):
        if given[name] is not None and name not in own:
            goes = "backup" if name in _OF_BACKUP else "restore"
            flag = {"to": "destination", "keep": "retention"}.get(name, name).replace("_", "-")
            raise usage(f"--{flag} goes with weft storage {goes}", f"leave it out, or: weft storage {goes} --help")


def back_up(session: Session, pool: str | None, given: Mapping[str, Any]) -> int:
    if not pool:
        raise usage(
            "--pool is missing", "weft storage list shows the pools; of one VM: weft backup create vm/web --to R"
        )
    for name, flag in (("to", "--destination"), ("schedule", "--schedule")):
        if not given[name]:
            once = "; a single backup: weft backup create vm/web --to R" if name == "schedule" else ""
            raise usage(f"{flag} is missing", f"give {flag} {'daily' if name == 'schedule' else 'REPOSITORY'}{once}")
    spec = {name: given[name] for name in _OF_BACKUP if name != "name" and given[name] is not None}
    name = given["name"] if given["name"] is not None else pool
    manifest: dict[str, Any] = {"kind": BACKUP_POLICY.name, "name": name, "spec": {"pool": pool, **spec}}
    if session.project:
        manifest["project"] = session.project
    return finish_one(session, Target(BACKUP_POLICY, name), session.client.create(manifest), "create")


def restore(session: Session, words: Sequence[str], pool: str | None, given: Mapping[str, Any]) -> int:
    """Restore as new VMs: nothing that is there is changed."""
    names = [*words, *([pool] if pool else [])]
    if words and pool:
        raise usage(
            f"--pool {pool} names all that was backed up of a pool, so {words[0]} can't be named, too",
            "leave one of both out; into another pool: weft backup restore BACKUP --new-name NAME --pool POOL",
        )
    if len(names) != 1:
        raise usage(
            "name what to restore, once", "a policy, a pool, or a thing like vm/web: weft storage restore vm/web"
        )
    asked = given["point_in_time"]
    at = read_past(asked, session.clock.now(), "--point-in-time") if asked is not None else None
    if at is not None and at > session.clock.now():
        raise usage(f"--point-in-time: {asked!r} is in the future", "leave it out to restore the newest backup")
    policies = [one for one in session.client.list(BACKUP_POLICY.name).items if names[0] in _names(one)]
    found = session.client.list("backup").items
    try:
        chosen = choose(found, names[0], {names[0], *(str(one["name"]) for one in policies)}, at)
    except NotFound as problem:
        problem.field = "pool" if pool else problem.field
        raise
    for sentence in chosen.left_out:
        session.notify(f"left out  {sentence}")
    kinds = dict.fromkeys(split_subject(choice.of)[0] for choice in chosen.choices)
    existing = {f"{kind}/{one['name']}" for kind in kinds for one in session.client.list(kind).items}
    new_names = name_all(chosen.choices, given["new_name"] or "", existing)
    done, grains = list[Done](), []
    for choice in chosen.choices:
        if is_of_container(choice.backup):
            session.notify(describe_restored(choice.backup))
        made = session.client.verb("backup", str(choice.backup["name"]), "restore", {"new_name": new_names[choice.of]})
        all_made = list_restored(session, choice.backup, made, new_names[choice.of])
        done += all_made
        grains += [f"{one.target.what}  restored to {describe_grain(choice, at)}" for one in all_made]
    code = finish(session, done, plan_waits(done))
    if code == OK:
        for line in grains:
            session.notify(line) if session.is_data else print(line, flush=True)
        for choice in chosen.choices:
            if is_of_container(choice.backup):
                session.notify(describe_next(choice.backup, new_names[choice.of], session.in_project))
    return code


def _names(policy: Mapping[str, Any]) -> tuple[str, str]:
    return str(policy["name"]), str(dig(policy, "spec.pool", ""))
