"""`weft fabric upgrade`: what concerns all machines together."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.fabric.upgrade import upgrade
from weft.cli.session import Session
from weft.kinds.record import Kind

_ACTS = ("upgrade",)


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["act"], type=click.Choice(_ACTS), metavar="|".join(_ACTS)),
        click.Option(
            ["--to"],
            metavar="FOLDER|RELEASE",
            help="Packages of the release, or one that an upgrade has brought before.",
        ),
        click.Option(
            ["--renew"],
            is_flag=True,
            help="Afterwards, empty each node whose guests run in an earlier QEMU or whose machine needs a reboot, reboot it if it "
            "needs that, and return it.",
        ),
        click.Option(["--dry-run"], is_flag=True, help="Show in which order, and change nothing."),
        *options.table(),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(
    session: Session, kind: Kind | None, act: str, to: str | None, renew: bool, dry_run: bool, **_: Any
) -> int | None:
    return upgrade(session, to, renew=renew, dry_run=dry_run)
