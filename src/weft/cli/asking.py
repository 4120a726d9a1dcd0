"""Questions to the server: those that the scheduler answers (an object that holds the question is made, its answer waited for, and
both are taken away again), and what the nodes have, for a refusal that should say so."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from typing import Any

from weft.cli.session import Session
from weft.kinds.cells import dig
from weft.objects.errors import NotFound, WeftError
from weft.objects.quantity import format_bytes, format_cpu

Object = Mapping[str, Any]
PATIENCE_SECONDS = 30.0
COURTESY_SECONDS = 2.0  # for what is only said beside an error
_MOST_NAMED = 8


def ask(session: Session, kind: str, spec: Mapping[str, Any]) -> Object:
    """The object of ``kind`` with its answer. Raises TimedOut when nobody decides just now, NotFound when it went away."""
    name = f"asked-{secrets.token_hex(4)}"
    session.client.create({"kind": kind, "name": name, "spec": dict(spec)})
    try:
        answered = session.client.wait(
            kind,
            name,
            lambda obj: obj is None or dig(obj, "status.phase", "Pending") != "Pending",
            timeout_seconds=session.timeout_seconds or PATIENCE_SECONDS,
        )
    finally:
        with contextlib.suppress(WeftError):
            session.client.delete(kind, name)
    if answered is None:
        raise NotFound(f"{kind}/{name} was deleted before it was answered")
    return answered


def say_what_nodes_have(session: Session, refusal: WeftError) -> WeftError:
    """``refusal``; one of a size that no guest can have with the size of the nodes, if the server tells it."""
    resource = (refusal.field or "").rpartition(".")[2]
    if "most" not in refusal.details or resource not in ("cpu", "memory"):
        return refusal
    try:
        nodes = session.make_client(timeout_seconds=COURTESY_SECONDS).list("node").items
    except WeftError:
        return refusal
    sizes = sorted(((dig(node, f"report.{resource}", 0), node["name"]) for node in nodes), reverse=True)
    show = format_bytes if resource == "memory" else format_cpu
    had = ", ".join(f"{name} {show(size)}" for size, name in sizes[:_MOST_NAMED])
    if had:
        more = f" and {len(sizes) - _MOST_NAMED} more" if len(sizes) > _MOST_NAMED else ""
        refusal.hint = f"{refusal.hint or ''}; the nodes have {had}{more}".lstrip("; ")
    return refusal
