"""`weft vm metrics web --time-range 1h --granularity 1s`: what a workload used over time, as its node measured it."""

from __future__ import annotations

import json
import sys
import textwrap
from datetime import UTC, datetime
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import INTERRUPTED
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target
from weft.cli.metrics.plot import draw_plot
from weft.cli.metrics.samples import COLUMNS, Answer, Watched, draw_rows, list_measured
from weft.cli.output.formats import print_data, print_line, print_rows, takes_pages
from weft.cli.output.table import make_columns
from weft.cli.output.terminal import CLEAR, clean, find_width, is_terminal
from weft.cli.session import Session
from weft.cli.stream.client import exchange
from weft.cli.stream.watch import watch_documents
from weft.kinds.record import Kind
from weft.objects.quantity import format_age

DEFAULT_RANGE, WIDTH, HEIGHT = "5m", 80, 8


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(
            ["--time-range"], type=options.Duration(), metavar="TIME", default=DEFAULT_RANGE, help="How long. [5m]"
        ),
        click.Option(
            ["--until"], type=options.Duration(), metavar="TIME", default=0.0, help="End so long ago, like 2h. [now]"
        ),
        click.Option(
            ["--granularity"],
            type=options.Duration(least=0.2),
            metavar="TIME",
            default=0.0,
            help="Step between points, at least 0.2s. [finest resolution kept for the range]",
        ),
        click.Option(
            ["--series"], metavar="NAME", multiple=True, help="Only this series, or those that begin so: cpu, nic0."
        ),
        click.Option(
            ["--extremes"], is_flag=True, help="As data: also the least and the greatest value of each point."
        ),
        click.Option(["--plot"], is_flag=True, help="Draw a plot of each series."),
        click.Option(["-w", "--watch"], is_flag=True, help="Show what is measured, as it comes, until Ctrl-C."),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    time_range: float,
    until: float,
    granularity: float,
    series: tuple[str, ...],
    extremes: bool,
    plot: bool,
    watch: bool,
) -> int:
    if not time_range:
        raise click.UsageError("--time-range: 0s has no samples; give a longer time, like 30s")
    target = find_one(session, kind, words, (), "give one object")
    asked = {"time_range": time_range, "until": until, "granularity": granularity, "series": series}
    if watch:
        return _watch(session, target, {**asked, "extremes": extremes}, plot=plot)
    answer, _ = exchange(session, target.kind.name, target.name, "metrics", {**asked, "extremes": extremes})
    if takes_pages(session):  # as it came: a line for each series
        print(answer.decode())
        return 0
    found: Answer = json.loads(answer)
    if session.is_document:
        print_data(session, found)
    elif session.is_data:
        _print_points(session, found["series"], extremes)
    else:
        _show(session, target.what, found, plot=plot, all_=bool(series))
    return 0


def _watch(session: Session, target: Target, asked: dict[str, Any], *, plot: bool) -> int:
    known = Watched(asked["time_range"])

    def show(answer: Answer) -> None:
        if session.is_document:
            print_line(session, answer)
            return
        found = known.add(answer)
        print(CLEAR if is_terminal(sys.stdout) else "", end="")
        _show(session, target.what, found, plot=plot, all_=bool(asked["series"]))
        sys.stdout.flush()

    if session.is_data and not session.is_document:
        raise click.UsageError("--watch shows a table, or documents: -o json")
    if asked["until"]:
        raise click.UsageError("--watch shows what is measured now; leave out --until")
    try:
        return watch_documents(session, target, "metrics", asked, show)
    except KeyboardInterrupt:
        return INTERRUPTED  # enough was seen


def _print_points(session: Session, series: list[dict[str, Any]], extremes: bool) -> None:
    """A row for each time, a column for each series."""
    titles, columns = ["time"], [[_moment(at) for at, _ in series[0]["points"]] if series else []]
    for one in series:
        titles.append(one["name"])
        columns.append([_cell(value) for _, value in one["points"]])
        for part in ("min", "max") if extremes else ():
            titles.append(f"{one['name']}.{part}")
            columns.append([_cell(value) for value in one[part]])
    print_rows(session, make_columns(*titles), [list(row) for row in zip(*columns, strict=True)])


def _show(session: Session, what: str, found: Answer, *, plot: bool, all_: bool) -> None:
    measured, idle = list_measured(found["series"])
    if all_ or not measured:
        named = set(idle)
        measured, idle = measured + [one for one in found["series"] if one["name"] in named], []
    if not measured:
        session.notify(f"{what}: nothing was measured in that time")
        return
    width = find_width(sys.stdout) or WIDTH
    span = found["until"] - found["from"]
    print(f"{what}, {format_age(span)} until {_local(found['until'])}, one point every {found['granularity']:g} s")
    if plot:
        for one in measured:
            times, heights = zip(*one["points"], strict=True)
            print(f"\n{clean(one['name'])} ({clean(one['unit'])})")
            print("\n".join(draw_plot(times, heights, one["unit"], min(width, WIDTH), HEIGHT)))
    else:
        print_rows(session, COLUMNS, draw_rows(measured, found["granularity"], min(width, WIDTH)))
    if idle:
        print(textwrap.fill(clean("all 0: " + ", ".join(idle)), min(width, WIDTH), subsequent_indent="       "))


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _local(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")
