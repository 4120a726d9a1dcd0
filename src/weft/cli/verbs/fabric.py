"""`weft fabric upgrade|rotate`: what concerns all machines together."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.target import usage
from weft.cli.fabric.rotate import rotate
from weft.cli.fabric.upgrade import upgrade
from weft.cli.session import Session
from weft.kinds.record import Kind

_ACTS = ("upgrade", "rotate")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["act"], type=click.Choice(_ACTS), metavar="|".join(_ACTS)),
        click.Argument(["part"], required=False, metavar="[PART|status]"),
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
    session: Session,
    kind: Kind | None,
    act: str,
    part: str | None,
    to: str | None,
    renew: bool,
    dry_run: bool,
    **_: Any,
) -> int | None:
    if act == "rotate":
        if to or renew or dry_run:
            raise usage("--to, --renew and --dry-run go with upgrade", "weft fabric rotate seal")
        return rotate(session, part)
    if part:
        raise usage(f"upgrade takes no {part!r}", "weft fabric upgrade --to dist")
    return upgrade(session, to, renew=renew, dry_run=dry_run)
