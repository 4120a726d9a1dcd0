"""Changes of one object's fields or labels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.flags import flag_fields, flag_name, make_flags, read_flags, refuse_twice
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one, find_targets
from weft.cli.command.target import Target, usage
from weft.cli.function.code import bring
from weft.cli.function.flags import make_more_flags, read_more_flags
from weft.cli.output.formats import print_data
from weft.cli.output.terminal import is_terminal
from weft.cli.session import Session
from weft.cli.verbs.apply import SHOWN_WITH_OTHERS, name_cost, show_value
from weft.cli.wait.finish import Done, finish, plan_wait
from weft.kinds.record import Kind
from weft.objects.schema import describe_fields

_COST = {
    "live": "live",
    "restart": "needs a restart",
    "start": "with the next start",
    "replace": "needs a new one",
    "never": "never",
}


def set_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft vm set web --cpu 2`: change fields of one object. What each change requires is shown before it is made; a change that
    needs a restart waits for one, unless --restart or the answer to a question restarts now."""
    if kind is None:
        summary = (
            "Change fields of an object: weft set vm/web --memory 1G; weft set vm/web --help lists the flags of a VM."
        )
        settings = {"ignore_unknown_options": True}  # with KIND/NAME the kind's own command reads them
        return options.build(verb, summary, _point, kind, [options.targets(kind)], context_settings=settings)
    fields = [*make_more_flags(kind), *make_flags(kind)]
    for flag in fields:
        if kind.verb("restart") and len(flag.opts) > 1:
            flag.opts = [name for name in flag.opts if name != "--restart"]  # here that is the act
    params: list[click.Parameter] = [options.targets(kind, many=False), *fields, *change_options(kind, fields)]
    return options.build(verb, f"Change fields of {kind.a_title}; other fields keep their values.", _set, kind, params)


def change_options(kind: Kind, flags: Sequence[click.Parameter] = ()) -> list[click.Parameter]:
    """Options of every command that changes fields."""
    restart = click.Option(["--restart"], is_flag=True, help="Restart the workload now, if a change needs it.")
    return [
        *([restart] if kind.verb("restart") else []),
        click.Option(["--dry-run"], is_flag=True, help="Show what each change would require; change nothing."),
        *options.waits(flags),
        options.output(),
    ]


def _point(session: Session, kind: Kind | None, words: tuple[str, ...]) -> int:
    raise usage("the kind is missing", "give KIND/NAME: weft set vm/web --FIELD VALUE")


def _set(session: Session, kind: Kind, words: tuple[str, ...], **given: Any) -> int:
    named = len(words) > 2 and words[1].replace("_", "-") in [flag_name(doc) for doc in flag_fields(kind)]
    hint = f"write --{words[1].replace('_', '-')} {words[2]}" if named else ""
    target = find_one(session, kind, words, (), "give one object", hint)
    dry_run, restart = given.pop("dry_run"), given.pop("restart", False)
    return change(session, target, given, dry_run=dry_run, restart=restart)


def change(session: Session, target: Target, given: dict[str, Any], *, dry_run: bool, restart: bool) -> int:
    """Bring the fields in ``given`` (by the names of their flags) to their values; the exit code."""
    kind = target.kind
    if all(value in (None, ()) for value in given.values()):
        raise click.UsageError(f"nothing to set: weft schema {kind.name} lists the fields")
    if str(given.get("spec__node") or "").lower() == "none":
        raise usage(
            "spec.node: 'none' is not a valid node",
            f'weft {kind.name} set {target.name} --node "" lets it go to any node',
        )
    before = session.client.get(kind.name, target.name)
    spec = {key: before[key] for key in ("kind", "name", "project", "labels", "generation") if before.get(key)}
    spec["spec"] = read_flags(kind, given, before["spec"])
    code = read_more_flags(kind, given, spec["spec"])
    if code is not None:
        bring(session, code)
    (plan,) = session.client.apply([spec], dry_run=True)
    changes = plan.get("changes") or []
    types = {doc.path: doc.type for doc in describe_fields(kind.spec)}
    for one in [one for one in changes if one["path"] not in SHOWN_WITH_OTHERS]:
        session.notify(f"{target.what}  {_describe(one, kind, types)}")
    if changes and (owner := before.get("owner")) and owner["kind"] == "deployment":
        session.notify(
            f"{target.what}  belongs to {owner['kind']}/{owner['name']}, whose other instances keep what they have"
        )
    needs = [one for one in changes if one["mode"] == "restart"]
    if dry_run:
        if session.is_data:
            print_data(session, {"changes": changes})
        elif not changes:
            session.notify(f"{target.what}  nothing would change")
        return 0
    if needs and not restart and session.recorder is None:
        restart = _ask(session, target)
    (result,) = session.client.apply([spec])
    if needs and restart:
        obj = session.client.verb(kind.name, target.name, "restart", {})
        wait = plan_wait(obj, target, "restart", before)
        return finish(session, [Done(target, obj, "restart")], [wait] if wait else [])
    wait = plan_wait(result["object"], target, "update") if changes else None
    return finish(session, [Done(target, result["object"], "set" if changes else "unchanged")], [wait] if wait else [])


def _describe(change: dict[str, Any], kind: Kind, types: dict[str, str]) -> str:
    """``cpu 1 → 2: live``"""
    path = str(change["path"])
    old, new = (show_value(change.get(side), types.get(path, "")) for side in ("old", "new"))
    return f"{path.partition('.')[2]} {old} → {new}: {name_cost(change, kind, _COST)}"


def _ask(session: Session, target: Target) -> bool:
    """Whether to restart now; without a terminal to ask at, prints what to do later."""
    if is_terminal(sys.stdin) and is_terminal(sys.stderr):
        return click.confirm(f"Restart {target.what} now? Otherwise the change waits for the next restart.", err=True)
    session.notify(
        f"{target.what}  the change waits for: weft {target.kind.name} restart {target.name} (--restart does it now)"
    )
    return False


def label_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft label vm web tier=db old-`: set labels, or remove them with a minus behind the key."""
    name = "NAME..." if kind else "KIND/NAME..."
    words = click.Argument(["words"], nargs=-1, metavar=f"{name} KEY=VALUE|KEY-...")
    params = [words, *options.waits(), options.output()]
    return options.build(verb, "Set labels (KEY=VALUE) or remove them (KEY-).", _label, kind, params)


def _label(session: Session, kind: Kind | None, words: tuple[str, ...]) -> int:
    changes: dict[str, str] = {}
    removals: dict[str, None] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if sign:
            refuse_twice(key, changes, "labels")
            changes[key] = value
        elif word.endswith("-"):
            removals[word[:-1]] = None
    for key in removals:
        refuse_twice(key, changes, "labels")
    targets = find_targets(session, kind, [w for w in words if "=" not in w and not w.endswith("-")])
    if not changes and not removals:
        raise click.UsageError("no label given: write KEY=VALUE, or KEY- to remove one")
    done = []
    for target in targets:
        obj = session.client.patch(target.kind.name, target.name, {"labels": {**changes, **removals}})
        done.append(Done(target, obj, "label", "labelled" if changes else "label removed"))
    return finish(session, done, [])
