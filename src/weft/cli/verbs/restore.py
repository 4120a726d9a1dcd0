"""`weft vm restore web --snapshot before-update`: go back to a snapshot in place, or with `--new-name` as a new VM beside the old
one. `weft vm clone web web-2`: a twin of a VM. All wait for the VM. Volumes: `restore_volume`. Ctrl-C ends the watching only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.exit_codes import ERROR, OK
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target, usage
from weft.cli.session import Session
from weft.cli.snapshot.description import describe_left_out
from weft.cli.snapshot.listing import list_snapshots
from weft.cli.verbs.restore_volume import confirm_going_back, name_kept, refuse_container, restore_volume
from weft.cli.wait.finish import finish_one
from weft.kinds.fields.cells import dig
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.kinds.snapshot import SNAPSHOT
from weft.objects.errors import IllegalTransition, NotFound

RESTORED_FROM = ("vm", "volume", "container", "snapshot")
CLONED = ("vm",)
Object = Mapping[str, Any]


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    of_snapshot = kind is SNAPSHOT
    is_volume = kind is not None and kind.snapshots == "volume"
    made = "volume" if is_volume else "VM" if kind is not None and kind.snapshots == "machine" else "VM or volume"
    new = f"Create a new {made} of this name from the snapshot; the old one stays as it is."
    keeping = "Don't ask, and don't keep what stands there now as a snapshot."
    snapshot = click.Option(
        ["--snapshot"], metavar="SNAPSHOT", help="The snapshot to go back to.", shell_complete=complete_name("snapshot")
    )
    memory = "Go on from the snapshot's memory, or boot from its disks. [from the memory, if it has any]"
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=RESTORED_FROM),
        *([snapshot] if not of_snapshot else []),
        click.Option(["--new-name"], metavar="NAME", help=new),
        *([click.Option(["--memory/--no-memory"], default=None, help=memory)] if not is_volume else []),
        click.Option(["-y", "--yes"], is_flag=True, help=keeping),
        *options.waits(),
        options.output(),
    ]
    return options.build(
        verb, f"Go back to a snapshot in place, or with --new-name create a {made} from it.", _run, kind, params
    )


def _run(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    new_name: str | None,
    yes: bool,
    memory: bool | None = None,
    snapshot: str | None = None,
) -> int:
    hint = f"to name the snapshot: --snapshot {words[1]}" if len(words) == 2 and "/" not in words[1] else ""
    target = find_one(session, kind, words, RESTORED_FROM, "give one name: they are restored one at a time", hint)
    if new_name == "":
        raise usage("--new-name: a name can't be empty", "leave --new-name out to restore it in place")
    is_source = target.kind is SNAPSHOT
    if snapshot is not None and is_source:
        raise usage(f"{target.what} is a snapshot already", "leave --snapshot out")
    if not is_source and not snapshot:
        raise _ask_for_snapshot(session, target)
    source = session.client.get("snapshot", snapshot or target.name)
    of = str(dig(source, "spec.of", ""))
    of_kind, _, of_name = of.partition("/")
    form = BY_NAME[of_kind].snapshots if is_source else target.kind.snapshots
    if form == "mounts":
        if not is_source and of != target.what:
            raise _refuse_other(source, target)
        raise refuse_container(of_name, source)
    if form == "volume":
        if memory is not None:
            raise usage("--memory: a volume has none", "leave it out")
        volume = Target(BY_NAME["volume"], of_name) if is_source else target
        return restore_volume(session, volume, source, new_name, yes=yes)
    vm = target if not is_source else Target(BY_NAME["vm"], of.removeprefix("vm/"))
    if of != vm.what:
        raise _refuse_other(source, vm)
    body: dict[str, Any] = {"memory": memory} if memory is not None else {}
    if new_name is not None:
        return _restore_as(session, source, {"new_name": new_name, **body})
    return _restore(session, vm, source, {"snapshot": source["name"], "keep": not yes, **body})


def _refuse_other(source: Object, target: Target) -> IllegalTransition:
    of = dig(source, "spec.of", "")
    command = f"weft restore {of} --snapshot {source['name']}"
    return IllegalTransition(
        f"snapshot/{source['name']} is of {of}, not of {target.what}",
        field="snapshot",
        hint=f"{command}, or: weft snapshot list --field spec.of={target.what}",
    )


def _ask_for_snapshot(session: Session, vm: Target) -> click.UsageError:
    """The error for a VM without the snapshot's name, with the newest snapshots of it."""
    known = [one["name"] for one in list_snapshots(session, vm.what)]
    if not known:
        return usage(
            "--snapshot is missing", f"{vm.what} has no snapshots: weft {vm.kind.name} snapshot {vm.name} takes one"
        )
    return usage("--snapshot is missing", f"give --snapshot {known[-1]} (the newest), or: weft snapshot list")


def _restore_as(session: Session, source: Object, body: dict[str, Any]) -> int:
    """Create a VM from a snapshot, under a new name."""
    left_out = describe_left_out(source)
    made = session.client.verb("snapshot", source["name"], "restore", body)
    if left_out and not session.is_data:
        session.notify(f"left out  {', '.join(left_out)}")
    return finish_one(session, Target(BY_NAME["vm"], made["name"]), made, "create")


def _restore(session: Session, vm: Target, source: Object, body: dict[str, Any]) -> int:
    try:
        before = session.client.get("vm", vm.name)
    except NotFound as gone:
        gone.hint = f"weft vm restore {vm.name} --snapshot {source['name']} --new-name {vm.name} creates it again"
        raise
    node = dig(before, "status.node")
    where = str(dig(before, "status.phase", "")) + (f" on {node}" if node else "")
    if body["keep"] and not confirm_going_back(session, vm.what, where, source):
        session.notify("nothing was changed")
        return ERROR
    known = {one["uid"] for one in list_snapshots(session, vm.what)} if body["keep"] else set()
    obj = session.client.verb("vm", vm.name, "restore", body)
    code = finish_one(session, vm, obj, "restore")
    if code == OK and body["keep"] and not session.detach and not session.is_data:
        name_kept(session, vm, known)
    return code


def clone_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="NAME NEW_NAME" if kind else "KIND/NAME NEW_NAME"),
        click.Option(
            ["--new-name", "--name", "new_name"], metavar="NAME", help="The new VM's name, if not an argument."
        ),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run_clone, kind, params)


def _run_clone(session: Session, kind: Kind | None, words: tuple[str, ...], new_name: str | None) -> int:
    names, new = _split(kind, words, new_name)
    vm = find_one(session, kind, names, CLONED, "give one VM and the name of its twin: weft vm clone NAME NEW_NAME")
    made = session.client.verb("vm", vm.name, "clone", {"new_name": new})
    return finish_one(session, Target(BY_NAME["vm"], made["name"]), made, "create")


def _split(kind: Kind | None, words: Sequence[str], new_name: str | None) -> tuple[Sequence[str], str]:
    """The words that name the VM, and the twin's name. Raises UsageError."""
    least = 1 if kind is not None or (words and "/" in words[0]) else 2 if words[:1] in (("vm",), ("vms",)) else 1
    if new_name is None and len(words) > least:
        words, new_name = words[:-1], words[-1]
    if not new_name:
        name = words[-1].rpartition("/")[2] if len(words) >= least else "NAME"
        raise usage("the name of the twin is missing", f"weft vm clone {name} {name if name != 'NAME' else 'NEW'}-2")
    new_kind, slash, bare = new_name.rpartition("/")
    if slash and new_kind not in CLONED:
        raise usage(f"{new_name!r} is not a VM's name", "give the twin's name alone")
    return words, bare
