"""`weft vm delete web --yes`: delete objects and wait until they are gone. Asks a person first; a script gives --yes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.exit_codes import ERROR, OK, join_codes
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_sure_targets
from weft.cli.command.target import Target, find_noun, usage
from weft.cli.deployment.preview import describe_end
from weft.cli.preview.deletion import ask_to_delete, check_person
from weft.cli.preview.unlinking import warn_of_unlinking
from weft.cli.session import Session
from weft.cli.snapshot.description import describe_stay
from weft.cli.snapshot.listing import group_snapshots, has_snapshots, is_of
from weft.cli.verbs.apply import file_option, read_files
from weft.cli.verbs.project import clear_own
from weft.cli.wait.batch import each, finish_each
from weft.cli.wait.finish import Done, plan_wait
from weft.cli.wait.watch import Wait
from weft.kinds.allocation import LOCAL
from weft.kinds.cluster import CLUSTER
from weft.kinds.deployment import DEPLOYMENT
from weft.kinds.fields.cells import dig
from weft.kinds.parts.snapshot.copies import KINDS_WITH_COPIES, describe_copies, has_root_disk
from weft.kinds.project import PROJECT
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, WORKLOADS, is_workload
from weft.kinds.server import SERVER
from weft.kinds.token import SERVER_LABEL
from weft.objects.errors import Forbidden, NotFound
from weft.objects.identity import Ref
from weft.trust.tokens import parse_token

_USERS = (*WORKLOADS, "job", "function", "migration", "conversion")  # deleted first: they use other objects
_SNAPSHOTS = "Delete the snapshots of these objects, too; otherwise they stay."
_FORCE = "Give up a lost node: its workloads are placed again, with fresh disks."


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        options.targets(kind, required=False, able=entry.kinds),
        click.Option(["-y", "--yes"], is_flag=True, help="Don't ask for confirmation."),
        *([file_option()] if kind is None else []),
        *options.selectors(kind),
        *(
            [click.Option(["--force"], is_flag=True, help=_FORCE)]
            if kind is None or kind.lifetime.runs_workloads
            else []
        ),
        *(
            [click.Option(["--snapshots"], is_flag=True, help=_SNAPSHOTS)]
            if kind is None or has_snapshots(kind)
            else []
        ),
        *options.waits(),
        options.output(),
    ]
    return options.build(
        verb, f"Delete {kind.plural if kind else 'objects'} and wait until they are gone.", _run, kind, params
    )


def _run(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    yes: bool,
    labels: tuple[str, ...],
    fields: tuple[str, ...],
    force: bool = False,
    snapshots: bool = False,
    files: tuple[str, ...] = (),
) -> int:
    uids: dict[str, str] = {}  # of the objects that were read: a later one of the same name is not deleted
    if files and (words or labels or fields):
        raise click.UsageError("give either files, names or a selector")
    if files:
        targets = _read_targets(session, files)
    else:
        targets = _find_targets(session, kind, words, ",".join(labels), ",".join(fields), uids)
    if not targets:
        session.notify("no object matches")
        return 0
    effects = [line for target in targets if target.kind is DEPLOYMENT for line in _find_end(session, target)]
    if snapshots:  # before the question: they are a part of what would go
        of_vms = _list_snapshots(session, targets)
        own = _leave_out_earlier(session, of_vms, uids)
        targets += [one for one in _find_snapshots(own, uids) if one not in targets]
    if not yes:
        check_person(session, [target.what for target in targets], effects)
    for line in effects:
        session.notify(line)
    if not snapshots:
        of_vms = _list_snapshots(session, targets)
    if force:
        for target in targets:
            _warn_of_loss(session, target)
    for target in targets:
        if target.kind is CLUSTER:
            warn_of_unlinking(session, target.name)
    if not yes and not _ask(session, targets, uids):
        session.notify("nothing was deleted")
        return ERROR
    users = [target for target in targets if target.kind.name in _USERS] if files or snapshots else []
    rest = [target for target in targets if target not in users]
    gone: list[Done] = []
    code = _delete(session, users, uids, force, gone) if users else OK
    code = join_codes([code, _delete(session, rest, uids, force, gone)]) if rest else code
    if code == OK and not session.is_data:
        _name_left(session, targets, of_vms, "earlier " if snapshots else "")
        _name_volumes_left(session, gone)
        _name_tokens_left(session, gone)
    return code


def _find_end(session: Session, deployment: Target) -> list[str]:
    """Find what goes with a deployment, and what stays."""
    try:
        return describe_end(session, session.client.get(deployment.kind.name, deployment.name))
    except NotFound:
        return []  # the deletion says so


def _list_snapshots(session: Session, targets: list[Target]) -> dict[str, list[dict[str, Any]]]:
    """The snapshots of each VM that is about to be deleted."""
    vms = [target for target in targets if has_snapshots(target.kind)]
    by_name = group_snapshots(session) if vms else {}
    return {vm.what: by_name[vm.what] for vm in vms if vm.what in by_name}


def _leave_out_earlier(
    session: Session, of_vms: Mapping[str, list[dict[str, Any]]], uids: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """``of_vms`` without the snapshots of earlier VMs of the same names; ``uids`` gets those of the VMs that are meant."""
    own = {}
    for what, snapshots in of_vms.items():
        kind, _, name = what.partition("/")
        try:
            workload = session.client.get(kind, name)
        except NotFound:
            continue  # the deletion says so
        uids.setdefault(what, workload["uid"])
        own[what] = [one for one in snapshots if is_of(one, workload)]
    return own


def _find_snapshots(of_vms: Mapping[str, list[dict[str, Any]]], uids: dict[str, str]) -> list[Target]:
    found = [one for ones in of_vms.values() for one in ones]
    targets = [Target(BY_NAME["snapshot"], one["name"]) for one in found]
    uids.update({target.what: one["uid"] for target, one in zip(targets, found, strict=True)})
    return targets


def _name_left(session: Session, targets: list[Target], of_vms: Mapping[str, list[dict[str, Any]]], which: str) -> None:
    """Say which snapshots stay, and how to delete them. ``which``: of which VMs they are."""
    gone = {target.what for target in targets}
    for vm, snapshots in of_vms.items():
        if stay := [one for one in snapshots if f"snapshot/{one['name']}" not in gone]:
            session.notify(describe_stay(vm, stay, session.in_project, which))


def _name_volumes_left(session: Session, gone: list[Done]) -> None:
    """Say which volumes of a copy stay: the copy made them, so nobody else has named them."""
    copies = [one for one in gone if is_workload(one.target.kind.name) and dig(one.obj, "spec.origin")]
    if not any(dig(one.obj, "spec.volumes") for one in copies):  # an arrival's go with it
        return
    begun = {
        one["name"] for one in session.client.list("volume").items if dig(one, "status.node_uid")
    }  # others go, too
    deleted = {one.target.what for one in gone}
    for one in copies:
        names = [name for name in dig(one.obj, "spec.volumes") or [] if name in begun]
        if stay := [name for name in names if f"volume/{name}" not in deleted]:
            count = "1 volume" if len(stay) == 1 else f"{len(stay)} volumes"
            verb = "stays" if len(stay) == 1 else "stay"
            delete = f"weft volume delete {' '.join(stay)}{session.in_project}"
            session.notify(f"{count} of {one.target.what}, a copy, {verb}: {delete}")


def _name_tokens_left(session: Session, gone: list[Done]) -> None:
    """Say which administrators' tokens stay that deleted servers made for their context files: people may use them elsewhere."""
    for server in (one.target for one in gone if one.target.kind is SERVER):
        own = parse_token(session.client.context.token)
        with suppress(Forbidden):
            for token in session.client.list("token", labels=f"{SERVER_LABEL}={server.name}").items:
                used = " (this command uses it)" if own is not None and own.id == token["name"] else ""
                name = token["name"]
                session.notify(
                    f"token/{name}, an administrator's that {server.what} made, stays valid{used}: weft token delete {name}"
                )


def _delete(session: Session, targets: list[Target], uids: dict[str, str], force: bool, done: list[Done]) -> int:
    """``done`` gets what was deleted."""
    begun = len(done)
    waits: list[Wait] = []

    def delete(target: Target) -> None:
        if target.kind is PROJECT:
            clear_own(session, target.name)
        obj = session.client.delete(target.kind.name, target.name, uid=uids.get(target.what, ""), force=force)
        done.append(Done(target, obj, "delete"))
        waits.extend(wait for wait in [plan_wait(obj, target, "delete")] if wait and obj["uid"])

    codes = each(session, targets, delete)
    return finish_each(session, codes, done[begun:], waits)


def _read_targets(session: Session, files: tuple[str, ...]) -> list[Target]:
    """The objects that files name, the last first, without those that don't exist any more. Raises UsageError for objects of
    another project."""
    targets = []
    for manifest in reversed(read_files(files, session.project)):
        target = Target(manifest.kind, manifest.data["name"])
        project = manifest.data.get("project")
        if project not in (None, session.client.project):
            raise usage(
                f"{target.what} is in project {project}", f"give --project {project}, and only files of that project"
            )
        try:
            session.client.get(target.kind.name, target.name)
            targets.append(target)
        except NotFound as missing:
            if missing.details.get("kind") == "project":
                raise
            session.notify(f"{target.what} is not there")
    return targets


def _find_targets(
    session: Session, kind: Kind | None, words: tuple[str, ...], labels: str, fields: str, uids: dict[str, str]
) -> list[Target]:
    if not labels and not fields:
        return find_sure_targets(session, kind, words)
    if len(words) != (kind is None):
        raise click.UsageError("give either names, or a kind and a selector")
    kind = kind or find_noun(words[0])
    listing = session.client.list(kind.name, labels=labels, fields=fields)
    targets = [Target(kind, item["name"]) for item in listing.items]
    uids.update({target.what: item["uid"] for target, item in zip(targets, listing.items, strict=True)})
    return targets


def _warn_of_loss(session: Session, target: Target) -> None:
    """List what is lost when this node is given up; nothing of one that the server won't give up."""
    node = session.client.get(target.kind.name, target.name)
    if dig(node, "status.phase") in ("Ready", "Autonomous"):
        return
    found = session.client.list("allocation", query={"node": node["uid"]}).items
    ended = [item["spec"] for item in found if dig(item, "report.ended") and not dig(item, "spec.once")]
    over = [
        item["spec"] for item in found if dig(item, "report.ended") and dig(item, "spec.once")
    ]  # they never run again
    places = [item["spec"] for item in found if item["spec"] not in (*ended, *over)]
    pinned = _find_pinned(session, target.name, places)
    listed = session.client.list("volume", all_projects=True, fields=f"status.node={target.name}").items
    volumes = [one for one in listed if (one["status"].get("pool") or LOCAL) == LOCAL]  # others are on other nodes, too
    for title, names in (
        (
            "workloads placed again, without their root disks",
            [_name(p) for p in places if not _waits(p) and _ref(p) not in pinned],
        ),
        (
            "workloads that wait for the node, because they name it",
            [_name(p) for p in places if not _waits(p) and _ref(p) in pinned],
        ),
        (
            "workloads that wait for the node, because their volumes are there",
            [_name(p) for p in places if _waits(p)],
        ),
        ("workloads that had ended, which stay stopped", list(map(_name, ended))),
        ("volumes unavailable until the node is back", [volume["name"] for volume in volumes]),
    ):
        session.notify(f"{title}: {', '.join(sorted(names)) or 'none'}")
    _name_copies(session, target.name, places)
    if functions := _find_functions(session, target.name):
        session.notify(f"functions that no other node serves at an address of its own: {', '.join(functions)}")


def _name_copies(session: Session, node: str, places: list[dict[str, Any]]) -> None:
    """Say of each VM that loses its root disk what there is of it elsewhere."""
    lost = [place for place in places if has_root_disk(place)]
    found = (
        [one for kind in KINDS_WITH_COPIES for one in session.client.list(kind, all_projects=True).items]
        if lost
        else []
    )
    for place in sorted(lost, key=_name):
        ref = msgspec.convert(place["workload"], Ref)
        own = [one for one in found if one.get("project") == ref.project]
        session.notify(f"root disk of {_name(place)}: {describe_copies(own, ref, node)}")


def _waits(place: dict[str, Any]) -> bool:
    return any(volume.get("pool", LOCAL) == LOCAL for volume in place["volumes"])


def _find_pinned(session: Session, node: str, places: list[dict[str, Any]]) -> set[tuple[str, ...]]:
    """Find the workloads that run on this node alone."""
    pinned = set[tuple[str, ...]]()
    for kind in sorted({place["workload"]["kind"] for place in places}):
        for one in session.client.list(kind, all_projects=True, fields=f"spec.node={node}").items:
            pinned.add((kind, one["project"], one["name"]))
    return pinned


def _find_functions(session: Session, node: str) -> list[str]:
    """The functions that name this node alone."""
    items = session.client.list("function", all_projects=True).items
    return sorted(f"function/{one['name']}" for one in items if dig(one, "spec.local_nodes") == [node])


def _ref(place: dict[str, Any]) -> tuple[str, ...]:
    return place["workload"]["kind"], place["workload"]["project"], place["workload"]["name"]


def _name(place: dict[str, Any]) -> str:
    return f"{place['workload']['kind']}/{place['workload']['name']}"


def _ask(session: Session, targets: list[Target], uids: dict[str, str]) -> bool:
    """Show what would go and ask; the answer. Raises UsageError where nobody can answer."""
    found = [session.client.get(target.kind.name, target.name) for target in targets]
    uids.update({target.what: obj["uid"] for target, obj in zip(targets, found, strict=True)})
    return ask_to_delete(session, found)
