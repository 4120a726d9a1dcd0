"""Changes of a request, as the audit log has them: fields before and after, without secrets, and within bounds. Pure."""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from weft.api.request.call import Change
from weft.kinds.registry import BY_NAME
from weft.objects.envelope import Envelope, decode_part
from weft.objects.spec_change import FieldChange
from weft.trust.audit_chain import AuditChange, AuditObject
from weft.trust.redaction import HIDDEN, hide_in_data, hide_in_text, is_private

MOST_BYTES = 8192  # of all changes in one record
_LONGEST = 1024  # bytes of one value
_MOST_KEYS = 64
_LEAST = 56  # bytes of a change with plain values
_PLAIN = (bool, int, float, type(None))  # no secrets
_SUSPECT = re.compile(r"[:=_ ]|eyJ|AKIA|ASIA|WEFT|-----")  # what any secret in a text has that trust/redaction.py finds
_encode = msgspec.json.Encoder().encode


def describe_objects(changed: Sequence[Change]) -> tuple[list[AuditObject], int]:
    """The objects with their changes, and how many changes didn't fit."""
    found: list[AuditObject] = []
    left_out, free = 0, MOST_BYTES
    same: tuple[msgspec.Raw, list[AuditChange], int] | None = None  # of a new object: most of a batch have one spec
    for change in changed:
        envelope = change.envelope
        is_plain = change.action == "created" and not envelope.labels
        changes: list[AuditChange] = []
        if free <= 0:
            left_out += 1
        elif same is not None and is_plain and envelope.spec is same[0] and same[2] < free:
            _, changes, size = same
            free -= size
        else:
            changes, size, more = _describe_changes(change, free)
            free, left_out = free - size, left_out + more
            same = (envelope.spec, changes, size) if is_plain and not more else None
        found.append(
            AuditObject(kind=envelope.kind, name=envelope.name, uid=envelope.uid, action=change.action, changes=changes)
        )
    return found, left_out


def _describe_changes(change: Change, free: int) -> tuple[list[AuditChange], int, int]:
    """The changes that fit into ``free`` bytes, about how many bytes they have, and how many didn't fit."""
    changes: list[AuditChange] = []
    size = left_out = 0
    listed = _list_given(change.envelope) if change.action == "created" else change.changes
    if change.labels is not None or (change.action == "created" and change.envelope.labels):
        listed = [*listed, FieldChange("labels", change.labels, change.envelope.labels, "live")]
    for one in listed:
        if size >= free:
            left_out += 1
            continue
        field, old, new = one.path, one.old, one.new
        size += _LEAST + len(field)
        if not isinstance(old, _PLAIN):
            old, more = _hide(field, old)
            size += more
        if not isinstance(new, _PLAIN):
            new, more = _hide(field, new)
            size += more
        changes.append(AuditChange(field=field, old=old, new=new))
    return changes, size, left_out


def _list_given(envelope: Envelope) -> list[FieldChange]:
    """The fields of a new object's spec that differ from their defaults, secrets and all."""
    kind = BY_NAME[envelope.kind]
    spec = decode_part(envelope.spec, kind.spec)
    names, defaults = _read_defaults(kind.spec)
    values = msgspec.structs.astuple(spec)
    differing = itertools.compress(zip(names, values, strict=True), map(operator.ne, values, defaults))
    if kind.admission.seals:
        return [_given("values" if name == "sealed" else name, value) for name, value in differing]
    return [_given(name, msgspec.to_builtins(value)) for name, value in differing]


def _given(name: str, value: Any) -> FieldChange:
    return FieldChange(f"spec.{name}", None, value, "live")


@functools.cache
def _read_defaults(type_: type[msgspec.Struct]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    fields = msgspec.structs.fields(type_)
    defaults = (
        field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default for field in fields
    )
    return tuple(field.encode_name for field in fields), tuple(defaults)


def _hide(path: str, value: Any) -> tuple[Any, int]:
    """``value`` of the field at ``path`` as it may be kept, and about how many bytes that has."""
    if not value:
        return value, 8
    if _is_hidden(path):
        if isinstance(value, dict):
            return dict.fromkeys(itertools.islice(value, _MOST_KEYS), HIDDEN), 20 * len(value)
        return HIDDEN, len(HIDDEN)
    if isinstance(value, str):
        text = hide_in_text(value) if _SUSPECT.search(value) else value
        return _shorten(text)
    encoded = _encode(value)
    if _SUSPECT.search(encoded.decode()):
        value = hide_in_data(value)
        encoded = _encode(value)
    return (value, len(encoded)) if len(encoded) <= _LONGEST else _shorten(encoded.decode())


def _shorten(text: str) -> tuple[str, int]:
    return (text, len(text)) if len(text) <= _LONGEST else (f"{text[:_LONGEST]}…", _LONGEST)


@functools.lru_cache(4096)
def _is_hidden(path: str) -> bool:
    parts = path.split(".")
    return any(map(is_private, parts))
