"""`weft vm snapshot web --name before-update --memory`: take a snapshot of a VM, of a volume, or of a container's volumes, and wait
until it can be restored. Ctrl-C ends the watching only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import OK
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one, find_targets
from weft.cli.command.target import Target, usage
from weft.cli.session import Session
from weft.cli.snapshot.description import describe_taken, name_snapshot
from weft.cli.wait.finish import Done, finish, plan_wait
from weft.cli.wait.follow import follow_to_end, print_one
from weft.cli.wait.progress import Progress
from weft.kinds.fields.cells import dig
from weft.kinds.operation import name_operation
from weft.kinds.parts.snapshot.schedule import DEFAULT_KEPT, MOST_KEPT
from weft.kinds.parts.snapshot.verbs import name_member
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.objects.errors import AlreadyExists
from weft.objects.quantity import format_duration

ABLE = ("vm", "volume", "container")
_SAME_SECOND = 9  # so many more without a name may be taken in one second


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    of_others = kind is not None and kind.snapshots != "machine"
    what = kind.title if kind is not None and of_others else "VM"
    name = click.Option(
        ["--name"], metavar="NAME", help=f"The snapshot's name. [the {what}'s, with date and time in UTC]"
    )
    every = [
        click.Option(
            ["--every"], type=options.Duration(unit=True), help="Take one now and then again, so often; 0 ends that."
        ),
        click.Option(["--keep"], type=int, metavar="N", help="How many of those to keep. [7]"),
    ]
    if of_others:
        regular = every if kind is not None and kind.snapshots == "volume" else []
        few = [options.targets(kind, many=False, able=ABLE), name, *regular, *options.waits(), options.output()]
        return options.build(verb, f"{entry.summary}.", _run_plain, kind, few)
    params: list[click.Parameter] = [
        options.targets(kind, required=False, able=ABLE),
        name,
        click.Option(["--group"], metavar="NAME", help="Take all of these VMs at one instant, each as NAME-VM."),
        *options.selectors(kind),
        click.Option(["--memory"], is_flag=True, help="Keep the memory of the running VM, too."),
        *every,
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run_plain(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    name: str | None,
    every: float | None = None,
    keep: int | None = None,
) -> int:
    hint = f"to name the snapshot: --name {words[1]}" if len(words) == 2 and "/" not in words[1] else ""
    target = find_one(session, kind, words, ABLE, "give one name", hint)
    _check_schedule(name, every, keep)
    if every is not None:
        return _schedule(session, target, every, keep)
    return _take(session, target, name, {})


def _check_schedule(name: str | None, every: float | None, keep: int | None) -> None:
    if name == "":
        raise usage("--name: a snapshot's name can't be empty", "leave --name out for a name with date and time")
    if keep is not None and every is None:
        raise usage("--keep is about snapshots that are taken regularly", "add --every 1h")
    if keep is not None and not 1 <= keep <= MOST_KEPT:
        raise usage(f"--keep: {keep} is out of range", f"give 1 to {MOST_KEPT}, or leave it out for {DEFAULT_KEPT}")
    if every is not None and name is not None:
        raise usage("--every: such snapshots are named by the time at which they are taken", "leave --name out")


def _take(session: Session, target: Target, name: str | None, more: dict[str, Any]) -> int:
    return _finish(session, target, _create(session, target, name, more))


def _create(session: Session, target: Target, name: str | None, more: dict[str, Any]) -> dict[str, Any]:
    """Create a snapshot. Without a name it has that of this second, or of the next one that no other snapshot has."""
    now, later = session.clock.now(), 0
    while True:
        body = {"name": name or name_snapshot(target.name, now + later), **more}
        try:
            return session.client.verb(target.kind.name, target.name, "snapshot", body)
        except AlreadyExists:
            if name or later == _SAME_SECOND:
                raise
            later += 1


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], **given: Any) -> int:
    name, memory, every, keep = given["name"], given["memory"], given["every"], given["keep"]
    if given["group"] is not None:
        if name is not None or every is not None or keep is not None:
            raise usage("--group: its snapshots are named after it and their VMs, and taken once", "give --group alone")
        return _take_group(session, _find_vms(session, kind, words, **given), given["group"], memory=memory)
    if given["labels"] or given["fields"]:
        raise usage("a selector may find several VMs, which are taken together", "add --group NAME")
    several = (
        f"to take both: --group NAME; the snapshot's name is an option: --name {words[1]}" if len(words) == 2 else ""
    )
    vm = find_one(
        session, kind, words, ABLE, "give one VM, or a group's name for several", several or "add --group NAME"
    )
    _check_schedule(name, every, keep)
    if every is not None:
        return _schedule(session, vm, every, keep, {"memory": memory})
    return _take(session, vm, name, {"memory": memory})


def _find_vms(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    labels: tuple[str, ...],
    fields: tuple[str, ...],
    **_: Any,
) -> list[Target]:
    if not (labels or fields):
        return find_targets(session, kind, words, ABLE)
    if words:
        raise usage("give either names or a selector")
    found = session.client.list("vm", labels=",".join(labels), fields=",".join(fields)).items
    if not found:
        raise usage("no VM matches", "weft vm list shows them")
    return [Target(BY_NAME["vm"], item["name"]) for item in found]


def _take_group(session: Session, vms: list[Target], group: str, *, memory: bool) -> int:
    """Snapshots of one instant, made at once."""
    first, *others = vms
    body = {"group": group, "memory": memory, "others": [vm.name for vm in others]}
    made = session.client.verb(first.kind.name, first.name, "snapshot", body)
    targets = [Target(BY_NAME["snapshot"], name_member(group, vm.name)) for vm in vms]
    objects = [made, *(session.client.get("snapshot", target.name) for target in targets[1:])]
    done = [Done(target, obj, "create") for target, obj in zip(targets, objects, strict=True)]
    waits = [wait for one in done if (wait := plan_wait(one.obj, one.target, "create")) is not None]
    return finish(session, done, waits)


def _schedule(
    session: Session, vm: Target, every: float, keep: int | None, more: Mapping[str, Any] | None = None
) -> int:
    """Set how often snapshots are taken; 0: no more."""
    schedule = {"every": every, **(more or {})} | ({} if keep is None else {"keep": keep})
    changed = session.client.patch(vm.kind.name, vm.name, {"spec": {"snapshots": schedule if every else None}})
    kept = dig(changed, "spec.snapshots.keep", DEFAULT_KEPT)
    line = f"{vm.what}  a snapshot every {format_duration(every)}, of which the newest {kept} are kept"
    print_one(
        session, changed, line if every else f"{vm.what}  no more snapshots are taken regularly; those that it has stay"
    )
    return OK


def _finish(session: Session, vm: Target, made: dict[str, Any]) -> int:
    target = Target(BY_NAME["snapshot"], made["name"])
    if session.detach:
        watch = f"weft operation attach {name_operation(made)}{session.in_project}"
        print_one(session, made, f"{target.what}  of {vm.what} is being taken; watch: {watch}")
        return OK
    wait = plan_wait(made, target, "create")
    assert wait is not None
    where = session.in_project
    parting = f"it is still being taken; watch: weft wait {target.what}{where}   undo: weft delete {target.what}{where}"
    result = follow_to_end(session, wait, Progress, parting)
    if isinstance(result, int):
        return result
    assert result.obj is not None
    on = f" on {dig(result.obj, 'status.node')}" if dig(result.obj, "status.node") else ""
    line = f"{target.what}  Ready{on} after {result.seconds:.1f} s: {describe_taken(result.obj)}"
    print_one(session, result.obj, line)
    return OK
