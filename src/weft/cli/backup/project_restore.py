"""`weft backup restore before-upgrade`: the objects of a backed-up project are created again, and their data is restored.

What was done stays when a step fails: the same command with --keep-existing goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from weft.cli.backup.adoption import begin_adoption, list_waits, read_stream
from weft.cli.backup.interruption import Made, describe_end, describe_stop
from weft.cli.backup.objects import ObjectRestore, bring_topics, choose_data, plan_restore
from weft.cli.command.errors import complain
from weft.cli.command.exit_codes import ERROR, INTERRUPTED, OK, partial_code
from weft.cli.command.target import Target
from weft.cli.output.local_time import render_time
from weft.cli.session import Session
from weft.cli.wait.finish import Done, finish, plan_wait
from weft.cli.wait.watch import Wait
from weft.client.function_code import has_code, upload_code
from weft.kinds.backup import BACKUP
from weft.kinds.fields.cells import dig
from weft.kinds.parts.snapshot.backed_up import BackedUpProject
from weft.kinds.registry import BY_NAME
from weft.objects.errors import InUse, NotFound, WeftError

Object = Mapping[str, Any]


def restore_project(
    session: Session, backup: Object, *, into: str, prefix: str, pool: str, keep: bool, dry_run: bool
) -> int:
    """Restore into the project ``into``, "" is that of the backup; disks into ``pool``, "" is where they were. Raises AlreadyExists
    before anything is created."""
    raw = read_stream(session, "backup", str(backup["name"]), "files", {"act": "objects"})
    held = msgspec.json.decode(raw, type=BackedUpProject)
    source = str(backup["project"])
    project = into or source
    data = choose_data(session.client.list("backup").items, backup)
    is_there = any(one["name"] == project for one in session.client.list("project").items)
    existing = _list_existing(session, held, project, is_there=is_there)
    lent = _list_lent(session, held, source) if project != source else []
    steps = plan_restore(held, data, existing, prefix=prefix, keep=keep, lent=lent)
    if pool:
        steps = [
            msgspec.structs.replace(one, manifest={**one.manifest, "pool": pool}) if one.how == "restore" else one
            for one in steps
        ]
    if dry_run:
        for step in steps:
            print(describe(step, "would be "), flush=True)
        return OK
    made, waits = Made(project, [f"{kind}/{name}" for kind, name in existing]), list[Wait]()
    try:
        if not is_there:
            _create_project(session, made)
        if project != source:
            steps = _bring(session, steps, made)
        return _carry_out(session, steps, held, backup, made, waits)
    except KeyboardInterrupt:
        told = (
            describe_end(session, made, waits) if waits else describe_stop(made, made.inspect(session), session.typed)
        )
        for line in told:
            session.notify(line)
        return INTERRUPTED


def describe(step: ObjectRestore, would: str = "") -> str:
    """One line for people."""
    note = f": {step.note}" if step.note else ""
    if step.how == "restore" and step.backup is not None:
        what = (
            step.what
            if BY_NAME[step.kind].snapshots != "volume" or not step.volumes
            else f"volumes {', '.join(sorted(step.volumes.values()))}"
        )
        at = render_time(float(dig(step.backup, "status.taken_at") or 0.0), seconds=True)
        return f"{what}  {would}restored from backup/{step.backup['name']} of {at}{note}"
    done = {
        "create": "created",
        "comes": "restored",
        "share": "shared with the project",
        "keep": "kept",
        "leave": "left out",
    }[step.how]
    return f"{step.what}  {would}{done}{note}"


def _list_existing(
    session: Session, held: BackedUpProject, project: str, *, is_there: bool
) -> dict[tuple[str, str], Object]:
    found = dict[tuple[str, str], Object]()
    for kind in sorted({one.kind for one in held.objects}) if is_there else ():
        for item in session.client.list(kind, project=project).items:
            if item.get("project") == project:
                found[kind, str(item["name"])] = item["spec"]
    return found


def _list_lent(session: Session, held: BackedUpProject, source: str) -> list[tuple[str, str]]:
    """List the objects whose content no backup has, and the project that was backed up still has."""
    kinds = {one.kind for one in held.objects if BY_NAME[one.kind].in_backups == "named"}
    if held.project != source:  # the backups of another project were taken in here
        return []
    return [
        (kind, str(item["name"])) for kind in sorted(kinds) for item in session.client.list(kind, project=source).items
    ]


def _create_project(session: Session, made: Made) -> None:
    made.ask(what := f"project/{made.project}")
    session.client.create({"kind": "project", "name": made.project, "spec": {}})
    made.add(what)
    session.notify(f"{what}  created")


def _bring(session: Session, steps: list[ObjectRestore], made: Made) -> list[ObjectRestore]:
    """The steps with backups of its project: adopted there, as what they restore begins from one of its own."""
    project = made.project
    named = {str(one.backup["uid"]): one.backup for one in steps if one.backup is not None}
    own = session.client.list("backup", project=project).items
    there: dict[str, Object] = {str(dig(one, "spec.adopts", "")): one for one in own if not one.get("deleting_since")}
    entries = {
        uid: {"uid": dig(one, "spec.adopts", "") or uid, "name": one["name"], "of": dig(one, "spec.of"), "set": ""}
        for uid, one in named.items()
    }
    missing = {uid: one for uid, one in entries.items() if one["uid"] not in there}
    to = {str(dig(one, "spec.to")) for one in named.values()}
    taken = {(project, str(one["name"])) for one in own}
    begun = [there[one["uid"]] for one in entries.values() if one["uid"] in there]  # of an earlier restore
    waits = [wait for one in begun if (wait := _plan_wait_for(one))]
    for repository in to:
        part = [one for uid, one in missing.items() if dig(named[uid], "spec.to") == repository]
        done = list[Done]()
        for one in begin_adoption(session, repository, part, lambda _: project, taken, made.ask):
            made.add(one.target.what)
            done.append(one)
            there[str(dig(one.obj, "spec.adopts"))] = one.obj
        finish(session, done, [*waits, *list_waits(done)], is_last=False)
        waits = []
    return [
        msgspec.structs.replace(one, backup=there[entries[str(one.backup["uid"])]["uid"]])
        if one.backup is not None
        else one
        for one in steps
    ]


def _plan_wait_for(backup: Object) -> Wait | None:
    """Plan the wait for a backup that is still being adopted: nothing can be restored from it before."""
    if dig(backup, "status.phase") in ("Ready", "Failed"):
        return None
    return plan_wait(backup, Target(BACKUP, str(backup["name"])), "create")


def _carry_out(
    session: Session, steps: list[ObjectRestore], held: BackedUpProject, backup: Object, so_far: Made, ends: list[Wait]
) -> int:
    """``ends`` gets what is waited for once all is created. Raises KeyboardInterrupt."""
    done, waits, codes = list[Done](), list[Wait](), list[int]()
    for step in steps:
        volumes = [f"volume/{one}" for one in step.volumes.values()]
        try:
            so_far.ask(*([step.what, *volumes] if step.how in ("create", "restore") else []))
            made = _do(session, step, held, backup, so_far.project)
        except WeftError as problem:
            problem.message = f"{step.what}: {problem.message}"
            codes.append(complain(problem, session.output, session.color, session.debug))
            continue
        if made is None:
            session.notify(describe(step))
            codes += [ERROR] if step.how == "leave" and BY_NAME[step.kind].in_backups != "named" else []
            continue
        target = Target(BY_NAME[made["kind"]], made["name"])
        so_far.add(target.what, *volumes)
        done.append(Done(target, made, "create"))
        waits += [wait] if (wait := plan_wait(made, target, "create")) else []
        waits += list_data_waits(made)
    so_far.ask()
    ends += waits
    return partial_code([*codes, *([finish(session, done, waits, is_last=False)] if done else [])])


def list_data_waits(made: Object) -> list[Wait]:
    """List what a restore waits for beside what it made: one that is stopped doesn't wait for the snapshot that has its data."""
    snapshot = str(dig(made, "marks.origin.snapshot") or dig(made, "spec.origin.snapshot") or "")
    if not snapshot or dig(made, "spec.run", "run") == "run":
        return []
    target = Target(BY_NAME["snapshot"], snapshot)
    wait = plan_wait({"kind": "snapshot", "name": snapshot, "project": made.get("project")}, target, "create")
    return [wait] if wait else []


def _do(session: Session, step: ObjectRestore, held: BackedUpProject, backup: Object, project: str) -> Object | None:
    """Do the step. Returns what was created; None: nothing. Raises WeftError."""
    if step.how == "share":
        session.client.verb(step.kind, step.old, "share", {"with": [project]}, project=held.project)
    if step.how == "create":
        made = bring_topics(_add_secrets(step, held, str(dig(backup, "spec.to"))), held.project, project)
        _bring_uploads(session, step, str(backup["name"]), project)
        return session.client.create({**made, "project": project})
    if step.how != "restore" or step.backup is None:
        return None
    given = {"new_name": step.old, "volumes": step.volumes, **step.manifest}
    name = str(step.backup["name"])
    try:
        return session.client.verb("backup", name, "restore", given, project=project)
    except InUse as problem:
        if not (dig(given, "spec.publish") and "publish" in str(problem.field)):
            raise
        session.notify(f"{step.what}  is restored without its published ports: {problem.message}")
        given["spec"] = {**given["spec"], "publish": []}
        return session.client.verb("backup", name, "restore", given, project=project)


def _bring_uploads(session: Session, step: ObjectRestore, backup: str, project: str) -> None:
    """Code, or a model, that the project hasn't. Without it in the backup, too, the server says so when the object is created."""
    admission = BY_NAME[step.kind].admission
    if admission.uploads is None:
        return
    for sha256 in admission.uploads(msgspec.convert(step.manifest["spec"], BY_NAME[step.kind].spec)):
        if has_code(session.client, sha256, admission.upload_sort, project):
            continue
        try:
            data = read_stream(session, "backup", backup, "files", {"act": "upload", "path": sha256})
        except NotFound as problem:
            if problem.token != "uploadMissing":  # of a backup by an older weft
                raise
            continue
        upload_code(session.client, sha256, data, admission.upload_sort, project)


def _add_secrets(step: ObjectRestore, held: BackedUpProject, repository: str) -> dict[str, Any]:
    own = next(one for one in held.objects if (one.kind, one.name) == (step.kind, step.old))
    if not own.sealed:
        return step.manifest
    sealed = {"repository": repository, "project": held.project, "name": own.name, "values": own.sealed}
    return {**step.manifest, "spec": {**step.manifest["spec"], "from_backup": sealed}}
