"""`weft operation list`, `show ID`, `attach ID`, `cancel ID`, `watch`: operations, as a view of the objects that they change."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.completion import complete_operation
from weft.cli.command.grammar import Entry
from weft.cli.output.formats import age_of, print_items, print_line
from weft.cli.output.table import make_columns
from weft.cli.output.terminal import CLEAR, is_terminal
from weft.cli.session import Session
from weft.cli.verbs.list import list_allowed
from weft.cli.wait.again import read_again
from weft.cli.wait.finish import Done, finish
from weft.cli.wait.operation import read_id
from weft.cli.wait.watch import Wait
from weft.kinds.operation import (
    Operation,
    find_cancel,
    find_goal,
    kinds_with_operations,
    list_running,
    name_operation,
    read_operation,
)
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.objects.errors import IllegalTransition, NotFound

WATCH_SECONDS = 2.0
_ACTS = ("list", "show", "attach", "cancel", "watch")
_COLUMNS = make_columns("ID!", "ACT", "STATE", "PHASE!", "AGE>", "OBJECT", "NOTE~")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["act"], type=click.Choice(_ACTS), default="list", metavar=f"[{'|'.join(_ACTS)}]"),
        click.Argument(["ids"], nargs=-1, metavar="[ID...]", shell_complete=complete_operation),
        click.Option(
            ["-a", "--all", "every"], is_flag=True, help="Include migrations, conversions and jobs that have ended."
        ),
        click.Option(["-y", "--yes"], is_flag=True, help="Cancel a creation by deleting the object."),
        options.all_projects(),
        options.timeout(),
        *options.table(),
        options.output(),
    ]
    return options.build(verb, "List operations in progress; show, attach to or cancel one.", _run, kind, params)


def _run(session: Session, kind: Kind | None, act: str, ids: tuple[str, ...], every: bool, yes: bool) -> int | None:
    if act == "list" or (act == "watch" and not ids):
        if ids:
            raise click.UsageError("list takes no id: weft operation show ID")
        if act == "watch":
            _watch(session, every)
        else:
            _print(session, _list(session, every))
        return None
    if not ids:
        raise click.UsageError(f"{act} needs an operation: weft operation list shows them")
    if act == "show":
        _show(session, ids)
        return None
    return _attach(session, ids) if act in ("attach", "watch") else _cancel(session, ids, yes)


def _list(session: Session, every: bool) -> list[Operation]:
    """Those on objects of the kinds that the caller may see."""
    kinds = kinds_with_operations()
    items, _ = list_allowed(session, kinds, {"all_projects": session.all_projects})
    return [
        one for name in kinds for one in list_running(name, [of for of in items if of["kind"] == name], ended=every)
    ]


def _print(session: Session, found: Sequence[Operation]) -> None:
    items, rows = [msgspec.to_builtins(one) for one in found], [_row(session, one) for one in found]
    print_items(session, items, [one.id for one in found], (_COLUMNS, rows), "no operations in progress")


def _row(session: Session, one: Operation) -> list[str]:
    return [one.id, one.act, one.state, one.phase, age_of(session, one.since), one.object, one.message]


def _watch(session: Session, every: bool) -> None:
    """The list, refreshed until ``--timeout`` has passed: on a terminal in place, off it only what is new."""
    shown: set[tuple[str, str, str]] = set()
    end = math.inf if session.timeout_seconds is None else session.clock.elapsed() + session.timeout_seconds
    found = _list(session, every)
    while True:
        if is_terminal(sys.stdout) and not session.is_data:
            print(CLEAR, end="")
            _print(session, found)
        else:
            fresh = [one for one in found if (one.id, one.phase, one.message) not in shown]
            shown |= {(one.id, one.phase, one.message) for one in fresh}
            for one in fresh:
                if session.is_document:
                    print_line(session, msgspec.to_builtins(one))
                else:
                    print("  ".join(filter(None, (one.id, one.act, one.phase, one.message))))
        sys.stdout.flush()
        left = end - session.clock.elapsed()
        if not session.rests(max(0.0, min(WATCH_SECONDS, left))) or left <= WATCH_SECONDS:
            return
        found = read_again(session, lambda: _list(session, every), end)


def _get(session: Session, id_: str) -> dict[str, Any] | None:
    """The object of the operation; None where it is gone, which ends a deletion."""
    target, generation = read_id(id_)
    try:
        obj = session.client.get(target.kind.name, target.name)
    except NotFound:
        if generation is None:
            raise
        return None
    newest = obj.get("generation", 1)
    if generation is not None and generation > newest:
        raise NotFound(f"operation {id_} not found: the newest is {name_operation(obj)}", hint="weft operation list")
    if generation is not None and generation < newest:
        session.notify(f"{id_} was superseded by {name_operation(obj)}")
    return obj


def _show(session: Session, ids: tuple[str, ...]) -> None:
    found = [(id_, _get(session, id_)) for id_ in ids]
    shown = [(read_operation(obj), find_cancel(obj)) for _, obj in found if obj is not None]
    missing = [id_ for id_, obj in found if obj is None]
    if not shown:
        raise NotFound(
            f"operation {missing[0]} not found: its object was deleted, or never was", hint="weft operation list"
        )
    for id_ in missing:
        session.notify(f"{id_}  its object was deleted, or never was")
    if session.is_data:
        _print(session, [one for one, _ in shown])
        return
    for one, cancel in shown:
        lines = {
            "id": one.id,
            "act": one.act,
            "object": one.object,
            "state": one.state,
            "phase": one.phase,
            "since": f"{age_of(session, one.since)} ago" if one.since else "",
            "note": one.message,
            "attach": f"weft operation attach {one.id}" if one.state == "running" else "",
            "cancel": f"weft operation cancel {one.id}" if one.state == "running" and cancel else "",
        }
        print("\n".join(f"{word:<8} {text}" for word, text in lines.items() if text))


def _attach(session: Session, ids: tuple[str, ...]) -> int:
    done: list[Done] = []
    waits: list[Wait] = []
    for id_ in ids:
        obj = _get(session, id_)
        if obj is None:
            session.notify(f"{id_}  its object is gone")
            continue
        target, _ = read_id(id_)
        verb = "delete" if obj.get("deleting_since") else "wait"
        done.append(Done(target, obj, verb))
        waits.append(Wait(target, find_goal(obj), obj["uid"], obj.get("project")))
    return finish(session, done, waits) if waits else 0


def _cancel(session: Session, ids: tuple[str, ...], yes: bool) -> int:
    for id_ in ids:
        obj = _get(session, id_)
        if obj is None:
            raise NotFound(f"{id_} is over: its object is gone")
        one = read_operation(obj)
        kind, name = BY_NAME[obj["kind"]], obj["name"]
        if one.state != "running":
            raise IllegalTransition(f"{one.id} is {one.state}: nothing to cancel")
        cancel = find_cancel(obj)
        if cancel not in (None, "delete"):
            session.client.verb(kind.name, name, cancel, {}, project=obj.get("project"))
            print(f"{one.id}  cancelled", flush=True)
        elif cancel is None:
            hint = f"weft set {kind.name}/{name} changes the object back" if one.act == "change" else None
            raise IllegalTransition(
                f"{one.id}: a {'deletion' if one.act == 'delete' else one.act} can't be cancelled", hint=hint
            )
        elif not yes:
            raise click.UsageError(f"cancelling {one.id} deletes {kind.name}/{name}: give --yes")
        else:
            session.client.delete(kind.name, name, project=obj.get("project"), uid=obj["uid"])
            print(f"{one.id}  cancelled: {kind.name}/{name} is deleted", flush=True)
    return 0
