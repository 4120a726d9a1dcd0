"""`weft volume restore data --snapshot s1`: take a volume back to a snapshot in place, or with `--new-name` make another volume
from it. The snapshot may be the volume's own, or one of a container or VM that had it. Ctrl-C ends the watching only."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from weft.cli.command.exit_codes import ERROR, OK
from weft.cli.command.target import Target, usage
from weft.cli.output.local_time import render_time
from weft.cli.output.terminal import is_terminal
from weft.cli.session import Session
from weft.cli.snapshot.listing import list_snapshots
from weft.cli.wait.finish import finish_one
from weft.kinds.fields.cells import dig
from weft.kinds.registry import BY_NAME
from weft.objects.errors import NotFound

Object = Mapping[str, Any]


def restore_volume(session: Session, volume: Target, source: Object, new_name: str | None, *, yes: bool) -> int:
    if new_name is not None:
        body = {"new_name": new_name, "disk": volume.name}
        made = session.client.verb("snapshot", source["name"], "restore", body)
        return finish_one(session, Target(BY_NAME["volume"], made["name"]), made, "create")
    try:
        before = session.client.get("volume", volume.name)
    except NotFound as gone:
        gone.hint = (
            f"weft volume restore {volume.name} --snapshot {source['name']} --new-name {volume.name} creates it again"
        )
        raise
    where = f"on {dig(before, 'status.node')}"
    if not yes and not confirm_going_back(session, volume.what, where, source):
        session.notify("nothing was changed")
        return ERROR
    known = {one["uid"] for one in list_snapshots(session, volume.what)} if not yes else set()
    obj = session.client.verb("volume", volume.name, "restore", {"snapshot": source["name"], "keep": not yes})
    code = finish_one(session, volume, obj, "restore")
    if code == OK and not yes and not session.detach and not session.is_data:
        name_kept(session, volume, known)
    return code


def refuse_container(name: str, source: Object | None) -> click.UsageError:
    """A container's snapshot is one of its volumes, which may be mounted elsewhere since."""
    snapshot = source["name"] if source is not None else "SNAPSHOT"
    disks = sorted(dig(source, "status.disks", {}) or {}) if source is not None else []
    commands = [
        f"weft volume restore {disk} --snapshot {snapshot} --new-name {disk}-2" for disk in disks[:4] or ["VOLUME"]
    ]
    return usage(
        f"container/{name}: the snapshot of a container is one of its volumes, which are restored one by one",
        f"{'; '.join(commands)}; or in place, once no container has it: leave --new-name out",
    )


def name_kept(session: Session, target: Target, known: set[str]) -> None:
    """Name the snapshot of what stood there before."""
    new = [one for one in list_snapshots(session, target.what) if one["uid"] not in known]
    kept = [one["name"] for one in new if dig(one, "marks.automatic") == "restore"]
    if kept:
        name, where = kept[-1], session.in_project
        command = f"weft {target.kind.name} restore {target.name} --snapshot {name}{where}"
        session.notify(
            f"what stood there is kept as snapshot/{name}; back to it: {command}"
            f"   for good: weft snapshot delete {name}{where}"
        )


def confirm_going_back(session: Session, what: str, where: str, source: Object) -> bool:
    """Ask a person. A program is not asked: nothing is lost, as what stands there is kept."""
    if session.recorder is not None or not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        return True
    taken = dig(source, "status.taken_at")
    of = f" of {render_time(taken)}" if taken else ""
    session.notify(f"  {what}  {where}; goes back to snapshot/{source['name']}{of}")
    session.notify("  What stands there now is kept as a snapshot.")
    try:
        return click.confirm("Go back now?", err=True)
    except click.Abort:
        session.notify("")  # the cursor is behind the question
        raise
