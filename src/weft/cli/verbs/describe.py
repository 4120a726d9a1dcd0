"""`weft vm describe web`: an object in full and its latest events."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.exit_codes import partial_code
from weft.cli.command.grammar import PLACED, Entry
from weft.cli.command.lookup import resolve
from weft.cli.command.target import Target
from weft.cli.deployment.description import leave_out_revisions, show_revisions
from weft.cli.job.description import leave_out_defaults
from weft.cli.migration.description import SHOWN as SHOWN_OF_MIGRATION
from weft.cli.migration.description import describe_migration
from weft.cli.migration.plot import draw_migration
from weft.cli.node.scheduling import SHOWN, describe_scheduling
from weft.cli.node.usage import RESOURCES, describe_instances, describe_used
from weft.cli.output.description import describe_object, name_images
from weft.cli.output.formats import age_of, print_object
from weft.cli.output.table import Column, draw_table
from weft.cli.output.terminal import clean, find_width
from weft.cli.recovery.report import describe_runs, leave_out_runs
from weft.cli.session import Session
from weft.cli.snapshot.description import describe_use, shorten_snapshot
from weft.cli.stream.whole_file import refuse_existing
from weft.cli.verbs.events import draw_events, read_own
from weft.cli.wait.batch import each
from weft.client.usage import fetch_usage
from weft.kinds.allocation import AllocationReport, AllocationSpec, has_ended_for_good
from weft.kinds.fields.cells import dig
from weft.kinds.parts.node.columns import read_status
from weft.kinds.parts.workload import OUT_OF_REACH
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.objects.errors import Forbidden, InvalidInput, NotFound, WeftError

_EVENTS = 10
_OUTLOOKS = 50
_Shown = tuple[Callable[[Session, dict[str, Any]], dict[str, Any]], Sequence[Callable[[Session, dict[str, Any]], str]]]


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [options.targets(kind), options.output()]
    return options.build(verb, "Show an object in full, with its latest events.", _run, kind, params)


def migration_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    made = command(verb, entry, kind)
    help_ = "Also draw the migration's progress, as an SVG file."
    made.params[1:1] = [click.Option(["--plot"], metavar="FILE", help=help_), options.replace()]
    return made


def _run(
    session: Session, kind: Kind | None, words: tuple[str, ...], plot: str | None = None, force: bool = False
) -> int:
    targets = resolve(session, kind, words)
    if plot is not None and len(targets) != 1:
        raise click.UsageError("--plot draws one migration: give one name")
    if plot is not None:
        refuse_existing(Path(plot), "--plot", force=force)

    def describe(target: Target) -> None:
        obj = session.client.get(target.kind.name, target.name)
        if plot is not None:
            _plot(session, obj, target, Path(plot))
        if session.is_data:
            print_object(session, obj)
            return
        if target != targets[0]:
            print()
        width = find_width(sys.stdout)
        fields, sections = _SHOWN.get(target.kind.name, _PLAIN if target.kind.workload is None else _PLACED)
        kept = fields(session, obj)
        print(describe_object(kept, target.kind, lambda since: age_of(session, since), width, session.paint))
        for section in sections:
            try:
                report = section(session, obj)
            except Forbidden as problem:  # not all that belongs to an object takes the same permission
                report = f"not shown: {problem.message}"
            if report:
                print(f"\n{report}")
        print(_describe_events(session, target, obj["uid"], width), end="")

    return partial_code(each(session, targets, describe))


def _leave_out_shown(session: Session, node: dict[str, Any]) -> dict[str, Any]:
    """Leave out, of a node's report, what the section scheduling shows; images stand there by their names."""
    report = {key: value for key, value in (node.get("report") or {}).items() if key not in SHOWN}
    if report.get("images"):
        with contextlib.suppress(Forbidden):  # their names take a role in all projects
            report["images"] = name_images(report["images"], session.client.list("image", all_projects=True).items)
    status, state = node.get("status") or {}, read_status(node)
    phase = status.get("phase", state)
    return {**node, "report": report, "status": {**status, "phase": phase if state == phase else f"{phase} ({state})"}}


def _plot(session: Session, migration: dict[str, Any], target: Target, path: Path) -> None:
    drawn = draw_migration(migration)
    if not drawn:
        raise NotFound(
            f"{target.what} can't be drawn: it was measured fewer than two times",
            hint="migrations that take a few seconds can be drawn",
        )
    session.would(f"write {path}")
    try:
        path.write_text(drawn)
    except OSError as problem:
        raise InvalidInput(f"--plot: {path} can't be written: {problem.strerror}", field="--plot") from problem


def _leave_out_progress(_: Session, migration: dict[str, Any]) -> dict[str, Any]:
    """Leave out, of a migration's status, what ``describe_migration`` shows."""
    status = {key: value for key, value in (migration.get("status") or {}).items() if key not in SHOWN_OF_MIGRATION}
    return {**migration, "status": status}


def _describe_place(session: Session, node: dict[str, Any]) -> str:
    """Describe what placement sees of a node."""
    allocations = [
        one for one in session.client.list("allocation", query={"node": node["uid"]}).items if not _has_ended(one)
    ]
    names = {other["uid"]: other["name"] for other in session.client.list("node").items}
    report = next((each for each in fetch_usage(session.client.http) if each["node"] == node["uid"]), None)
    used = report["use"] if report else None
    lines = describe_scheduling(node, allocations, names, used)
    if instances := describe_instances(report.get("instances") if report else None):
        lines.append(("instances", f"of {instances}"))
    width = max(len(word) for word, _ in lines) + 2
    shown = [f"  {word:<{width}}{text.rstrip()}" for word, text in lines]
    return "\n".join([session.paint.color("scheduling", "bold"), *map(clean, shown)])


def _has_ended(allocation: dict[str, Any]) -> bool:
    spec, report = (allocation.get(part) or {} for part in ("spec", "report"))
    return has_ended_for_good(msgspec.convert(spec, AllocationSpec), msgspec.convert(report, AllocationReport))


def _describe_use(session: Session, vm: dict[str, Any]) -> str:
    """Describe what a VM really uses, if its node reports that. It takes a role in all projects."""
    try:
        usage = fetch_usage(session.client.http, guests=True)
    except Forbidden:
        return ""
    guests = [each["guests"] for each in usage if vm["uid"] in each["guests"]]
    has = {name: dig(vm, f"status.resources.{name}") or dig(vm, f"spec.{name}", 0) for name in RESOURCES}
    return f"used  {describe_used(guests[0][vm['uid']], has)}" if guests else ""


def _describe_guests(session: Session, node: dict[str, Any]) -> str:
    """Describe which workloads are on a node, and what becomes of each if that is silent."""
    report, outlooks = list[str](), list[list[str]]()
    for kind in map(BY_NAME.__getitem__, PLACED):
        listing = session.client.list(kind.name, all_projects=True, fields=f"status.node={node['name']}")
        names = [item["name"] for item in listing.items if not (dig(item, "spec.once") and dig(item, "status.ended"))]
        report += [f"{kind.plural}  {', '.join(names)}"] if names else []
        silent = (item for item in listing.items if dig(item, "status.reason") in OUT_OF_REACH)
        outlooks += [
            [f"{kind.name}/{item['name']}", dig(item, "status.message", "").partition("; ")[2]] for item in silent
        ]
    if outlooks:
        columns = [Column("GUEST"), Column("OUTLOOK", flexible=True)]
        rows = outlooks[:_OUTLOOKS]
        report += ["", draw_table(columns, rows, find_width(sys.stdout), session.paint)]
        report += [f"and {len(outlooks) - _OUTLOOKS} more"] if len(outlooks) > _OUTLOOKS else []
    return "\n".join(report)


def _describe_events(session: Session, target: Target, uid: str, width: int | None) -> str:
    try:
        records = read_own(session, target, uid)[-_EVENTS:]
    except WeftError as problem:
        return f"\nevents can't be read: {problem.message}\n"
    return f"\n{draw_events(session, records, width)}\n" if records else ""


# What is shown of an object: its fields, less those that a section tells, and these sections.
_PLAIN: _Shown = (lambda _, obj: obj, ())
_PLACED: _Shown = (lambda _, obj: obj, (_describe_use,))
_SHOWN: dict[str, _Shown] = {
    "node": (_leave_out_shown, (_describe_place, _describe_guests)),
    "migration": (_leave_out_progress, (lambda session, obj: describe_migration(obj, session.paint),)),
    "snapshot": (lambda _, obj: shorten_snapshot(obj), (lambda _, obj: describe_use(obj),)),
    "backup": (lambda _, obj: shorten_snapshot(obj), ()),
    "deployment": (
        lambda _, obj: leave_out_revisions(obj),
        (lambda session, obj: show_revisions(obj, find_width(sys.stdout), session.paint),),
    ),
    "job": (lambda _, obj: leave_out_defaults(obj), ()),
    "recoveryplan": (
        lambda _, obj: leave_out_runs(obj),
        (lambda session, obj: describe_runs(obj, session.clock.now()),),
    ),
}
