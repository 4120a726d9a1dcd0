"""Completion of kinds and live names. A server that doesn't answer at once gives no names and no error."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from weft.cli.quick_completion import NotQuick, find_names, list_values, read_names
from weft.cli.session import Session
from weft.kinds.fields.strategy import STRATEGIES
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, KINDS
from weft.objects.errors import WeftError

TIMEOUT_SECONDS = 1.0
KIND_WORDS = {word: kind.name for kind in KINDS for word in (kind.name, kind.plural, *kind.display.aliases)}


class Completer:
    """Completes values as ``description`` says, in ``quick_completion``'s form."""

    def __init__(self, description: dict[str, Any]) -> None:
        self.description = description

    def __call__(self, context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before = [str(word) for word in context.params.get("words") or ()]
        try:
            found = list_values(
                KIND_WORDS, self.description, before, incomplete, lambda kind: _names(context, BY_NAME[kind])
            )
        except NotQuick:
            return []
        return [CompletionItem(value, type=type_, help=help_ or None) for type_, value, help_ in found]


def complete_target(kind: Kind | None, able: Sequence[str] = ()) -> Completer:
    """A completer of NAME for ``kind``, or of KIND, KIND NAME and KIND/NAME without one."""
    return Completer({"target": kind.name if kind is not None else "", "able": list(able or BY_NAME)})


def complete_name(kind: str) -> Completer:
    """A completer of names of ``kind``, built-in ones too, for flags that take one."""
    return Completer(
        {"names": kind, "several": True, "words": [[name, ""] for name in BY_NAME[kind].admission.reserved_names]}
    )


def complete_field(kind: Kind | None) -> Completer:
    """A completer of FIELD= for ``--field``: what the status and the spec of ``kind`` have."""
    parts = [kind.status, kind.spec] if kind is not None else []
    names = ["name", "phase", "node", *(name for part in parts for name in part.__struct_fields__)]
    return Completer({"words": [[f"{name}=", ""] for name in dict.fromkeys(names)], "several": True})


complete_kind = Completer({"words": [[name, kind.summary] for name, kind in BY_NAME.items()]})
# The last of several strategies, as people spell them; after @ the placement policies.
complete_strategy = Completer(
    {
        "words": [[name.replace("_", "-"), description] for name, description in STRATEGIES.items()],
        "several": True,
        "at": "placementpolicy",
    }
)


def complete_context(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The user's contexts by their names."""
    session = context.find_object(Session)
    module = importlib.import_module("weft.client.context")
    names = module.list_named(session.environ) if session is not None else []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_operation(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The ids of what goes on."""
    module = importlib.import_module("weft.kinds.operation")
    found: list[Any] = []
    for name in module.kinds_with_operations():
        found += module.list_running(name, _list(context, name))
    return [CompletionItem(one.id) for one in found if one.id.startswith(incomplete)]


def _list(context: click.Context, kind: str) -> list[dict[str, Any]]:
    session = context.find_object(Session) or context.obj
    if not isinstance(session, Session):
        return []
    try:
        return session.make_client(timeout_seconds=TIMEOUT_SECONDS).list(kind).items
    except WeftError:
        return []


def _names(context: click.Context, kind: Kind) -> list[str]:
    session = context.find_object(Session) or context.obj
    if not isinstance(session, Session):
        return []
    place = Path(find_names(session.environ, session.context_file or "", session.given_project or "", kind.name))
    names = read_names(str(place), session.clock.now())
    if names is None:
        names = sorted(item["name"] for item in _list(context, kind.name))
        _write_cache(place, names)
    return names


def _write_cache(place: Path, names: Sequence[str]) -> None:
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # without a place to keep them they are asked for each time
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh.write_text("\n".join(names))
        fresh.replace(place)
