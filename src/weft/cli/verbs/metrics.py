"""`weft vm metrics web --time-range 1h --granularity 1s`: what a guest used over time, as its node measured it."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.metrics.plot import draw_plot, draw_sparkline, format_value
from weft.cli.output.formats import print_data, print_rows, takes_pages
from weft.cli.output.table import GAP, make_columns
from weft.cli.output.terminal import find_width
from weft.cli.session import Session
from weft.cli.stream.client import exchange
from weft.kinds.record import Kind
from weft.objects.quantity import format_age

DEFAULT_RANGE, WIDTH, HEIGHT = "5m", 100, 8
COLUMNS = make_columns("SERIES", "NOW>", "MEAN>", "MAX>", "UNIT", "OVER TIME!")


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
            type=options.Duration(),
            metavar="TIME",
            default=0.0,
            help="From point to point, 0.2s or more. [the finest that is kept for that long]",
        ),
        click.Option(
            ["--series"], metavar="NAME", multiple=True, help="Only this series, or those that begin so: cpu, nic0."
        ),
        click.Option(
            ["--extremes"], is_flag=True, help="As data: also the least and the greatest value of each point."
        ),
        click.Option(["--plot"], is_flag=True, help="Draw a plot of each series."),
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
) -> None:
    target = find_one(session, kind, words, (), "give one object")
    asked = {"time_range": time_range, "until": until, "granularity": granularity, "series": series}
    answer, _ = exchange(session, target.kind.name, target.name, "metrics", {**asked, "extremes": extremes})
    if takes_pages(session):  # as it came: a line for each series
        print(answer.decode())
        return
    found: dict[str, Any] = json.loads(answer)
    if session.is_document:
        print_data(session, found)
    elif session.is_data:
        _print_points(session, found["series"], extremes)
    else:
        _show(session, target.what, found, plot)


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


def _show(session: Session, what: str, found: dict[str, Any], plot: bool) -> None:
    measured = [one for one in found["series"] if any(value is not None for _, value in one["points"])]
    if not measured:
        session.notify(f"{what}: nothing was measured in that time")
        return
    width = find_width(sys.stdout) or WIDTH
    span = found["until"] - found["from"]
    print(f"{what}, {format_age(span)} until {_local(found['until'])}, one point every {found['granularity']:g} s")
    if plot:
        for one in measured:
            times, heights = zip(*one["points"], strict=True)
            print(f"\n{one['name']} ({one['unit']})")
            print("\n".join(draw_plot(times, heights, one["unit"], min(width, WIDTH), HEIGHT)))
        return
    cells = []
    for one in measured:
        values = [value for _, value in one["points"]]
        known = [value for value in values if value is not None]
        figures = (values[-1], sum(known) / len(known), max(known))
        cells.append([one["name"], *(format_value(value, one["unit"]) for value in figures), _unit(one["unit"])])
    taken = sum(max(map(len, column)) for column in zip(("SERIES", "NOW", "MEAN", "MAX", "UNIT"), *cells, strict=True))
    columns_left = max(10, min(width, WIDTH) - taken - len(GAP) * len(COLUMNS))
    lines = [draw_sparkline([value for _, value in one["points"]], columns_left) for one in measured]
    print_rows(session, COLUMNS, [[*row, line] for row, line in zip(cells, lines, strict=True)])


def _unit(unit: str) -> str:
    """The unit, where the figures don't have it."""
    return "" if unit in ("bytes", "bytes/s", "s") else unit


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _local(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")
