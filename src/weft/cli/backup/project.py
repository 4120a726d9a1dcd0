"""`weft backup create project/shop --to safe`: a backup of each thing in the project that has data, and of all objects, begun
together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from weft.cli.backup.objects import is_fetched
from weft.cli.command.target import Target, usage
from weft.cli.session import Session
from weft.cli.wait.finish import Done, finish, plan_wait
from weft.kinds.backup import BACKUP, PROJECT, SET, explain_encrypted
from weft.kinds.fields.cells import dig
from weft.kinds.image import OWN
from weft.kinds.registry import BY_NAME
from weft.objects.errors import AlreadyExists
from weft.objects.identity import cut_name

_OF = ("vm", "container", "volume")


def back_up_project(session: Session, project: str, name: str, given: Mapping[str, Any]) -> int:
    """Create the backups, and wait for them: of each thing with data, and of all objects, which has the name of the whole."""
    if session.given_project not in (None, project):
        raise usage(f"project/{project} and -p {session.given_project} are two projects", "leave -p out")
    session.given_project = project
    items = [item for kind in _OF for item in session.client.list(kind).items]
    subjects, left_out = choose_subjects(items)
    for sentence in [*left_out, *name_images(session.client.list("image").items)]:
        session.notify(f"left out  {sentence}")
    names = name_all(
        name, [*subjects, (PROJECT, project)], {str(one["name"]) for one in session.client.list("backup").items}
    )
    done, waits = [], []
    for (kind, subject), own in names.items():
        spec = {"of": f"{kind}/{subject}", "to": given["to"]} | ({"keep": given["keep"]} if given["keep"] else {})
        made = session.client.create(
            {
                "kind": BACKUP.name,
                "project": project,
                "name": own,
                "labels": {SET: name},
                "spec": spec,
            }
        )
        target = Target(BACKUP, made["name"])
        done.append(Done(target, made, "create"))
        waits += [wait] if (wait := plan_wait(made, target, "create")) else []
    return finish(session, done, waits)


def choose_subjects(items: Iterable[Mapping[str, Any]]) -> tuple[list[tuple[str, str]], list[str]]:
    """Kind and name of what has data of its own, and what has none, each as a sentence. Pure."""
    subjects, left_out = list[tuple[str, str]](), list[str]()
    items = list(items)
    encrypted = {str(one["name"]) for one in items if one["kind"] == "volume" and dig(one, "spec.encrypted", False)}
    for item in items:
        kind, name = str(item["kind"]), str(item["name"])
        if (
            item.get("deleting_since") or dig(item, "owner.kind", "") == BACKUP.name
        ):  # it boots a backup, and goes again
            continue
        snapshots = BY_NAME[kind].snapshots
        has_run = snapshots == "volume" or dig(item, "status.incarnation", 0) > 0
        if snapshots == "mounts" and not dig(item, "spec.mounts", []):
            left_out.append(f"{kind}/{name}: it has no volumes, and the rest comes from its image")
        elif not has_run or (snapshots == "volume" and not dig(item, "status.node_uid")):
            left_out.append(f"{kind}/{name}: it has no data yet")
        elif sealed := _find_encrypted(item, encrypted):
            left_out.append(explain_encrypted(f"{kind}/{name}", sealed))
        elif snapshots != "volume" or not dig(item, "status.attached_to"):  # else it comes with what has it
            subjects.append((kind, name))
    return subjects, left_out


def name_images(images: Iterable[Mapping[str, Any]]) -> list[str]:
    """Those whose content nobody could fetch or build again if the fabric were lost, each as a sentence. Pure."""
    own = [one for one in images if not is_fetched(one["spec"]) and one["name"] not in OWN]
    return [
        f"image/{one['name']}: no backup has the content of images; keep a copy of {dig(one, 'spec.url') or 'its content'}"
        for one in own
        if not one.get("deleting_since")
    ]


def _find_encrypted(item: Mapping[str, Any], encrypted: Collection[str]) -> str:
    """The name of the first encrypted volume of it; "": it has none."""
    if item["kind"] == "volume":
        return str(item["name"]) if item["name"] in encrypted else ""
    return next((str(one) for one in dig(item, "spec.volumes", None) or [] if one in encrypted), "")


def name_all(whole: str, subjects: Iterable[tuple[str, str]], existing: Collection[str]) -> dict[tuple[str, str], str]:
    """The names of all its backups, by kind and name of what each is of; its own is ``whole``. Raises AlreadyExists, before
    anything is made. Pure."""
    names = {one: whole if one[0] == PROJECT else name_part(whole, *one) for one in subjects}
    if taken := [name for name in names.values() if name in existing]:
        raise AlreadyExists(
            f"backup {taken[0]} exists already, so nothing was backed up", field="name", hint="give another --name"
        )
    return names


def name_part(whole: str, kind: str, subject: str) -> str:
    """The name of one of its backups."""
    part = subject if BY_NAME[kind].snapshots == "machine" else f"{kind}-{subject}"
    return cut_name(f"{whole}-{part}")
