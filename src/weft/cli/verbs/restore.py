"""`weft vm restore web --snapshot before-update`: go back to a snapshot in place, or with `--new-name` as a new VM beside the old
one. `weft vm clone web web-2`: a twin of a VM. All wait for the VM. Ctrl-C ends the watching only."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.exit_codes import ERROR, OK
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target, usage
from weft.cli.output.local_time import render_time
from weft.cli.output.terminal import is_terminal
from weft.cli.session import Session
from weft.cli.snapshot.description import describe_left_out
from weft.cli.snapshot.listing import has_snapshots, list_snapshots
from weft.cli.wait.finish import finish_one
from weft.kinds.fields.cells import dig
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.objects.errors import IllegalTransition, NotFound

RESTORED_FROM = ("vm", "snapshot")
CLONED = ("vm",)
Object = Mapping[str, Any]


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    of_vm = kind is None or has_snapshots(kind)
    new = "Create a new VM of this name from the snapshot; the old one stays as it is."
    keeping = "Don't ask, and don't keep what stands there now as a snapshot."
    snapshot = click.Option(
        ["--snapshot"], metavar="SNAPSHOT", help="The snapshot to go back to.", shell_complete=complete_name("snapshot")
    )
    memory = "Go on from the snapshot's memory, or boot from its disks. [from the memory, if it has any]"
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=RESTORED_FROM),
        *([snapshot] if of_vm else []),
        click.Option(["--new-name"], metavar="NAME", help=new),
        click.Option(["--memory/--no-memory"], default=None, help=memory),
        click.Option(["-y", "--yes"], is_flag=True, help=keeping),
        *options.waits(),
        options.output(),
    ]
    return options.build(
        verb, "Go back to a snapshot in place, or with --new-name create a VM from it.", _run, kind, params
    )


def _run(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    new_name: str | None,
    memory: bool | None,
    yes: bool,
    snapshot: str | None = None,
) -> int:
    hint = f"to name the snapshot: --snapshot {words[1]}" if len(words) == 2 and "/" not in words[1] else ""
    target = find_one(session, kind, words, RESTORED_FROM, "give one VM: they are restored one at a time", hint)
    if new_name == "":
        raise usage("--new-name: a VM's name can't be empty", "leave --new-name out to restore the VM in place")
    is_vm = has_snapshots(target.kind)
    if snapshot is not None and not is_vm:
        raise usage(f"{target.what} is a snapshot already", "leave --snapshot out")
    if is_vm and not snapshot:
        raise _ask_for_snapshot(session, target)
    source = session.client.get("snapshot", snapshot or target.name)
    of = str(dig(source, "spec.of", ""))
    vm = target if is_vm else Target(BY_NAME["vm"], of.removeprefix("vm/"))
    if of != vm.what:
        raise IllegalTransition(
            f"snapshot/{source['name']} is of {of}, not of {vm.what}",
            field="snapshot",
            hint=f"weft restore {of} --snapshot {source['name']}, or: weft snapshot list --field spec.of={vm.what}",
        )
    body: dict[str, Any] = {"memory": memory} if memory is not None else {}
    if new_name is not None:
        return _restore_as(session, source, {"new_name": new_name, **body})
    return _restore(session, vm, source, {"snapshot": source["name"], "keep": not yes, **body})


def _ask_for_snapshot(session: Session, vm: Target) -> click.UsageError:
    """The error for a VM without the snapshot's name, with the newest snapshots of it."""
    known = [one["name"] for one in list_snapshots(session, vm.name)]
    if not known:
        return usage("--snapshot is missing", f"{vm.what} has no snapshots: weft vm snapshot {vm.name} takes one")
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
    if body["keep"] and not _confirm(session, before, source):
        session.notify("nothing was changed")
        return ERROR
    known = {one["uid"] for one in list_snapshots(session, vm.name)} if body["keep"] else set()
    obj = session.client.verb("vm", vm.name, "restore", body)
    code = finish_one(session, vm, obj, "restore")
    if code == OK and body["keep"] and not session.detach and not session.is_data:
        _name_kept(session, vm, known)
    return code


def _confirm(session: Session, vm: Object, source: Object) -> bool:
    """Ask a person. A program is not asked: nothing is lost, as what stands there is kept."""
    if session.recorder is not None or not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        return True
    taken, node = dig(source, "status.taken_at"), dig(vm, "status.node")
    phase = str(dig(vm, "status.phase", "")) + (f" on {node}" if node else "")
    of = f" of {render_time(taken)}" if taken else ""
    session.notify(f"  vm/{vm['name']}  {phase}; goes back to snapshot/{source['name']}{of}")
    session.notify("  What stands there now is kept as a snapshot.")
    try:
        return click.confirm("Go back now?", err=True)
    except click.Abort:
        session.notify("")  # the cursor is behind the question
        raise


def _name_kept(session: Session, vm: Target, known: set[str]) -> None:
    """Name the snapshot of what stood there before."""
    new = [one for one in list_snapshots(session, vm.name) if one["uid"] not in known]
    kept = [one["name"] for one in new if dig(one, "spec.automatic") == "restore"]
    if kept:
        name, where = kept[-1], session.in_project
        session.notify(
            f"what stood there is kept as snapshot/{name}; back to it: weft vm restore {vm.name} --snapshot {name}{where}"
            f"   for good: weft snapshot delete {name}{where}"
        )


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
