"""`weft lease list`, `describe KIND/NAME`, `extend KIND/NAME --by 1h`, `cancel KIND/NAME`: leases, as a view of their workloads."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_target
from weft.cli.command.grammar import PLACED, Entry
from weft.cli.command.lookup import find_targets
from weft.cli.command.target import Target
from weft.cli.output.formats import print_items
from weft.cli.output.local_time import render_time
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.cli.wait.batch import each
from weft.kinds.fields.cells import dig
from weft.kinds.fields.lease import LEASE_CONFLICT
from weft.kinds.parts.goal import find_condition, is_settled
from weft.kinds.record import Kind
from weft.objects.errors import NotFound, Unavailable, Unplaceable

_ACTS = ("list", "describe", "extend", "cancel")
_OVER = ("Done", "Rejected", "Cancelled")
_COLUMNS = make_columns("WORKLOAD!", "MODE", "STATE!", "START!", "END!", "NODE", "PREEMPTIBLE", "NOTE~")
ANSWER_SECONDS = 15.0  # in which the scheduler decides on an extension
POLL_SECONDS = 0.1


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["act"], type=click.Choice(_ACTS), default="list", metavar=f"[{'|'.join(_ACTS)}]"),
        click.Argument(["words"], nargs=-1, metavar="[KIND/NAME...]", shell_complete=complete_target),
        click.Option(["--by"], type=options.Duration(), metavar="DURATION", help="How much longer, for extend."),
        click.Option(["-a", "--all", "every"], is_flag=True, help="Include leases that are over."),
        options.all_projects(),
        *options.table(),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(
    session: Session, kind: Kind | None, act: str, words: tuple[str, ...], by: float | None, every: bool
) -> int | None:
    if (by is not None) != (act == "extend"):
        raise click.UsageError("extend needs --by, like --by 1h" if by is None else "--by goes with extend")
    if act == "list":
        if words:
            raise click.UsageError("list takes no name: weft lease describe KIND/NAME")
        _print(session, [one for one in list_leases(session) if every or one["status"]["state"] not in _OVER])
        return None
    if not words:
        raise click.UsageError(f"{act} needs a workload: weft lease list shows those with a lease")
    targets = find_targets(session, None, words, PLACED)
    if act == "describe":
        _print(session, [_get(session, target) for target in targets])
        return None

    def change(target: Target) -> None:
        found, name = target
        obj = session.client.verb(found.name, name, f"{act}-lease", {} if by is None else {"by": by})
        if act == "extend":
            _wait_for_end(session, target, obj)
        print(f"{found.name}/{name}  lease {'extended' if act == 'extend' else 'cancelled'}", flush=True)

    return max(each(session, targets, change), default=0)


def list_leases(session: Session) -> list[dict[str, Any]]:
    """The leases of all kinds of workloads, by start."""
    found = [
        read_lease(obj)
        for kind in PLACED
        for obj in session.client.list(kind, all_projects=session.all_projects).items
        if dig(obj, "spec.lease") or dig(obj, "spec.reservation")
    ]
    return sorted(found, key=lambda one: (one["status"]["start"] or one["spec"].get("start") or 0.0, one["workload"]))


def read_lease(obj: Any) -> dict[str, Any]:
    """The lease of a workload as an object of its own."""
    status = obj.get("status") or {}
    asked = obj["spec"].get("lease") or {"mode": "reservation", "priority": 0}  # in a reservation it ends with that
    lease = {"state": "Requested", "start": None, "end": None, **(status.get("lease") or {})}
    return {
        "kind": "lease",
        "name": obj["name"],
        "project": obj.get("project"),
        "workload": f"{obj['kind']}/{obj['name']}",
        "spec": {name: asked.get(name) for name in _FIELDS},
        "status": {**lease, "node": status.get("node"), "phase": status.get("phase")},
    }


_FIELDS = ("mode", "start", "duration", "deadline_at", "preemptible", "priority", "priority_class")


def _print(session: Session, found: list[dict[str, Any]]) -> None:
    rows = [_row(one) for one in found]
    print_items(session, found, [one["workload"] for one in found], (_COLUMNS, rows), "no leases")


def _row(one: dict[str, Any]) -> list[str]:
    spec, status = one["spec"], one["status"]
    start = status["start"] or spec["start"]
    return [
        one["workload"],
        spec["mode"] or "",
        status["state"],
        render_time(start) if start else "",
        render_time(status["end"]) if status["end"] else "",
        status["node"] or "",
        "yes" if spec["preemptible"] else "no",
        status.get("message") or "",
    ]


def _get(session: Session, target: Target) -> dict[str, Any]:
    obj = session.client.get(target.kind.name, target.name)
    if not (dig(obj, "spec.lease") or dig(obj, "spec.reservation")):
        raise NotFound(f"{target.kind.name}/{target.name} has no lease", hint="weft lease list")
    return read_lease(obj)


def _wait_for_end(session: Session, target: Target, obj: Any) -> None:
    """Until the scheduler has answered. Raises Unplaceable (leaseConflict) if others have the capacity then."""
    wanted, left = obj["spec"]["lease"]["duration"], ANSWER_SECONDS
    while True:
        lease, placed = dig(obj, "status.lease") or {}, find_condition(obj, "Placed")
        if lease.get("start") is None or (lease.get("end") or 0.0) - lease["start"] >= wanted - 0.01:
            return
        if placed is not None and placed["reason"] == LEASE_CONFLICT and is_settled(obj):
            raise Unplaceable(
                f"{target.kind.name}/{target.name}: {placed['message']}",
                reason=LEASE_CONFLICT,
                hint="it is extended when that capacity becomes free; weft calendar shows who has it",
            )
        if left <= 0 or not session.rests(POLL_SECONDS):
            raise Unavailable("the scheduler hasn't answered yet", hint="weft lease list shows the end that it has")
        left -= POLL_SECONDS
        obj = session.client.get(target.kind.name, target.name)
