"""Secrets on their way in: values are sealed before they are stored, and are in no answer, log or error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from weft.api.context import ApiContext
from weft.api.request.manifest import Manifest
from weft.kinds.record import Kind
from weft.kinds.secret import SealedSpec, check_values, place_of
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import InvalidInput, Unavailable
from weft.objects.spec_change import FieldChange
from weft.trust.seal import seal, unseal


def take_in(context: ApiContext, manifest: Manifest, current: Envelope | None) -> dict[str, Any]:
    """The spec of ``manifest`` with its values sealed, beside those that ``current`` has. An unchanged value keeps its seal.
    Raises InvalidInput, which never contains a value."""
    kind = manifest.kind
    if not kind.admission.seals:
        return manifest.spec
    before = decode_part(current.spec, SealedSpec).sealed if current is not None else {}
    kept = _read_kept(manifest.spec.get("sealed"), before)
    values = manifest.spec.get("values") or {}
    if not isinstance(values, dict):
        raise InvalidInput("spec.values must be a set of key: value", field="spec.values")
    for key, value in values.items():
        if not isinstance(value, str):
            at = f"spec.values.{str(key)[:60]}"
            raise InvalidInput(f"{at} must be text", field=at, hint="put it in quotes")
    check_values(SealedSpec(values=values))  # before a key becomes part of what is sealed
    kind.admission.check_values(values)
    sealed = dict(kept)
    made = kind.admission.makes_values(manifest.spec) if current is None else {}
    for key, value in {**made, **values}.items():
        place = place_of(manifest.project, manifest.name, key, kind.name)
        if key not in kept or _open(context, kept[key], place) != value:
            sealed[key] = seal(context.settings.seal_key, value.encode(), place)
    return {**manifest.spec, "values": {}, "sealed": sealed}


def hide_changes(kind: Kind, changes: list[FieldChange]) -> list[FieldChange]:
    """``changes`` without sealed values: only that the value of a key changed."""
    if not kind.admission.seals:
        return changes
    words = {False: None, True: "(sealed)"}
    return [
        msgspec.structs.replace(
            change,
            path=change.path.replace("spec.sealed", "spec.values", 1),
            old=words[change.old is not None],
            new="(sealed again)"
            if change.old is not None and change.new is not None
            else words[change.new is not None],
        )
        if change.path.startswith("spec.sealed")
        else change
        for change in changes
    ]


def _read_kept(given: Any, before: Mapping[str, str]) -> dict[str, str]:
    """A client may send back the sealed values that it read, or some of them."""
    if given is None:
        return dict(before)
    if not isinstance(given, dict) or any(before.get(key) != value for key, value in given.items()):
        raise InvalidInput(
            "spec.sealed is set by the server", field="spec.sealed", hint="give the values in spec.values"
        )
    return dict(given)


def _open(context: ApiContext, sealed: str, place: str) -> str | None:
    try:
        return unseal(context.settings.seal_key, sealed, place).decode()
    except Unavailable:
        return None
