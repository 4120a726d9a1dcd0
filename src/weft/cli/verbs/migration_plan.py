"""`weft migration plan vm/web --to n2 --at 02:00`, or `--window auto`: a migration for later, with reserved capacity; and
`weft migration plans`: those that are planned or proposed, and what came of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.exit_codes import OK, UNPLACEABLE
from weft.cli.command.grammar import Entry, able
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target, usage
from weft.cli.output.formats import print_data, print_items
from weft.cli.output.local_time import localize, read_moment
from weft.cli.output.table import make_columns
from weft.cli.placement.question import ask
from weft.cli.session import Session
from weft.kinds.allocation import LOCAL
from weft.kinds.fields.cells import dig
from weft.kinds.migration import describe_window, name_plan_phase
from weft.kinds.parts.migration.verb import MIGRATION_MODES
from weft.kinds.record import Kind, Object
from weft.objects.errors import Forbidden, Unplaceable
from weft.objects.quantity import format_bytes, format_duration

ANSWER_SECONDS = 15.0  # until its capacity is reserved, or refused
BYTES_PER_SECOND = 100_000_000  # of a path that nothing is known of
_TITLES = ("NAME!", "WORKLOAD!", "STATUS!", "NODES", "WINDOW", "QUALITY>", "COST", "WHY~")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="KIND/NAME"),
        click.Option(
            ["--to"],
            metavar="NODE",
            help="The target node; without it the scheduler chooses.",
            shell_complete=complete_name("node"),
        ),
        click.Option(["--at"], metavar="TIME", help="Earliest start: 22:00, 2026-12-24T22:00, or 2h from now."),
        click.Option(["--within"], type=options.Duration(unit=True), help="With --at: begin within this time. [30m]"),
        click.Option(
            ["--window"], type=click.Choice(["auto"]), help="Choose when within a day the workload does least."
        ),
        click.Option(["--cold"], is_flag=True, help="Shut the guest down for the migration."),
        click.Option(["--reason"], metavar="TEXT", help="Reason for the migration, for people."),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _plan, kind, params)


def _plan(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    to: str | None,
    at: str | None,
    within: float | None,
    window: str | None,
    cold: bool,
    reason: str | None,
) -> int:
    target = find_one(session, None, words, able("migrate"), "give one workload, like vm/web")
    if (at is None) == (window is None):
        raise usage("give a time: --at TIME, or --window auto", f"weft migration plan {target.what} --window auto")
    if within is not None and at is None:
        raise usage("--within goes with --at", f"weft migration plan {target.what} --at 02:00 --within 1h")
    if within is not None and within < 1:
        raise usage(
            "--within 0s leaves no time to begin in", f"weft migration plan {target.what} --at {at} --within 30m"
        )
    mode = "cold" if cold else MIGRATION_MODES[target.kind.name][0]
    body: dict[str, Any] = {"mode": mode, **({"to": to} if to else {}), **({"reason": reason} if reason else {})}
    if at is not None:
        begin = read_moment(at, session.clock.now(), "--at")
        body |= {"not_before": begin, "not_after": begin + (1800.0 if within is None else within)}
    else:
        body |= _choose_window(session, target, to, mode)
    made = session.client.verb(target.kind.name, target.name, "migrate", body)
    migration = session.client.wait(
        "migration", made["name"], _is_decided, project=made.get("project"), timeout_seconds=ANSWER_SECONDS
    )
    migration = migration or made
    answer = describe_plan(migration, session.client.get(target.kind.name, target.name))
    if session.is_document:
        print_data(session, answer)
    else:
        where = session.in_project
        print(localize(f"migration/{answer['name']}  {answer['status']}: {describe_window(answer['window'])}"))
        print(localize(f"  quality  {answer['window']['quality']:g}: {answer['window']['reason']}"))
        print(f"  cost     {describe_cost(answer['estimated_cost'])}")
        if answer["status"] != "Reserved":
            print(localize(f"  note     {dig(migration, 'status.message', '')}"))
        session.notify(f"undo: weft migration cancel {answer['name']}{where}")
    return UNPLACEABLE if answer["status"] in ("Failed", "Waiting") else OK


def _choose_window(session: Session, target: Target, to: str | None, mode: str) -> dict[str, Any]:
    asked = {"mode": mode, "window": True, **({"to": to} if to else {})}
    status = ask(session, "recommendation", {"workload": target.what, "migration": asked})["status"]
    window = status.get("window")
    if status["phase"] == "Failed" or window is None:
        raise Unplaceable(
            f"{target.what} can't migrate: {status.get('message', '')}",
            reason=status.get("reason") or None,
            hint=f"weft explain {target.what}",
        )
    return {"not_before": window["start"], "not_after": window["end"], "window": "auto"}


def _is_decided(migration: Object | None) -> bool:
    """Whether it is known if it has capacity."""
    if migration is None:
        return True
    return dig(migration, "status.phase", "Pending") != "Pending" and bool(dig(migration, "status.reason", ""))


def describe_plan(migration: Object, workload: Object | None = None) -> dict[str, Any]:
    """A planned migration for programs; where nothing is known of its path, its cost goes by ``workload``'s memory and disk."""
    spec, forecast = migration["spec"], dig(migration, "status.forecast") or {}
    window = dig(migration, "status.window") or {"start": spec.get("not_before"), "end": spec.get("not_after")}
    size, seconds = forecast.get("bytes"), forecast.get("duration_seconds")
    basis = forecast.get("basis", "")
    if size is None and workload is not None:
        local = dig(workload, "spec.disk", 0) or 0 if dig(workload, "spec.pool", LOCAL) == LOCAL else 0
        size = int((dig(workload, "spec.memory", 0) or 0) + local)
        basis = f"its memory and local disk at {format_bytes(BYTES_PER_SECOND)}/s; {basis}".rstrip("; ")
    if seconds is None and size is not None:
        seconds = round(size / BYTES_PER_SECOND, 1)
    cost = {"seconds": seconds, "bytes": size, "downtime_ms": forecast.get("pause_ms")}
    return {
        "name": migration["name"],
        "project": migration.get("project"),
        "workload": spec.get("workload"),
        "from": dig(migration, "status.source", ""),
        "to": dig(migration, "status.target", "") or spec.get("to") or "",
        "status": name_plan_phase(migration),
        "window": {"quality": 0.0, "reason": "", **window},
        "estimated_cost": {**cost, "confidence": forecast.get("confidence", 0.0), "basis": basis},
        "reason": spec.get("reason", ""),
    }


def describe_cost(cost: dict[str, Any]) -> str:
    if cost["bytes"] is None or cost["seconds"] is None:
        return "unknown"
    pause = f", downtime {cost['downtime_ms']} ms" if cost["downtime_ms"] is not None else ""
    return f"about {format_duration(cost['seconds'])}, {format_bytes(cost['bytes'])}{pause}"


def plans_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [options.all_projects(), *options.table(), options.output()]
    return options.build(verb, f"{entry.summary}.", _list, kind, params)


def _list(session: Session, kind: Kind | None) -> None:
    found = session.client.list("migration", all_projects=session.all_projects).items
    planned = [one for one in found if dig(one, "spec.not_before") is not None]
    workloads = _read_workloads(session, planned)
    plans = [describe_plan(one, workloads.get((one.get("project"), dig(one, "spec.workload", "")))) for one in planned]
    rows = [
        [
            *([one["project"] or "–"] if session.all_projects else []),
            one["name"],
            one["workload"],
            one["status"],
            f"{one['from'] or '–'} → {one['to'] or '?'}",
            localize(describe_window(one["window"])) if one["window"]["start"] else "–",
            f"{one['window']['quality']:.2f}",
            describe_cost(one["estimated_cost"]),
            one["reason"] or dig(item, "status.message", ""),
        ]
        for one, item in zip(plans, planned, strict=True)
    ]
    columns = make_columns("PROJECT", *_TITLES) if session.all_projects else make_columns(*_TITLES)
    print_items(session, plans, [one["name"] for one in plans], (columns, rows), "no migration is planned")
    proposed = next((one["name"] for one in plans if one["status"] == "Proposed"), None)
    if proposed is not None and not session.is_data:
        session.notify(f"weft migration accept {proposed}   carries a proposal out; weft migration cancel refuses it")


def _read_workloads(session: Session, planned: Sequence[Object]) -> dict[tuple[str | None, str], Object]:
    """Those whose migration has no forecast of its bytes: its cost goes by their size. What one may not see is left out."""
    unknown = [one for one in planned if dig(one, "status.forecast.bytes") is None]
    found = dict[tuple[str | None, str], Object]()
    for kind in sorted({dig(one, "spec.workload", "").partition("/")[0] for one in unknown}):
        with contextlib.suppress(Forbidden):
            for one in session.client.list(kind, all_projects=session.all_projects).items:
                found[one.get("project"), f"{kind}/{one['name']}"] = one
    return found
