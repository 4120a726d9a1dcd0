"""The one shape of every object. ``spec``, ``actions``, ``marks``, ``status`` and ``report`` stay raw JSON here, so that a process
that knows only some of their fields passes the others on untouched; a writer encodes only its own part again."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import msgspec

from weft.objects.identity import Ref, object_key
from weft.objects.unknown_fields import field_names, keep_unknown

EMPTY = msgspec.Raw(b"{}")
Part = msgspec.Raw | msgspec.UnsetType  # left out of objects whose kind has none
T = TypeVar("T")


class Condition(msgspec.Struct, frozen=True):
    """One statement about an object, written by one controller."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str = ""  # stable; programs may match on it
    message: str = ""
    since: float = 0.0  # unix seconds; changes only with ``status``
    generation: int = 0  # of the spec that it is about


class Envelope(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Any object. Decode it with ``decode_envelope``."""

    kind: str
    name: str
    uid: str  # never given twice
    project: str | None = None  # None: the kind is fabric-wide
    labels: dict[str, str] = {}
    owner: Ref | None = None  # the object that it belongs to
    revision: int = 0  # the store's; changes with every write
    generation: int = 1  # counts changes of the spec's meaning
    schema: int = 1  # of its kind, when it was written
    created_at: float = 0.0  # unix seconds
    created_by: str | msgspec.UnsetType = msgspec.UNSET  # a user's name, or token:NAME; left out: weft itself
    spec: msgspec.Raw = EMPTY  # what people asked for
    actions: Part = msgspec.UNSET  # what verbs asked for
    marks: Part = msgspec.UNSET  # what was decided of it, beside what people want
    status: msgspec.Raw = EMPTY  # what the controllers say of it
    report: msgspec.Raw = EMPTY  # what the node says of it
    conditions: list[Condition] = []
    deleting_since: float | None = None  # unix seconds; None: it isn't being deleted
    finalizers: list[str] = []  # each holds the object until its controller removes it
    trace: str | msgspec.UnsetType = msgspec.UNSET  # of the newest write by people: TRACE-SPAN-TIME in hex digits
    unknown: dict[str, msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET  # fields of a newer weft

    @property
    def key(self) -> str:
        return object_key(self.kind, self.project, self.name)

    @property
    def ref(self) -> Ref:
        return Ref(kind=self.kind, name=self.name, uid=self.uid, project=self.project)

    @property
    def creator(self) -> str:
        """The creator: a user's name, or token:NAME for a token that belongs to no user. "": weft itself, or unknown."""
        return self.created_by if self.created_by is not msgspec.UNSET else ""

    def owner_key(self, kind: str) -> str | None:
        """The key of its owner, if that is of ``kind``."""
        owner = self.owner
        return object_key(kind, owner.project, owner.name) if owner is not None and owner.kind == kind else None

    def condition(self, type_: str) -> Condition | None:
        for condition in self.conditions:
            if condition.type == type_:
                return condition
        return None


_REVISION = re.compile(rb'"revision":[0-9]+')
_decoder = msgspec.json.Decoder(Envelope)
_encoder = msgspec.json.Encoder()
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}  # by type: to make one takes longer than to use it


def decode_envelope(value: bytes | msgspec.Raw, revision: int | None = None) -> Envelope:
    """The envelope stored as ``value``, with the store's ``revision`` in it."""
    try:
        envelope = _decoder.decode(value)
    except msgspec.ValidationError:
        envelope = _decode_newer(value)
    if revision is not None:
        envelope.revision = revision
    return envelope


def _decode_newer(value: bytes | msgspec.Raw) -> Envelope:
    """An envelope with fields that this process doesn't know. Raises msgspec.ValidationError if anything else is wrong."""
    fields = msgspec.json.decode(value, type=dict[str, msgspec.Raw])
    known = field_names(Envelope)
    envelope = _decoder.decode(_encoder.encode({name: raw for name, raw in fields.items() if name in known}))
    envelope.unknown = {name: msgspec.Raw(bytes(raw)) for name, raw in fields.items() if name not in known}
    return envelope


def encode_envelope(envelope: Envelope) -> bytes:
    if not envelope.unknown:
        return _encoder.encode(envelope)
    known = _encoder.encode(msgspec.structs.replace(envelope, unknown=msgspec.UNSET))
    return known[:-1] + b"," + _encoder.encode(envelope.unknown)[1:]


def show_revision(value: bytes, revision: int) -> bytes:
    """The envelope stored as ``value``, with the store's ``revision`` in it, without being decoded. What stands before that is text
    and labels, which are text too: the first revision that is a number is the envelope's."""
    return _REVISION.sub(b'"revision":%d' % revision, value, 1)


def decode_part(raw: Part, type_: type[T]) -> T:
    """One of an object's parts as its struct; unknown fields are ignored (tolerant inside)."""
    decoder = _decoders.get(type_)
    if decoder is None:
        decoder = _decoders[type_] = msgspec.json.Decoder(type_)
    found: T = decoder.decode(EMPTY if raw is msgspec.UNSET else raw)
    return found


def merge_part(given: Part, part: msgspec.Struct | dict[str, Any], before: msgspec.Struct | None = None) -> msgspec.Raw:
    """``part`` as raw JSON, with the fields of ``given`` that this process doesn't know, at any depth: those of a list's element
    stay with an element that is otherwise the same. ``before`` is ``given`` decoded, if the caller has it."""
    raw = EMPTY if isinstance(given, msgspec.UnsetType) else given
    if isinstance(part, dict):
        old = msgspec.json.decode(raw)
        return msgspec.Raw(_encoder.encode({**old, **part} if isinstance(old, dict) else part))
    if bytes(raw) == _encoder.encode(before) if before is not None else _is_known(raw, type(part)):
        return msgspec.Raw(_encoder.encode(part))
    old, new = msgspec.json.decode(raw), msgspec.to_builtins(part)
    return msgspec.Raw(_encoder.encode(keep_unknown(old, new, type(part))))


def _is_known(raw: msgspec.Raw, type_: type[msgspec.Struct]) -> bool:
    """Whether ``raw`` has only fields of ``type_``; False also where that isn't certain."""
    value = bytes(raw)
    try:
        return value == b"{}" or _encoder.encode(msgspec.json.decode(value, type=type_)) == value
    except msgspec.ValidationError:
        return False  # written by a newer weft


def take_from_spec(
    *, actions: type[msgspec.Struct] | None = None, marks: type[msgspec.Struct] | None = None
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The upgrade of a kind whose verbs and controllers wrote fields of the spec, which are those of ``actions`` and ``marks``
    now."""

    def take(stored: dict[str, Any]) -> dict[str, Any]:
        spec, parts = dict(stored.get("spec") or {}), dict[str, dict[str, Any]]()
        for part, type_ in (("actions", actions), ("marks", marks)):
            if type_ is not None:
                own = {name: spec.pop(name) for name in field_names(type_) if name in spec}
                parts[part] = {**own, **(stored.get(part) or {})}
        return {**stored, "spec": spec, **parts}

    return take


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
