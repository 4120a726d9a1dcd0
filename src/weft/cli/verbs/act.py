"""A kind's own verbs: `weft vm stop web`, `weft node cordon n2 --reason "disk swap"`. All from the kind's record."""

from __future__ import annotations

from typing import Any

import click
from msgspec import inspect as mi

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_targets
from weft.cli.command.target import Target
from weft.cli.output.local_time import render_time
from weft.cli.session import Session
from weft.cli.wait.batch import each, finish_each
from weft.cli.wait.finish import Done, plan_wait
from weft.cli.wait.watch import Wait
from weft.kinds.fields.cells import dig
from weft.kinds.parts.sharing import EVERY_PROJECT, SHARE
from weft.kinds.record import Kind, Object, Verb
from weft.kinds.registry import BY_NAME
from weft.objects.schema import describe_fields, read_strict

_NAMED = 10
_HELP = {
    "by": "How much longer, like 1h.",
    "reason": "Reason, for people.",
    "with": "Share it with this project; '*' is all projects. May be repeated.",
    "stop": "Stop sharing it with this project. What names it already keeps it.",
}


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    owner = kind or BY_NAME[entry.kinds[0]]
    record = owner.verb(verb)
    inputs = _input_options(record) if record else []
    of_all = record is not None and record.of_all
    params = [options.targets(kind, required=not of_all, able=entry.kinds), *inputs, *options.waits(), options.output()]

    def run(session: Session, kind: Kind | None, words: tuple[str, ...], **given: Any) -> int:
        targets = _list_all(session, owner) if of_all and not words else find_targets(session, kind, words, entry.kinds)
        return _run(session, verb, targets, given)

    return options.build(verb, f"{entry.summary}.", run, kind, params)


def _list_all(session: Session, kind: Kind) -> list[Target]:
    """All objects of the kind, which the person reads of before anything changes."""
    names = [item["name"] for item in session.client.list(kind.name).items]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    session.notify(f"no name is given: all {len(names)} {kind.plural}: {', '.join(names[:_NAMED])}{more}")
    return [Target(kind, name) for name in names]


def _input_options(verb: Verb) -> list[click.Parameter]:
    """An option for every field of the verb's input."""
    info = mi.type_info(verb.input) if verb.input else None
    docs = {doc.path.removeprefix("input."): doc for doc in describe_fields(verb.input, "input")} if verb.input else {}
    made: list[click.Parameter] = []
    for field in info.fields if isinstance(info, mi.StructType) else ():
        flag = "--" + field.encode_name.replace("_", "-")
        said = docs[field.encode_name].description
        help_ = _HELP.get(field.encode_name) or (f"{said}." if said else None)
        inner = field.type.type if isinstance(field.type, mi.Metadata) else field.type
        if isinstance(inner, mi.BoolType):
            made.append(click.Option([flag, field.encode_name], is_flag=True, help=help_))
        elif isinstance(inner, mi.ListType):  # of projects
            made.append(click.Option([flag, field.encode_name], metavar="PROJECT", multiple=True, help=help_))
        else:
            made.append(click.Option([flag, field.encode_name], metavar="TEXT", default=None, help=help_))
    return made


def _run(session: Session, verb: str, targets: list[Target], given: dict[str, Any]) -> int:
    done: list[Done] = []
    waits: list[Wait] = []
    body = {key: value for key, value in given.items() if value not in (None, (), False)}
    record = targets[0].kind.verb(verb) if len(targets) > 1 else None
    if record is not None and record.input is not None:
        read_strict(body, record.input, "input")  # what is wrong is said once, not of each of them

    def act(target: Target) -> None:
        kind, name = target
        before = session.client.get(kind.name, name) if verb == "restart" else None
        obj = session.client.verb(kind.name, name, verb, body)
        done.append(Done(target, obj, verb, _SAYS[verb](obj) if verb in _SAYS else ""))
        waits.extend(wait for wait in [plan_wait(obj, target, verb, before)] if wait)

    codes = each(session, targets, act)
    return finish_each(session, codes, done, waits)


def _describe_shares(obj: Object) -> str:
    names = dig(obj, "spec.shared_with") or []
    return (
        f"shared with {'all projects' if EVERY_PROJECT in names else ', '.join(names)}"
        if names
        else "not shared any more"
    )


def _describe_pause(obj: Object) -> str:
    return f"guard paused until {render_time(dig(obj, 'actions.guard_paused_until', 0.0))}"


_SAYS = {SHARE.name: _describe_shares, "guard": _describe_pause}  # what a verb's answer says, by the verb
