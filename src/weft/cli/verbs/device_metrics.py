"""`weft device metrics fridge-1 --time-range 1h`: which numbers a device reported over time, as the server's history has them."""

from __future__ import annotations

import sys

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.metrics.device_history import fetch_device, fill, read_properties
from weft.cli.metrics.plot import draw_plot
from weft.cli.metrics.samples import COLUMNS, draw_rows
from weft.cli.output.formats import print_data, print_rows
from weft.cli.output.terminal import clean, find_width
from weft.cli.session import Session
from weft.kinds.device import DEVICE
from weft.kinds.record import Kind

DEFAULT_RANGE, WIDTH, HEIGHT = "1h", 80, 8


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(
            ["--time-range"], type=options.Duration(), metavar="TIME", default=DEFAULT_RANGE, help="How long. [1h]"
        ),
        click.Option(["--property", "properties"], metavar="NAME", multiple=True, help="Only this property."),
        click.Option(["--plot"], is_flag=True, help="Draw a plot of each property."),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    time_range: float,
    properties: tuple[str, ...],
    plot: bool,
) -> None:
    if not time_range:
        raise click.UsageError("--time-range: 0s has no values; give a longer time, like 10m")
    target = find_one(session, kind or DEVICE, words, (), "give one device")
    device = session.client.get(DEVICE.name, target.name)
    answer, step = fetch_device(session.client, str(device["project"]), target.name, time_range, session.clock.now())
    series = fill(read_properties(answer, properties), step)
    if session.is_data:
        print_data(session, {"device": target.name, "granularity": step, "series": series})
    elif not series:
        session.notify(f"{target.what}: no number was recorded in that time")
    elif plot:
        for one in series:
            times, values = zip(*one["points"], strict=True)
            lines = draw_plot(times, values, "", min(find_width(sys.stdout) or WIDTH, WIDTH), HEIGHT)
            print(f"{clean(one['name'])}\n" + "\n".join(lines))
    else:
        print_rows(session, COLUMNS, draw_rows(series, step, find_width(sys.stdout) or WIDTH))
