"""`weft top nodes`, `weft top vms`, `weft node top`: measured usage beside what was requested; most first."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import Completer
from weft.cli.command.grammar import Entry
from weft.cli.command.target import find_noun, is_guess, usage
from weft.cli.migration.description import PROGRESS_COLUMNS, describe_progress, draw_progress
from weft.cli.node.usage import NODE_COLUMNS, SORTS, VM_COLUMNS, draw_nodes, draw_vms, join_nodes, join_vms
from weft.cli.output.formats import list_names, print_items
from weft.cli.output.table import Column
from weft.cli.output.terminal import CLEAR, is_terminal
from weft.cli.session import Session
from weft.cli.verbs.list import leave_out
from weft.cli.wait.again import read_again
from weft.client.usage import fetch_usage
from weft.kinds.fields.cells import dig
from weft.kinds.migration import ENDED
from weft.kinds.record import Kind
from weft.objects.errors import Forbidden, NotFound

WATCH_SECONDS = 3.0
_OVERHEAD = "A VM's MEMORY has QEMU's own in it, so it can be more than what the VM has (OF)."
Shown = tuple[
    Sequence[Any], Sequence[str], tuple[Sequence[Column], Sequence[Sequence[str]]], str
]  # as print_items takes it
MEASURED = ("nodes", "vms", "containers", "migrations")


class _Sort(click.Choice[str]):
    """A resource; its sign, with which other lists begin at the largest, says what is so anyway."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(value.removeprefix("-") if value != "-name" else value, param, ctx)


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Option(
            ["--sort"], type=_Sort(SORTS), default="cpu", help="The resource to sort by, most first; also -cpu. [cpu]"
        ),
        click.Option(
            ["-w", "--watch"],
            is_flag=True,
            help="Refresh every few seconds, until Ctrl-C (default on a terminal).",
        ),
        click.Option(["--once"], is_flag=True, help="Print once, also on a terminal."),
        *options.selectors(kind),
        options.all_projects(),
        options.output(),
    ]
    if kind is None:
        params.insert(
            0,
            click.Argument(
                ["word"],
                metavar="nodes|vms|containers|migrations",
                default="",
                shell_complete=Completer({"words": [[word, ""] for word in MEASURED]}),
            ),
        )
    summary = "Show the usage of nodes or workloads, largest first, or the progress of migrations."
    return options.build(verb, f"{summary} {_OVERHEAD}", _run, kind, params)


def _run(
    session: Session,
    kind: Kind | None,
    sort: str,
    watch: bool,
    once: bool,
    labels: tuple[str, ...],
    fields: tuple[str, ...],
    word: str = "",
) -> None:
    kind = kind or (_find(word) if word else _choose(session))
    if kind.name not in _SHOWN and kind.workload is None:
        instead = (
            f"weft {kind.name} metrics NAME" if kind.verb("metrics") else "weft top nodes|vms|containers|migrations"
        )
        raise click.UsageError(f"{kind.plural} have no usage of their own: {instead}")
    goes_on = watch or (is_terminal(sys.stdout) and not session.is_data)
    shown = _read(session, kind, sort, labels, fields)
    if goes_on and not once and is_terminal(sys.stdout) and not session.is_data:
        print(CLEAR, end="")
    print_items(session, *shown)
    sys.stdout.flush()
    try:
        while goes_on and not once and session.rests(WATCH_SECONDS):
            shown = read_again(session, lambda: _read(session, kind, sort, labels, fields))
            print(CLEAR if is_terminal(sys.stdout) else "")
            print_items(session, *shown)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return  # enough was seen


def _choose(session: Session) -> Kind:
    """Nodes; VMs for those who may not see the usage of nodes."""
    try:
        fetch_usage(session.client.http)
    except Forbidden as refused:
        session.notify(f"{refused.message}; these are VMs (weft top containers shows containers)")
        return find_noun("vms")
    return find_noun("nodes")


def _find(word: str) -> Kind:
    try:
        return find_noun(word)
    except NotFound as unknown:
        if is_guess(unknown):
            raise
        raise usage(f"no metrics for {word!r}", "weft top nodes|vms|containers|migrations") from None


def choose_shown(kind: Kind, items: Sequence[dict[str, Any]], *, selected: bool) -> list[dict[str, Any]]:
    """``items`` but for tasks that have ended, which use nothing, unless people have ``selected`` what they want."""
    return list(items) if selected else leave_out(kind, items)


def _read(session: Session, kind: Kind, sort: str, labels: tuple[str, ...], fields: tuple[str, ...]) -> Shown:
    items = session.client.list(
        kind.name, all_projects=session.all_projects, labels=",".join(labels), fields=",".join(fields)
    ).items
    read = _SHOWN.get(kind.name, _read_guests)
    return read(session, kind, choose_shown(kind, items, selected=bool(labels or fields)), sort)


def _read_guests(session: Session, kind: Kind, items: Sequence[dict[str, Any]], sort: str) -> Shown:
    rows = join_vms(items, fetch_usage(session.client.http, guests=True), sort)
    return rows, list_names(rows), (VM_COLUMNS, draw_vms(rows)), f"no {kind.plural}"


def _read_nodes(session: Session, _: Kind, items: Sequence[dict[str, Any]], sort: str) -> Shown:
    rows = join_nodes(items, fetch_usage(session.client.http), sort)
    return rows, list_names(rows), (NODE_COLUMNS, draw_nodes(rows)), "no nodes"


def _read_migrations(session: Session, _: Kind, items: Sequence[dict[str, Any]], __: str) -> Shown:
    """The migrations in progress, and how far each is."""
    going = [item for item in items if dig(item, "status.phase", "Pending") not in ENDED]
    table = (PROGRESS_COLUMNS, [draw_progress(item) for item in going])
    items = [describe_progress(item) for item in going]
    return items, list_names(going), table, "no migrations in progress"


_SHOWN = {"node": _read_nodes, "migration": _read_migrations}  # a workload is shown like a VM
