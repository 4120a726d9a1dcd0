"""The one shape every object has. ``spec``, ``status`` and ``report`` stay raw JSON here, so that a process that knows
only some of their fields hands the others on untouched; a writer re-encodes only the part that is its own."""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeVar

import msgspec

from weft.objects.identity import Ref, object_key

EMPTY = msgspec.Raw(b"{}")
T = TypeVar("T")


class Condition(msgspec.Struct, frozen=True):
    """One statement about an object, written by one controller. ``since`` (unix seconds) moves only with ``status``."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str = ""
    message: str = ""
    since: float = 0.0
    generation: int = 0


class Envelope(msgspec.Struct, kw_only=True):
    """``revision`` is the store's and set on reading; ``generation`` counts changes of spec in meaning."""

    kind: str
    name: str
    uid: str
    project: str | None = None
    labels: dict[str, str] = {}
    owner: Ref | None = None
    revision: int = 0
    generation: int = 1
    schema: int = 1
    created_at: float = 0.0
    spec: msgspec.Raw = EMPTY
    status: msgspec.Raw = EMPTY
    report: msgspec.Raw = EMPTY
    conditions: list[Condition] = []
    deleting_since: float | None = None
    finalizers: list[str] = []

    @property
    def key(self) -> str:
        return object_key(self.kind, self.project, self.name)

    @property
    def ref(self) -> Ref:
        return Ref(kind=self.kind, name=self.name, uid=self.uid, project=self.project)

    def condition(self, type_: str) -> Condition | None:
        return next((c for c in self.conditions if c.type == type_), None)


_decoder = msgspec.json.Decoder(Envelope)
_encoder = msgspec.json.Encoder()


def decode_envelope(value: bytes, revision: int = 0) -> Envelope:
    """The envelope stored as ``value``, with the store's ``revision`` in it."""
    envelope = _decoder.decode(value)
    envelope.revision = revision
    return envelope


def encode_envelope(envelope: Envelope) -> bytes:
    return _encoder.encode(envelope)


def decode_part(raw: msgspec.Raw, type_: type[T]) -> T:
    """A spec, status or report as its struct; unknown fields are ignored (tolerant inside)."""
    return msgspec.json.decode(raw, type=type_)


@functools.cache
def field_names(type_: type[msgspec.Struct]) -> frozenset[str]:
    """The names of a struct's fields, as they stand in JSON."""
    return frozenset(field.encode_name for field in msgspec.structs.fields(type_))


def merge_part(raw: msgspec.Raw, part: msgspec.Struct | dict[str, Any]) -> msgspec.Raw:
    """``part`` as raw JSON, keeping top-level fields of ``raw`` that this process doesn't know."""
    new = part if isinstance(part, dict) else msgspec.to_builtins(part)
    known = new.keys() if isinstance(part, dict) else field_names(type(part))
    old = msgspec.json.decode(raw)
    unknown = {k: v for k, v in old.items() if k not in known} if isinstance(old, dict) else {}
    return msgspec.Raw(_encoder.encode({**unknown, **new}))


def set_condition(envelope: Envelope, condition: Condition) -> bool:
    """Put ``condition`` in place of the one of its type; True if anything but ``since`` changed."""
    for index, old in enumerate(envelope.conditions):
        if old.type != condition.type:
            continue
        if (old.status, old.reason, old.message, old.generation) == (
            condition.status,
            condition.reason,
            condition.message,
            condition.generation,
        ):
            return False
        since = old.since if old.status == condition.status else condition.since
        envelope.conditions = [*envelope.conditions]
        envelope.conditions[index] = msgspec.structs.replace(condition, since=since)
        return True
    envelope.conditions = [*envelope.conditions, condition]
    return True
