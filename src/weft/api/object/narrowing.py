"""Narrow a stored object to what a reader sees: all, all but what names other people's, or what a project
shares with others. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from weft.kinds.record import Kind
from weft.objects.envelope import Envelope
from weft.trust.credentials import Actor

Narrow = Callable[[bytes], bytes]  # a stored object as its reader sees it
_encoder = msgspec.json.Encoder()


def is_narrowed(kind: Kind, actor: Actor, verb: str) -> bool:
    """Whether ``actor`` doesn't see some fields of ``kind``, since its rights are in projects only."""
    return bool(kind.access.fabric_fields) and actor.kind == "person" and not actor.permits(f"{kind.name}:{verb}", None)


def find_narrowing(kind: Kind, actor: Actor, verb: str) -> Narrow | None:
    """Function that leaves out the fields that ``actor`` doesn't see; None if it sees all."""
    return (lambda value: narrow(kind, value)) if is_narrowed(kind, actor, verb) else None


def narrow(kind: Kind, value: bytes) -> bytes:
    """A stored object without the fields that name other people's objects."""
    whole = msgspec.json.decode(value)
    for part, _, name in (path.partition(".") for path in kind.access.fabric_fields):
        if part != "conditions":
            whole.get(part, {}).pop(name, None)
            continue
        for condition in whole.get("conditions", ()):
            if condition["type"] == name:
                condition["message"] = ""
    return _encoder.encode(whole)


def pick_shared(kind: Kind, whole: Envelope) -> Envelope:
    """The part of an object that its users in another project need."""
    parts = {"spec": msgspec.json.decode(whole.spec), "status": msgspec.json.decode(whole.status)}
    kept: dict[str, dict[str, Any]] = {"spec": {}, "status": {}}
    for part, _, name in (path.partition(".") for path in kind.access.shared_fields):
        if name in parts[part]:
            kept[part][name] = parts[part][name]
    return Envelope(
        kind=whole.kind,
        name=whole.name,
        uid=whole.uid,
        project=whole.project,
        created_at=whole.created_at,
        spec=msgspec.Raw(_encoder.encode(kept["spec"])),
        status=msgspec.Raw(_encoder.encode(kept["status"])),
    )
