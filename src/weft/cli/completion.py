"""Completion of kinds and live names. A server that doesn't answer at once is not waited for: no names, no noise."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from weft.cli.session import Session
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, find_kind
from weft.kinds.strategy import STRATEGIES
from weft.objects.errors import WeftError

TIMEOUT_SECONDS = 1.0
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def complete_target(kind: Kind | None, able: Sequence[str] = ()) -> Completer:
    """A completer of NAME for ``kind``, or of KIND, KIND NAME and KIND/NAME without one."""

    def complete(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before = [str(word) for word in context.params.get("words") or ()]
        if kind is not None:
            return _names(context, kind, incomplete)
        word, slash, start = incomplete.partition("/")
        try:
            if slash:
                return _names(context, find_kind(word), start, f"{word}/")
            if before and "/" not in before[0]:
                return _names(context, find_kind(before[0]), incomplete)
        except WeftError:
            return []
        kinds = [CompletionItem(name) for name in able or BY_NAME if name.startswith(incomplete)]
        if len(able) == 1:
            kinds += _names(context, BY_NAME[able[0]], incomplete)
        return kinds

    return complete


def complete_context(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The user's contexts by their names."""
    session = context.find_object(Session)
    module = importlib.import_module("weft.client.context")
    names = module.list_named(session.environ) if session is not None else []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_operation(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The ids of what goes on."""
    module = importlib.import_module("weft.cli.operations")
    found: list[Any] = []
    for name in module.kinds_with_operations():
        going = [obj for obj in _list(context, name) if name != "node" or obj["spec"].get("drain")]
        found += [module.read_operation(obj) for obj in going]
    return [CompletionItem(one.id) for one in found if one.state == "running" and one.id.startswith(incomplete)]


def complete_kind(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name, help=kind.summary) for name, kind in BY_NAME.items() if name.startswith(incomplete)]


def complete_strategy(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The last of several strategies, as people spell them; after @ the placement policies."""
    before, sign, start = incomplete.rpartition(",")
    if start.startswith("@"):
        return _names(context, BY_NAME["placementpolicy"], start[1:], "@")
    known = {name.replace("_", "-"): told for name, told in STRATEGIES.items()}
    words = [(name, told) for name, told in known.items() if name.startswith(start.replace("_", "-"))]
    return [CompletionItem(before + sign + name, help=told) for name, told in words]


def _list(context: click.Context, kind: str) -> list[dict[str, Any]]:
    session = context.find_object(Session) or context.obj
    if not isinstance(session, Session):
        return []
    try:
        return session.make_client(timeout_seconds=TIMEOUT_SECONDS).list(kind).items
    except WeftError:
        return []


def _names(context: click.Context, kind: Kind, start: str, prefix: str = "") -> list[CompletionItem]:
    names = sorted(item["name"] for item in _list(context, kind.name))
    return [CompletionItem(prefix + name) for name in names if name.startswith(start)]
