"""Secrets on their way in: values are sealed before they are stored, and are in no answer, log or error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from weft.api.context import ApiContext
from weft.api.request.manifest import Manifest
from weft.kinds.backup_repository import BACKUP_REPOSITORY, KEY
from weft.kinds.parts.snapshot.backed_up import USE, SealedElsewhere
from weft.kinds.record import Kind
from weft.kinds.secret import SECRET, SealedSpec, check_values, place_of
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import InvalidInput, NotFound, Unavailable
from weft.objects.identity import object_key
from weft.objects.schema import read_strict
from weft.objects.spec_change import FieldChange
from weft.trust.seal import derive_key, unseal


def take_in(context: ApiContext, manifest: Manifest, current: Envelope | None) -> dict[str, Any]:
    """The spec of ``manifest`` with its values sealed, beside those that ``current`` has. An unchanged value keeps its seal.
    Raises InvalidInput, which never contains a value."""
    kind = manifest.kind
    if not kind.admission.seals:
        return manifest.spec
    before = decode_part(current.spec, SealedSpec).sealed if current is not None else {}

    def place(key: str) -> str:
        return place_of(manifest.project, manifest.name, key, kind.name)

    kept = _read_kept(context, manifest.spec.get("sealed"), before, place)
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
        if key not in kept or _open(context, kept[key], place(key)) != value:
            sealed[key] = context.settings.seal_keys.seal(value.encode(), place(key))
    return {**manifest.spec, "values": {}, "sealed": sealed}


async def open_backed_up(context: ApiContext, manifest: Manifest) -> Manifest:
    """``manifest``, of a secret from a backup with the values that are sealed there. Raises NotFound, InvalidInput."""
    if manifest.kind is not SECRET or not manifest.spec.get("from_backup"):
        return manifest
    given = read_strict(manifest.spec["from_backup"], SealedElsewhere, "spec.from_backup")
    entry = await context.store.get(object_key(BACKUP_REPOSITORY.name, None, given.repository))
    if entry is None:
        raise NotFound(f'backup repository "{given.repository[:80]}" not found', field="spec.from_backup.repository")
    own = decode_part(decode_envelope(entry.value).spec, SealedSpec).sealed[KEY]
    place = place_of(None, given.repository, KEY, BACKUP_REPOSITORY.name)
    key = derive_key(bytes.fromhex(context.settings.seal_keys.unseal(own, place).decode()), USE)
    values = dict(manifest.spec.get("values") or {})
    for word, sealed in given.values.items():
        try:
            values[word] = unseal(key, sealed, place_of(given.project, given.name, word)).decode()
        except Unavailable:
            raise InvalidInput(
                f"spec.from_backup.values.{word[:60]} can't be opened with the key of repository {given.repository}",
                field="spec.from_backup",
                hint="restore the backup from the repository that it is in",
            ) from None
    spec = {**manifest.spec, "values": values, "from_backup": None}
    return msgspec.structs.replace(manifest, spec=spec)


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


def _read_kept(
    context: ApiContext, given: Any, before: Mapping[str, str], place: Callable[[str], str]
) -> dict[str, str]:
    """A client may send back the sealed values that it read, or some of them."""
    if given is None:
        return dict(before)
    if isinstance(given, dict) and all(
        _is_same(context, before.get(key), value, place(key)) for key, value in given.items()
    ):
        return {key: before[key] for key in given}
    raise InvalidInput(
        "spec.sealed is set by the server, and isn't what the object has now",
        field="spec.sealed",
        hint="get the object again if its values were sealed again since; else give the values in spec.values",
    )


def _is_same(context: ApiContext, kept: str | None, given: object, place: str) -> bool:
    """Whether it is the sealed value, or was until a rotation sealed that again."""
    if kept is None or not isinstance(given, str):
        return False
    if given == kept:
        return True
    opened = _open(context, given, place)
    return opened is not None and opened == _open(context, kept, place)


def _open(context: ApiContext, sealed: str, place: str) -> str | None:
    try:
        return context.settings.seal_keys.unseal(sealed, place).decode()
    except Unavailable:
        return None
