"""`weft lease list`, `describe KIND/NAME`, `extend KIND/NAME --by 1h`, `cancel KIND/NAME`: leases, as a view of their workloads."""

from __future__ import annotations

import uuid
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_target
from weft.cli.command.grammar import PLACED, Entry
from weft.cli.command.lookup import find_targets
from weft.cli.command.target import Target
from weft.cli.output.formats import print_items
from weft.cli.output.local_time import localize, render_time
from weft.cli.output.table import make_columns
from weft.cli.output.terminal import clean
from weft.cli.session import Session
from weft.cli.wait.again import read_again
from weft.cli.wait.batch import each
from weft.kinds.fields.cells import dig
from weft.kinds.fields.lease import LEASE_CONFLICT
from weft.kinds.parts.goal import find_condition, is_settled
from weft.kinds.record import Kind
from weft.objects.errors import NotFound, Unavailable, Unplaceable
from weft.objects.quantity import format_duration

_ACTS = ("list", "describe", "extend", "cancel")
_OVER = ("Done", "Rejected", "Cancelled")
_TITLES = ("WORKLOAD!", "MODE", "STATE!", "START!", "END!", "NODE", "PREEMPTIBLE", "NOTE~")
ANSWER_SECONDS = 15.0  # in which the scheduler decides on an extension
RESTART_SECONDS = 60.0  # of a server that is away meanwhile
POLL_SECONDS = 0.1


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["act"], type=click.Choice(_ACTS), default="list", metavar=f"[{'|'.join(_ACTS)}]"),
        click.Argument(["words"], nargs=-1, metavar="[KIND/NAME...]", shell_complete=complete_target),
        click.Option(
            ["--by"], type=options.Duration(unit=True), metavar="DURATION", help="How much longer, for extend."
        ),
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
        _describe_all(session, [_get(session, target) for target in targets])
        return None

    def change(target: Target) -> None:
        found, name = target
        key, given = str(uuid.uuid4()), {} if by is None else {"by": by}
        obj = read_again(
            session,
            lambda: session.client.verb(found.name, name, f"{act}-lease", given, idempotency_key=key),
            session.clock.elapsed() + RESTART_SECONDS,
        )
        if act == "extend":
            obj = _wait_for_end(session, target, obj)
        done = _render_extended(session, obj) if act == "extend" else _render_cancelled(obj)
        print(f"{found.name}/{name}  {done}", flush=True)

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
        "reservation": obj["spec"].get("reservation"),
        "spec": {name: asked.get(name) for name in _FIELDS},
        "status": {**lease, "node": status.get("node"), "phase": status.get("phase")},
    }


_FIELDS = ("mode", "start", "duration", "deadline_at", "preemptible", "priority", "priority_class")


def _print(session: Session, found: list[dict[str, Any]]) -> None:
    named = session.all_projects  # a workload's name is only its project's
    rows = [[*([one["project"] or ""] if named else []), *_row(one)] for one in found]
    columns = make_columns(*(("PROJECT!",) if named else ()), *_TITLES)
    print_items(session, found, [one["workload"] for one in found], (columns, rows), "no leases")


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


def _describe_all(session: Session, found: list[dict[str, Any]]) -> None:
    if session.is_data:
        _print(session, found)
        return
    print("\n\n".join(describe_lease(one, session.clock.now()) for one in found))


def describe_lease(one: dict[str, Any], now: float) -> str:
    """A line for each thing to know of a lease."""
    spec, status = one["spec"], one["status"]
    priority = spec["priority"] or 0
    start, end = status["start"] or spec["start"], status["end"]
    lines = {
        "workload": one["workload"],
        "project": one["project"] or "",
        "reservation": one["reservation"] or "",
        "mode": spec["mode"] or "",
        "state": status["state"],
        "start": _render_from_now(start, now),
        "end": _render_from_now(end, now) if end or status["state"] in ("Suspended", *_OVER) else "when it is deleted",
        "duration": format_duration(spec["duration"]) if spec["duration"] else "",
        "deadline": _render_from_now(spec["deadline_at"], now),
        "priority": f"{priority} ({spec['priority_class']})" if spec["priority_class"] else str(priority),
        "preemptible": "yes" if spec["preemptible"] else "no",
        "node": status["node"] or "",
        "phase": status["phase"] or "",
        "note": localize(clean(status.get("message") or "")),
    }
    return "\n".join(f"{word:<12} {text}" for word, text in lines.items() if text)


def _render_from_now(moment: float | None, now: float) -> str:
    """``2026-12-24 22:00 CET, in 2h``"""
    if not moment:
        return ""
    away = format_duration(abs(moment - now))
    return f"{render_time(moment)}, {f'in {away}' if moment > now else f'{away} ago'}"


def _render_extended(session: Session, obj: Any) -> str:
    end = dig(obj, "status.lease.end")
    if end is None:  # it hasn't begun, or is suspended
        return f"lease extended: it lasts {format_duration(obj['spec']['lease']['duration'])}"
    return f"lease extended: ends {_render_from_now(end, session.clock.now())}"


def _render_cancelled(obj: Any) -> str:
    if dig(obj, "status.lease.state") not in ("Preparing", "Active"):
        return "lease cancelled"
    return f"lease cancelled: it shuts down within {format_duration(obj['spec']['grace'])}, and keeps its disks"


def _get(session: Session, target: Target) -> dict[str, Any]:
    obj = session.client.get(target.kind.name, target.name)
    if not (dig(obj, "spec.lease") or dig(obj, "spec.reservation")):
        raise NotFound(f"{target.kind.name}/{target.name} has no lease", hint="weft lease list")
    return read_lease(obj)


def _wait_for_end(session: Session, target: Target, obj: Any) -> Any:
    """The workload once the scheduler has answered. Raises Unplaceable (leaseConflict) if others have the capacity then."""
    wanted, left = obj["spec"]["lease"]["duration"], ANSWER_SECONDS
    while True:
        lease, placed = dig(obj, "status.lease") or {}, find_condition(obj, "Placed")
        if lease.get("start") is None or (lease.get("end") or 0.0) - lease["start"] >= wanted - 0.01:
            return obj
        if placed is not None and placed["reason"] == LEASE_CONFLICT and is_settled(obj):
            raise Unplaceable(
                f"{target.kind.name}/{target.name}: {placed['message']}",
                reason=LEASE_CONFLICT,
                hint="it is extended when that capacity becomes free; weft calendar shows who has it",
            )
        if left <= 0 or not session.rests(POLL_SECONDS):
            raise Unavailable("the scheduler hasn't answered yet", hint="weft lease list shows the end that it has")
        left -= POLL_SECONDS
        until = session.clock.elapsed() + RESTART_SECONDS
        obj = read_again(session, lambda: session.client.get(target.kind.name, target.name), until)
