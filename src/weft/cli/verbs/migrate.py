"""`weft vm migrate web --to n2`: migrate a workload to another node, and show the progress. Ctrl-C ends the watching only."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.exit_codes import ERROR, OK, UNPLACEABLE, exit_code
from weft.cli.command.grammar import Entry, able
from weft.cli.command.lookup import find_one, refuse_unlinked
from weft.cli.command.target import Target, usage
from weft.cli.migration.description import describe_forecast
from weft.cli.migration.progress import MigrationProgress, describe_end
from weft.cli.output.formats import print_object
from weft.cli.output.local_time import read_moment, render_time
from weft.cli.output.terminal import find_width, is_terminal
from weft.cli.placement.answer import render_recommendation
from weft.cli.placement.question import ask
from weft.cli.session import Session
from weft.cli.wait.finish import describe_silence
from weft.cli.wait.follow import follow_to_end, print_one
from weft.cli.wait.progress import Progress
from weft.cli.wait.watch import Result, Wait
from weft.kinds.allocation import LOCAL
from weft.kinds.fields.cells import dig
from weft.kinds.migration import ENDED
from weft.kinds.operation import name_operation, plan_goal
from weft.kinds.parts.migration.verb import DEFAULT_TIMEOUT_SECONDS, MIGRATION_MODES
from weft.kinds.record import Goal, Kind
from weft.kinds.registry import BY_NAME
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, Unplaceable, WeftError
from weft.objects.lifecycle import Phase
from weft.objects.quantity import format_bytes

CLEARING_SECONDS = 60.0  # added to the migration's timeout: until the source is removed, or the migration is undone


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=able("migrate")),
        click.Option(
            ["--to"],
            metavar="NODE",
            help="The target node; without it the scheduler chooses.",
            shell_complete=complete_name("node"),
        ),
    ]
    if kind is None or kind is BY_NAME["vm"]:
        params.append(
            click.Option(
                ["--to-cluster"],
                metavar="CLUSTER",
                help="Migrate a running VM to this linked cluster, which chooses the node there.",
                shell_complete=complete_name("cluster"),
            )
        )
    params += _ways(kind)
    of_vm = ", or to another cluster" if kind is None or kind is BY_NAME["vm"] else ""
    params += _of_machines() if kind is None or "storage" in MIGRATION_MODES[kind.name] else []
    params += [
        click.Option(
            ["--bandwidth"], metavar="SIZE", help="Limit on the transfer rate, in bytes per second, like 50M."
        ),
        click.Option(["--at"], metavar="TIME", help="Earliest start: 22:00, 2026-12-24T22:00, or 2h from now."),
        click.Option(
            ["--within"], type=options.Duration(unit=True), help="With --at: begin within this time, or not at all."
        ),
        click.Option(["--reason"], metavar="TEXT", help="Reason for the migration, for people."),
        click.Option(["--allow-pause"], is_flag=True, help="Migrate also a guest that must stand still throughout."),
        click.Option(["--dry-run"], is_flag=True, help="Only show the target, and why the scheduler chooses it."),
        click.Option(["--detach"], is_flag=True, help="Don't wait."),
        click.Option(
            ["--timeout"], type=options.Duration(), help="Abort the migration if it isn't done by then. [10m]"
        ),
        options.output(),
    ]
    return options.build(
        verb, f"Migrate a {kind.title if kind else 'workload'} to another node{of_vm}.", _run, kind, params
    )


def _ways(kind: Kind | None) -> list[click.Parameter]:
    live = "Keep the guest running during the migration (default)."
    if kind is not None and _is_saved(kind):
        live = "Save the running container and continue it on the target; default if both nodes can."
    cold = "Shut the guest down for the migration; also migrates a stopped one"
    cold += ", and a suspended VM with its memory" if kind is None or "saved" in MIGRATION_MODES[kind.name] else ""
    return [
        click.Option(["--live"], is_flag=True, help=live),
        click.Option(["--cold"], is_flag=True, help=f"{cold}."),
    ]


def _is_saved(kind: Kind) -> bool:
    """Whether a running one is saved, and begins on the target."""
    return kind.workload is not None and kind.workload.checkpoint_bar is not None


def _of_machines() -> list[click.Parameter]:
    return [
        click.Option(
            ["--storage"],
            is_flag=True,
            help="Relocate a disk to another pool of the same node; a running VM keeps running.",
        ),
        click.Option(["--pool"], metavar="POOL", help="With --storage: the target pool."),
        click.Option(["--volume"], metavar="VOLUME", help="With --storage: relocate this volume, not the root disk."),
        click.Option(
            ["--pause"], type=options.Duration(most=60.0, unit=True), help="Longest downtime to aim for. [300ms]"
        ),
    ]


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], **given: Any) -> int:
    target = find_one(
        session,
        kind,
        words,
        able("migrate"),
        "give one workload: they are migrated one at a time",
        f"to name the target: --to {words[-1]}" if words else "",
    )
    given = {
        "to_cluster": None,
        "live": False,
        "cold": False,
        "storage": False,
        "pool": None,
        "volume": None,
        "pause": None,
        "allow_pause": False,
        **given,
    }
    given["mode"] = _read_mode(target.kind.name, live=given.pop("live"), cold=given.pop("cold"))
    for flag, name in (("--pause", "pause"), ("--allow-pause", "allow_pause")):
        if given["mode"] == "cold" and given[name]:
            raise usage(
                f"{flag} has no effect with --cold: the guest is shut down for the migration", f"leave out {flag}"
            )
    if given["to_cluster"] is not None:
        _check_cluster(target, given)
    if given["storage"] and "storage" not in MIGRATION_MODES[target.kind.name]:
        raise click.UsageError(
            f"--storage: a {target.kind.name}'s volumes can't change pools; leave out --storage to migrate to another node"
        )
    if given["storage"]:
        _check_storage(given)
    elif given["pool"] or given["volume"]:
        raise click.UsageError("--pool and --volume need --storage: give it too")
    window = _read_window(session, given["at"], given["within"])
    if given["dry_run"] and given["storage"]:
        return _preview_relocation(session, target, given)
    if given["dry_run"]:
        return _preview(session, target, given)
    if not given["allow_pause"] and not _ask_to_pause(session, target, given["mode"]):
        session.notify("nothing was migrated")
        return ERROR
    timeout: float = given["timeout"] if given["timeout"] is not None else DEFAULT_TIMEOUT_SECONDS
    body: dict[str, Any] = {"mode": given["mode"], "timeout_seconds": timeout}
    named = {"to": given["to"], "cluster": given["to_cluster"], "pool": given["pool"], "volume": given["volume"]}
    named |= {"bytes_per_second": given["bandwidth"], "reason": given["reason"]}
    body |= {name: value for name, value in named.items() if value is not None}
    if given["pause"] is not None:
        body["pause_ms"] = max(1, round(given["pause"] * 1000))
    body |= window
    rests = given["mode"] in ("cold", "best") and _rests(session, target)
    try:
        migration = session.client.verb(target.kind.name, target.name, "migrate", body)
    except (IllegalTransition, InvalidInput):
        if given["to_cluster"]:  # said before what keeps the VM here
            refuse_unlinked(session, given["to_cluster"], "input.cluster")
        raise
    if given["at"] is not None:
        when = render_time(body["not_before"])
        name = migration["name"]
        what = f"{given['volume'] or 'root disk'} goes to pool {given['pool']}" if given["storage"] else "migrates"
        print_one(
            session,
            migration,
            f"{target.what}  {what} at {when}; undo: weft migration cancel {name}{session.in_project}",
        )
        return OK
    if given["detach"]:
        watch = f"weft operation attach {name_operation(migration)}{session.in_project}"
        silence = describe_silence(session.client.get(target.kind.name, target.name))
        print_one(session, migration, f"{target.what}  migrating{silence}; watch: {watch}")
        return OK
    session.timeout_seconds = timeout + CLEARING_SECONDS
    return _watch(session, target, migration, rests)


def _find_live_bar(session: Session, target: Target, mode: str) -> str:
    """Why the guest would stand still while its memory is sent; "" if it wouldn't."""
    if mode not in ("live", "best"):
        return ""
    vm = session.client.get(target.kind.name, target.name)
    return str(dig(vm, "status.live_bar", "")) if dig(vm, "status.phase") == Phase.RUNNING else ""


def _ask_to_pause(session: Session, target: Target, mode: str) -> bool:
    """Ask whether the guest may stand still, if it must; the answer. Raises UsageError where nobody can answer."""
    bar = _find_live_bar(session, target, mode)
    if not bar or session.recorder is not None:
        return True
    session.notify(f"{target.what}  pauses until its memory is sent: {bar}")
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise usage(
            f"{target.what} can't migrate live: {bar}",
            "give --allow-pause to migrate it while it stands still, or restart it first",
        )
    return click.confirm("Migrate it now?", err=True)


def _rests(session: Session, target: Target) -> bool:
    """Whether it is stopped, so that it doesn't start on the target."""
    return bool(dig(session.client.get(target.kind.name, target.name), "status.phase") == Phase.STOPPED)


def _read_mode(kind: str, *, live: bool, cold: bool) -> str:
    if live and cold:
        raise click.UsageError("give either --live or --cold, not both")
    return "cold" if cold else "live" if live else MIGRATION_MODES[kind][0]


def _check_cluster(target: Target, given: dict[str, Any]) -> None:
    if not given["to_cluster"]:
        raise usage("--to-cluster is empty", "name a linked cluster: weft cluster list shows them")
    if target.kind is not BY_NAME["vm"]:
        raise click.UsageError("--to-cluster: only a VM that runs migrates to another cluster")
    for name in ("to", "storage", "dry_run", "at", "within"):
        if given[name]:
            raise click.UsageError(
                f"give either --to-cluster or --{name.replace('_', '-')}: the other cluster chooses its node, and it begins now"
            )
    if given["mode"] == "cold":
        raise click.UsageError("give either --to-cluster or --cold, not both")


def _check_storage(given: dict[str, Any]) -> None:
    if not given["pool"]:
        raise click.UsageError("--storage needs a target pool: --pool NAME (weft get nodes -o wide shows them)")
    if given["to"] is not None:
        raise click.UsageError("--storage relocates a disk within its node: leave out --to")
    if given["mode"] == "cold":
        raise click.UsageError("give either --storage or --cold, not both")
    given["mode"] = "storage"


def _read_window(session: Session, at: str | None, within: float | None) -> dict[str, float]:
    if at is None:
        if within is not None:
            raise click.UsageError("--within needs --at: give it too")
        return {}
    begin = read_moment(at, session.clock.now(), "--at")
    return {"not_before": begin} | ({"not_after": begin + within} if within is not None else {})


def _watch(session: Session, vm: Target, migration: dict[str, Any], rests: bool) -> int:
    target = Target(BY_NAME["migration"], migration["name"])
    goal = Goal(lambda obj: dig(obj or {}, "status.phase") in ENDED, "over", ends_failed=False, ends_refused=False)
    where = session.in_project
    parting = f"the migration goes on; watch: weft wait {target.what}{where}   undo: weft migration cancel {target.name}{where}"
    wait = Wait(target, goal, migration["uid"], migration.get("project"))
    result = follow_to_end(
        session, wait, MigrationProgress, parting, lambda end: end.error or _find_error(vm, target, end)
    )
    if isinstance(result, int):
        return result
    assert result.obj is not None
    if (dig(result.obj, "spec.mode") == "cold" or _is_saved(vm.kind)) and not rests:
        return _await_start(session, vm, result.obj)
    print_one(session, result.obj, f"migrated  {describe_end(result.obj)}")
    return OK


def _await_start(session: Session, vm: Target, migration: Mapping[str, Any]) -> int:
    """Wait until a guest that was shut down for the migration runs on the target, if its spec's run is run."""
    before = session.client.get(vm.kind.name, vm.name)
    if dig(before, "spec.run") != "run":
        print_one(session, migration, f"migrated  {describe_end(migration)}")
        return OK
    if not session.is_data:
        session.notify(f"migrated  {describe_end(migration)}")
    goal = plan_goal(vm.kind.name, "start")
    assert goal is not None
    wait = Wait(vm, goal, before["uid"], before.get("project"))
    result = follow_to_end(
        session, wait, Progress, f"{vm.what} is starting; watch: weft wait {vm.what}{session.in_project}"
    )
    if isinstance(result, int):
        return result
    print_one(session, migration, f"{vm.what}  Running on {dig(result.obj or {}, 'status.node', '?')}")
    return OK


def _find_error(vm: Target, target: Target, result: Result) -> WeftError | None:
    obj = result.obj or {}
    phase, reason, message = (dig(obj, f"status.{part}", "") for part in ("phase", "reason", "message"))
    if phase == "Succeeded":
        return None
    stays = f"The workload stays on {dig(obj, 'status.source', 'its node')}."
    if phase == "Cancelled":
        return DriverFailed(f"{vm.what} was not migrated: {message}", hint=stays)
    hint = f"{stays}  weft describe {target.what} | weft explain {target.what}"
    if exit_code(WeftError("", reason=reason)) == UNPLACEABLE:
        return Unplaceable(f"{vm.what} can't be migrated: {message}", reason=reason, hint=hint)
    return DriverFailed(f"{vm.what} was not migrated: {message}", reason=reason or None, hint=hint)


def _preview(session: Session, target: Target, given: dict[str, Any]) -> int:
    """The target node, and why; nothing is stored."""
    session.client.get(target.kind.name, target.name)
    asked = {"to": given["to"], "mode": given["mode"]}
    asked |= {"bytes_per_second": given["bandwidth"]} if given["bandwidth"] is not None else {}
    answered = ask(session, "recommendation", {"workload": target.what, "migration": asked})
    status = answered["status"]
    if session.is_data:
        print_object(session, answered)
    elif status["phase"] == "Failed":
        raise Unplaceable(f"{target.what} can't be migrated now: {status['message']}", reason=status["reason"])
    else:
        print(render_recommendation(answered, target.what, find_width(sys.stdout), session.paint))
        if bar := _find_live_bar(session, target, given["mode"]):
            print(f"it pauses until its memory is sent: {bar}")
        elif status.get("forecast"):
            print(f"{given['mode']}: {describe_forecast(status['forecast'])}")
    return OK if status.get("best") else UNPLACEABLE


def _preview_relocation(session: Session, target: Target, given: dict[str, Any]) -> int:
    """Preview which disk would be relocated where, and whether it can be."""
    vm = session.client.get(target.kind.name, target.name)
    owner = session.client.get("volume", given["volume"]) if given["volume"] else vm
    node, now = dig(vm, "status.node"), (dig(owner, "status.pool") or dig(owner, "spec.pool", LOCAL))
    if node is None:
        raise IllegalTransition(f"{target.what} is on no node yet, so it has no disk to relocate")
    pools = {pool["name"]: pool for pool in dig(session.client.get("node", node), "report.pools") or []}
    there, what = pools.get(given["pool"]), f"volume {given['volume']}" if given["volume"] else "root disk"
    if there is None or not there["id"]:
        offered = ", ".join(name for name, pool in pools.items() if pool["id"])
        raise IllegalTransition(
            f"{node} has no usable storage pool {given['pool']}", hint=f"usable pools of {node}: {offered}"
        )
    if now == given["pool"] or there["id"] == pools.get(now, {}).get("id"):
        raise IllegalTransition(f"{what} of {target.what} is already in pool {given['pool']}")
    answer = {"vm": target.name, "node": node, "disk": given["volume"] or "root", "from": now, "to": given["pool"]}
    if session.is_data:
        print_object(session, {**answer, "free_bytes": there["free"]})
    else:
        free = f"{format_bytes(there['free'])} of {format_bytes(there['total'])} free"
        print(f"{target.what}  {what}: pool {now} → {given['pool']} on {node}, {free}")
    return OK
