"""`weft cluster replicate vm/shop --destination west --rpo 60s`: a VM has a replica at a linked cluster from now on. There,
`weft replica promote shop` makes the VM from its newest point."""

from __future__ import annotations

import math
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.exit_codes import OK
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one, refuse_unlinked
from weft.cli.command.target import Target, find_noun, usage
from weft.cli.session import Session
from weft.cli.wait.finish import Done, finish, finish_one
from weft.kinds.fields.cells import dig, note
from weft.kinds.fields.subject import split_subject
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.kinds.replica import LEAST_RPO, MOST_RPO, REPLICA
from weft.kinds.replication import REPLICATION
from weft.objects.errors import InvalidInput, NotFound
from weft.objects.identity import check_name
from weft.objects.quantity import format_duration


def replicate_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="[vm/NAME]..."),
        click.Option(
            ["--destination"],
            metavar="CLUSTER",
            required=True,
            shell_complete=complete_name("cluster"),
            help="The linked cluster that the replicas are at.",
        ),
        click.Option(["--rpo"], type=options.Duration(unit=True), help="How old the newest point there may be. [60s]"),
        click.Option(
            ["--replication-mode"],
            type=click.Choice(("async",)),
            default="async",
            help="async: points are sent at intervals, and the VM never waits for the link.",
        ),
        click.Option(["--keep"], type=click.IntRange(1, 20), help="Number of points that are kept there. [3]"),
        click.Option(
            ["--project-there"], metavar="PROJECT", help="The project there. [as the link says, else the same name]"
        ),
        click.Option(["--pool"], metavar="POOL", help="The storage pool there. [local]"),
        click.Option(
            ["--automatic"],
            is_flag=True,
            help="The replica takes over once the link's witness grants it; cut off from both, nodes here end the VM before that.",
        ),
        *options.waits(),
        options.output(),
    ]
    words = (
        "Replicate VMs to a linked cluster: all their disks first, then at intervals what changed, so that the newest point there "
        "is never older than the RPO. Without a name: all VMs of the project that there are now, except those of deployments."
    )
    return options.build(verb, words, _replicate, kind, params, in_project=True)


def _replicate(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    destination: str,
    rpo: float | None,
    replication_mode: str,
    keep: int | None,
    project_there: str | None,
    pool: str | None,
    automatic: bool,
) -> int:
    if rpo is not None and not LEAST_RPO <= rpo <= MOST_RPO:
        raise usage(
            f"--rpo: {format_duration(rpo)} is out of range",
            f"give {format_duration(LEAST_RPO)} to {format_duration(MOST_RPO)}",
        )
    names = [_read_vm(word) for word in words]
    if not names:
        there = session.client.list("vm", project=session.project or None).items
        names = [str(vm["name"]) for vm in there if not _explain_left_out(vm)]
        for vm in there:
            if why := _explain_left_out(vm):
                session.notify(f"vm/{vm['name']}  left out: {why}")
    if not names:
        raise usage(
            "the project has no VMs of their own", "name one: weft cluster replicate vm/NAME --destination CLUSTER"
        )
    given = {"rpo": rpo, "keep": keep, "project_there": project_there, "pool": pool, "automatic": automatic or None}
    spec = {"cluster": destination, "mode": replication_mode, **{k: v for k, v in given.items() if v is not None}}
    made = [_put(session, name, {"of": f"vm/{name}", **spec}) for name in names]
    return max((_finish(session, one) for one in made), default=OK)


def _explain_left_out(vm: dict[str, Any]) -> str:
    """Why it isn't replicated with all VMs of the project; "": it is."""
    if owner := vm.get("owner"):
        return f"it belongs to {owner['kind']}/{owner['name']}, which would start it again beside its copy"
    if where := dig(vm, "marks.departed"):
        return f"it migrated to {where}: replicate it from there"
    return ""


def _finish(session: Session, made: dict[str, Any]) -> int:
    """Wait until it replicates, unless its VM has not run yet: nobody knows when that will be."""
    target, (_, name) = Target(REPLICATION, made["name"]), split_subject(str(made["spec"]["of"]))
    vm = session.client.get("vm", name, project=made.get("project"))
    if dig(vm, "status.incarnation"):
        return finish_one(session, target, made, "create")
    phase, why = dig(vm, "status.phase") or "Pending", note(vm)
    says = f"{phase}: {why}" if why else str(phase)
    line = f"waits for vm/{name}, which has not run yet ({says}); its first point is taken once it runs"
    return finish(session, [Done(target, made, "create", line)], [])


def _read_vm(word: str) -> str:
    """The name. Raises UsageError for another kind."""
    kind, slash, name = word.rpartition("/")
    if slash and find_noun(kind) is not BY_NAME["vm"]:
        raise usage(
            f"{word}: only VMs are replicated", "name one: weft cluster replicate vm/NAME --destination CLUSTER"
        )
    return check_name(name)


def _put(session: Session, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Create the replication, or change what ``spec`` names of the one that is there: the rest of it stays."""
    project = session.project or None
    try:
        return session.client.patch(REPLICATION.name, name, {"spec": spec}, project=project)
    except NotFound:
        manifest = {"kind": REPLICATION.name, "name": name, "spec": spec}
        return session.client.put({**manifest, **({"project": project} if project else {})})
    except InvalidInput as refusal:
        if refusal.field not in ("spec.cluster", "spec.pool", "spec.project_there"):
            raise
        raise _explain_kept(session, name, spec, refusal.field) from None


def _explain_kept(session: Session, name: str, spec: dict[str, Any], field: str) -> InvalidInput:
    """The refusal of a ``field`` that stays as it was when the replication was made. Raises NotFound for a cluster that isn't
    linked."""
    if field == "spec.cluster":
        refuse_unlinked(session, spec["cluster"], field)
    there = session.client.get(REPLICATION.name, name, project=session.project or None)
    west, kept = dig(there, "spec.cluster"), dig(there, field) or "as it is"
    where = session.in_project
    if field == "spec.cluster":
        message = f"vm/{name} is replicated to {west} already"
        hint = f"for a second replica: weft replication create NAME --of vm/{name} --cluster {spec['cluster']}{where}"
    else:
        message = f"vm/{name} is replicated to {west} already, and {field} stays {kept}"
        freed = f", at {west} weft replica delete {_name_replica(there)}" if _may_be_made(there) else ""
        hint = f"to send all of it again: weft replication delete {name}{where}{freed}, then this again"
    return InvalidInput(message, field=field, hint=hint)


def _name_replica(replication: dict[str, Any]) -> str:
    """The replica's name as it is typed at the other cluster."""
    project = dig(replication, "spec.project_there")
    return str(dig(replication, "spec.replica") or replication["name"]) + (f" -p {project}" if project else "")


def _may_be_made(replication: dict[str, Any]) -> bool:
    """Whether the other cluster may have its replica: it has points, or nothing that it was refused for."""
    refused = dig(replication, "status.reason") in ("notFound", "forbidden")
    return bool(dig(replication, "status.point") or (dig(replication, "status.attempt") and not refused))


def promote_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=("replica",)),
        click.Option(["--new-name"], metavar="NAME", help="The name of the VM here. [as at its source]"),
        click.Option(["--point"], type=click.IntRange(1), help="The number of the point. [the newest]"),
        click.Option(
            ["--force"],
            is_flag=True,
            help="Do it even if the cluster that the VM runs at answers, or its witness gets word from it. If the VM runs there "
            "still, two of it write, and what it writes after the point is lost.",
        ),
        *options.waits(),
        options.output(),
    ]
    words = (
        "Create the VM from the newest point of its replica, and take no more points. What the VM wrote after that point is not in "
        "it. If the VM at the source still runs, weft replication hand-over stops it first, and nothing is lost. A replica that "
        "continues a VM which is stopped here has that VM go back to the point, and makes no other one."
    )
    return options.build(verb, words, _promote, kind, params)


def _promote(
    session: Session, kind: Kind | None, words: tuple[str, ...], new_name: str | None, point: int | None, force: bool
) -> int:
    target = find_one(session, kind, words, ("replica",), "give one replica")
    there = session.client.get(REPLICA.name, target.name)
    points = [one for one in dig(there, "status.points") or [] if point in (None, one["number"])]
    given = {"new_name": new_name, "point": point, "force": force or None}
    input_ = {word: value for word, value in given.items() if value is not None}
    made = session.client.verb(REPLICA.name, target.name, "promote", input_)
    if points:
        session.notify(_describe(session, points[-1]))
    if made["kind"] == REPLICA.name:  # the VM that it continues is here, and goes back to the point
        code = finish_one(session, target, made, "promote")
        vm = session.client.get("vm", dig(made, "status.vm"))
        return code or finish_one(session, Target(BY_NAME["vm"], vm["name"]), vm, "start")
    return finish_one(session, Target(BY_NAME["vm"], made["name"]), made, "create")


def _describe(session: Session, point: dict[str, Any]) -> str:
    if point.get("final"):
        return f"from point {point['number']}, the last one of the VM that was stopped there: nothing is lost"
    age = max(0.0, session.clock.now() - point.get("received_at", 0.0)) + point.get("age_seconds", 0.0)
    return f"from point {point['number']}, which is {format_duration(math.ceil(age * 10) / 10)} old: what was written since is lost"
