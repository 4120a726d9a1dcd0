"""Completion of kinds and live names. A server that doesn't answer at once is not waited for: no names, no noise."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from weft.cli.session import Session
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, find_kind
from weft.kinds.strategy import STRATEGIES
from weft.objects.errors import WeftError

TIMEOUT_SECONDS = 1.0
CACHE_SECONDS = 10.0
_DECIDING = ("HOME", "WEFT_CONTEXT", "WEFT_SERVER", "WEFT_TOKEN", "WEFT_PROJECT", "WEFT_CA")
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


def complete_name(kind: str) -> Completer:
    """A completer of names of ``kind``, for flags that take one."""

    def complete(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, sign, start = incomplete.rpartition(",")
        return _names(context, BY_NAME[kind], start, before + sign)

    return complete


def complete_field(kind: Kind | None) -> Completer:
    """A completer of FIELD= for ``--field``: what the status and the spec of ``kind`` have."""

    def complete(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, sign, start = incomplete.rpartition(",")
        parts = [kind.status, kind.spec] if kind is not None else []
        names = ["name", "phase", "node", *(name for part in parts for name in part.__struct_fields__)]
        known = [f"{name}=" for name in dict.fromkeys(names)]
        return [CompletionItem(before + sign + name) for name in known if name.startswith(start)]

    return complete


def _list(context: click.Context, kind: str) -> list[dict[str, Any]]:
    session = context.find_object(Session) or context.obj
    if not isinstance(session, Session):
        return []
    try:
        return session.make_client(timeout_seconds=TIMEOUT_SECONDS).list(kind).items
    except WeftError:
        return []


def _names(context: click.Context, kind: Kind, start: str, prefix: str = "") -> list[CompletionItem]:
    session = context.find_object(Session) or context.obj
    if not isinstance(session, Session):
        return []
    place = _find_cache(session, context, kind.name)
    names = _read_cache(session, place)
    if names is None:
        names = sorted(item["name"] for item in _list(context, kind.name))
        _write_cache(place, names)
    return [CompletionItem(prefix + name) for name in names if name.startswith(start)]


def _find_cache(session: Session, context: click.Context, kind: str) -> Path:
    """Where names are kept for a few seconds, so that TAB after TAB asks once: by all that says which server is asked."""
    said = [session.environ.get(name, "") for name in _DECIDING]
    said += [os.getcwd(), session.context_file or "", session.given_project or ""]
    folder = Path(session.environ.get("XDG_CACHE_HOME") or Path(session.environ.get("HOME") or "/root") / ".cache")
    return folder / "weft" / "completion" / hashlib.sha256("\0".join(said).encode()).hexdigest()[:16] / kind


def _read_cache(session: Session, place: Path) -> list[str] | None:
    """The names in ``place``; None if it isn't there, or is too old."""
    try:
        age = session.clock.now() - place.stat().st_mtime
        return place.read_text().split() if 0 <= age < CACHE_SECONDS else None
    except OSError:
        return None


def _write_cache(place: Path, names: Sequence[str]) -> None:
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # without a place to keep them they are asked for each time
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh.write_text("\n".join(names))
        fresh.replace(place)
