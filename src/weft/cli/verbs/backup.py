"""`weft backup create vm/shop --to safe --name monday`: a backup, waited for until it is in its repository.
`weft backup restore monday --new-name shop`: a VM from it. `weft backuprepository create safe --url dir:///srv/backups`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from weft.cli.backup.adoption import import_all
from weft.cli.backup.container import describe_next, describe_restored, is_of_container, list_restored
from weft.cli.backup.project import back_up_project
from weft.cli.backup.project_restore import restore_project
from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.exit_codes import OK
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target, one_target, read_targets, usage
from weft.cli.session import Session
from weft.cli.snapshot.description import name_snapshot
from weft.cli.wait.finish import finish, finish_one, plan_waits
from weft.client.answer import raise_problem
from weft.client.small_file import read_small
from weft.kinds.allocation import LOCAL
from weft.kinds.backup import BACKUP, OF, BackupSpec, is_of_project
from weft.kinds.backup_repository import ACCESS_KEY, KEY, SECRET_KEY, is_key
from weft.kinds.fields.cells import dig
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.objects.errors import NotFound
from weft.objects.identity import check_name

RESTORED_FROM = ("backup",)


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="KIND/NAME"),
        click.Option(["--of"], metavar="KIND/NAME", help="The same as the argument."),
        click.Option(
            ["--to"],
            metavar="REPOSITORY",
            required=True,
            shell_complete=complete_name("backuprepository"),
            help="The backup repository that it goes to.",
        ),
        click.Option(["--name"], metavar="NAME", help="The backup's name. [that of the VM, with date and time in UTC]"),
        click.Option(["--keep"], type=options.Duration(unit=True), help="How long it is kept. [until it is deleted]"),
        *options.waits(),
        options.output(),
    ]
    words = (
        "Back up a VM with all its disks, a volume, a container's volumes, or all of these in a project. "
        "What an earlier backup has is not copied again."
    )
    return options.build(verb, words, _create, kind, params)


def _create(session: Session, kind: Kind | None, words: tuple[str, ...], **given: Any) -> int:
    named = [*words, *([given["of"]] if given["of"] else [])]
    if len(named) != 1:
        raise usage("give what to back up, once", "weft backup create vm/web --to REPOSITORY")
    of, _, subject = named[0].partition("/")
    if of not in (*OF, "project") or not subject:
        raise usage(
            f"{named[0]!r} is nothing that backups are made of",
            "write vm/NAME, volume/NAME, container/NAME or project/NAME",
        )
    if given["keep"] == 0:
        raise usage(
            "--keep must be longer than 0", "leave --keep out to keep it until it is deleted, or give a time like 30d"
        )
    name = given["name"] if given["name"] is not None else name_snapshot(subject, session.clock.now())
    if not name:
        raise usage("--name: a backup's name can't be empty", "leave --name out for a name with date and time")
    if of == "project":
        return back_up_project(session, subject, name, given)
    spec = {"of": named[0], "to": given["to"]} | ({"keep": given["keep"]} if given["keep"] else {})
    manifest: dict[str, Any] = {"kind": "backup", "name": name, "spec": spec}
    if session.project:
        manifest["project"] = session.project
    made = session.client.create(manifest)
    if of == "container":
        session.notify(f"of {named[0]} only the volumes are backed up: its image and its spec are not")
    return finish_one(session, Target(BY_NAME["backup"], name), made, "create")


def restore_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=RESTORED_FROM),
        click.Option(
            ["--new-name"],
            metavar="NAME",
            help="The name of the VM or volume that is created; of a container's volumes what their names begin with.",
        ),
        click.Option(["--instant"], is_flag=True, help="Start it before its disks are copied from the repository."),
        click.Option(["--pool"], metavar="POOL", help="The storage pool of its disks. [local]"),
        click.Option(
            ["--image"],
            metavar="IMAGE",
            shell_complete=complete_name("image"),
            help="Of a VM: the image that it boots with; its disks are all from the backup. [the VM's]",
        ),
        click.Option(
            ["--into"], metavar="PROJECT", help="Of a project: the project that it is restored into. [the same]"
        ),
        click.Option(["--keep-existing"], is_flag=True, help="Of a project: leave what is there as it is."),
        click.Option(["--dry-run"], is_flag=True, help="Of a project: show what would be done."),
        *options.waits(),
        options.output(),
    ]
    words = "Create a VM from a backup and wait until it runs, or a volume, or all objects of a project."
    return options.build(verb, words, _restore, kind, params)


def _restore(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    new_name: str | None,
    instant: bool,
    pool: str | None,
    image: str | None,
    into: str | None,
    keep_existing: bool,
    dry_run: bool,
) -> int:
    target = find_one(session, kind, words, RESTORED_FROM, "give one backup")
    if pool is not None:
        _require_pool(session, pool)
    found = session.client.get(BACKUP.name, target.name)
    if is_of_project(msgspec.convert({"of": dig(found, "spec.of"), "to": ""}, BackupSpec)):
        if instant:
            raise usage("--instant goes with a backup of a VM", "leave it out")
        if image:
            raise usage("--image goes with a backup of a VM", "restore its parts: weft backup list")
        for name, flag in ((new_name, "--new-name"), (into, "--into")):
            if name is not None:  # before anything is made: as a part of each name, it would be refused once for each
                check_name(name, flag)
        return restore_project(
            session,
            found,
            into=into or "",
            prefix=new_name or "",
            pool=pool or "",
            keep=keep_existing,
            dry_run=dry_run,
        )
    for given_option, flag in ((into, "--into"), (keep_existing, "--keep-existing"), (dry_run, "--dry-run")):
        if given_option:
            raise usage(
                f"{flag} goes with a backup of a project",
                f"leave it out: backup/{target.name} is of {dig(found, 'spec.of')}",
            )
    if not new_name:
        raise usage(
            "--new-name is missing: a backup is never restored over what is there",
            "give --new-name NAME; to reuse the old name, delete the object that has it first",
        )
    given: dict[str, Any] = (
        {"new_name": new_name} | ({"instant": True} if instant else {}) | ({"pool": pool} if pool else {})
    )
    if image:
        given["spec"] = {"image": image}
    if is_of_container(found):
        session.notify(describe_restored(found))
    made = session.client.verb("backup", target.name, "restore", given)
    done = list_restored(session, found, made, new_name)
    code = finish(session, done, plan_waits(done))
    if is_of_container(found) and code == OK:
        session.notify(describe_next(found, new_name, session.in_project))
    return code


def _require_pool(session: Session, name: str) -> None:
    """Raises NotFound: what is restored would wait for it for ever."""
    known = sorted({str(dig(one, "marks.pool")) for one in session.client.list("pool").items} | {LOCAL})
    if name not in known:
        raise NotFound(
            f"no node has a storage pool {name}",
            field="pool",
            hint=f"--pool takes the name that nodes call it by: {', '.join(known)}",
        )


def repository_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        options.targets(kind, many=False),
        click.Option(
            ["--url"],
            metavar="URL",
            required=True,
            help="dir:///PATH, a folder that every node has, or s3://BUCKET?endpoint=URL.",
        ),
        click.Option(
            ["--credentials"],
            metavar="SECRET",
            shell_complete=complete_name("secret"),
            help="The secret with the bucket's keys, as access_key and secret_key.",
        ),
        click.Option(["--access-key"], metavar="KEY", help="The bucket's access key, without a secret."),
        click.Option(["--secret-key-stdin"], is_flag=True, help="Read the bucket's secret key from stdin."),
        click.Option(
            ["--ca"], metavar="FILE", help="The certificate of the CA that signed the bucket's endpoint, in PEM."
        ),
        click.Option(["--key-stdin"], is_flag=True, help="Read the key of an existing repository from stdin."),
        click.Option(
            ["--key-file"],
            metavar="FILE",
            help="Read the key of an existing repository from a file, and import the backups that it has.",
        ),
        click.Option(
            ["--immutable"], is_flag=True, help="Nobody can delete a backup before its time; takes Object Lock."
        ),
        *options.waits(),
        options.output(),
    ]
    return options.build(
        verb, "Create a place for backups, or open one that has some.", _create_repository, kind, params
    )


def _create_repository(session: Session, kind: Kind, words: tuple[str, ...], **given: Any) -> int:
    target = one_target(read_targets(kind, words), "give one name: weft backuprepository create NAME")
    if given["key_file"] and given["key_stdin"]:
        raise usage("give either --key-file or --key-stdin", "a key in a file has its backups imported, too")
    if given["secret_key_stdin"] and given["key_stdin"]:
        raise usage("only one value can come from stdin", "apply a file with spec.values for both")
    values = {ACCESS_KEY: given["access_key"]} if given["access_key"] else {}
    for option, key in (("secret_key_stdin", SECRET_KEY), ("key_stdin", KEY)):
        if given[option]:
            values[key] = sys.stdin.readline().strip()
    if given["key_file"]:
        values[KEY] = _read_file("--key-file", given["key_file"], "give the file that holds the key").strip()
    if KEY in values and not is_key(values[KEY]):
        source = "--key-stdin: what it gave" if given["key_stdin"] else f"--key-file: {given['key_file']}"
        raise usage(
            f"{source} is not the key of a backup repository",
            "a key has 64 hexadecimal digits: weft backuprepository key NAME prints an existing one's",
        )
    spec = {"url": given["url"], "values": values} | ({"immutable": True} if given["immutable"] else {})
    if secret := given["credentials"]:
        spec["credentials"] = secret if "/" in secret else f"{session.client.project}/{secret}"
    if given["ca"]:
        spec["ca"] = _read_file("--ca", given["ca"], "give a file with the CA's certificate in PEM")
    made = session.client.create({"kind": kind.name, "name": target.name, "spec": spec})
    code = finish_one(session, target, made, "create")
    if code != OK or not given["key_file"] or session.detach:
        return code
    return import_all(session, target.name, of="", into="", dry_run=False)


def import_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        options.targets(kind, many=False),
        click.Option(["--of"], metavar="PROJECT", help="Only backups of this project. [all]"),
        click.Option(["--into"], metavar="PROJECT", help="The project that gets them. [that of the same name]"),
        click.Option(["--dry-run"], is_flag=True, help="Show what the repository has, and what of it is known here."),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, "Import the backups that a repository already holds.", _import, kind, params)


def _import(
    session: Session, kind: Kind, words: tuple[str, ...], of: str | None, into: str | None, dry_run: bool
) -> int:
    target = one_target(read_targets(kind, words), "give one backup repository")
    return import_all(session, target.name, of=of or "", into=into or "", dry_run=dry_run)


def _read_file(option: str, name: str, hint: str) -> str:
    try:
        return read_small(Path(name))
    except (OSError, UnicodeDecodeError) as problem:
        why = getattr(problem, "strerror", None) or "it isn't text"
        raise usage(f"{option}: {name} can't be read: {why}", hint) from None


def key_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [options.targets(kind, many=False)]
    words = "Print the key of a backup repository: without it, or the server's data, nobody can read what is in there."
    return options.build(verb, words, _print_key, kind, params)


def _print_key(session: Session, kind: Kind, words: tuple[str, ...]) -> int:
    target = one_target(read_targets(kind, words), "give one backup repository")
    answer = session.client.http.request("POST", f"/v1/{kind.plural}/{target.name}:key")
    raise_problem(answer)
    print(answer.json()["key"])
    return OK
