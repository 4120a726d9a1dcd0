"""Find what the former key sealed, and seal it again with the new one: values of secrets, links, backup repositories and volumes,
hashes of passwords, and access keys. An object changes in nothing else, and keeps its generation: it means the same."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from weft.contracts.store import AtRevision, Entry, PreconditionFailed, Put, Store
from weft.kinds.record import Kind
from weft.kinds.registry import KINDS
from weft.kinds.secret import place_of
from weft.kinds.token import TOKEN, TokenMarks
from weft.kinds.user import USER, UserMarks, place_of_password
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope, merge_part
from weft.objects.identity import kind_prefix
from weft.protocol.server.rotation import Rotation
from weft.trust.access_keys import derive_secret, place_of_access_key
from weft.trust.seal import SealKeys, is_sealed_with, name_key

PAGE_ENTRIES = 200


class Resealed(NamedTuple):
    """Outcome of a walk through the store."""

    written: int  # objects
    unopened: list[str]  # KIND/NAME of those with a value that no key opens


class _Unopened(Exception):
    """No key opens a value."""


def list_sealing() -> list[Kind]:
    """The kinds whose objects have something sealed."""
    return [kind for kind in KINDS if kind.admission.seals or kind in (USER, TOKEN)]


async def reseal_all(store: Store, keys: SealKeys, rotation: Rotation) -> Resealed:
    """Seal again, with the first of ``keys``, all that another of them sealed. Raises what the store raises."""
    count, unopened = 0, list[str]()
    for kind in list_sealing():
        after = None
        while True:
            page = await store.list(kind_prefix(kind.name), limit=PAGE_ENTRIES, after=after)
            for entry in page.entries:
                found: Entry | None = entry
                while found is not None:
                    before = decode_envelope(found.value, found.revision)
                    try:
                        fresh = reseal(before, kind, keys, rotation)
                    except _Unopened:
                        unopened.append(f"{kind.name}/{before.name}")
                        break
                    if fresh is None:
                        break
                    if await _write(store, found, fresh):
                        count += 1
                        break
                    found = await store.get(found.key)
            after = page.next
            if after is None:
                break
    return Resealed(count, unopened)


def reseal(envelope: Envelope, kind: Kind, keys: SealKeys, rotation: Rotation) -> Envelope | None:
    """The object with its values sealed by the first of ``keys``; None if they are. Raises _Unopened for a value that none opens,
    once the others are as they should be."""
    fresh = msgspec.structs.replace(envelope)
    if kind is USER:
        marks = decode_part(envelope.marks, UserMarks)
        sealed = _seal_again(keys, marks.password, place_of_password(envelope.uid)) if marks.password else ""
        fresh.marks = merge_part(envelope.marks, UserMarks(password=sealed))
        return fresh if sealed != marks.password else None
    if kind is TOKEN:
        return _reseal_access_key(envelope, fresh, keys, rotation)
    spec = msgspec.json.decode(envelope.spec) if envelope.spec else {}
    values: dict[str, str] = spec.get("sealed") or {}
    changed, has_unopened = {}, False
    for word, value in values.items():
        try:
            changed[word] = _seal_again(keys, value, place_of(envelope.project, envelope.name, word, kind.name))
        except _Unopened:
            changed[word], has_unopened = value, True
    if changed != values:  # the next walk reports a value that no key opens
        fresh.spec = msgspec.Raw(msgspec.json.encode({**spec, "sealed": changed}))
        return fresh
    if has_unopened:
        raise _Unopened
    return None


def _reseal_access_key(envelope: Envelope, fresh: Envelope, keys: SealKeys, rotation: Rotation) -> Envelope | None:
    marks = decode_part(envelope.marks, TokenMarks)
    if not marks.key_id:
        return None
    place = place_of_access_key(marks.key_id)
    if marks.sealed:
        sealed = _seal_again(keys, marks.sealed, place)
    else:  # of an earlier release, which knew one key only
        former = keys.find(rotation.former)
        if former is None:
            raise _Unopened
        sealed = keys.seal(derive_secret(former, marks.key_id).encode(), place)
    if sealed == marks.sealed:
        return None
    fresh.marks = merge_part(envelope.marks, msgspec.structs.replace(marks, sealed=sealed))
    return fresh


def _seal_again(keys: SealKeys, sealed: str, place: str) -> str:
    """``sealed``, if the first key has sealed it; else sealed with that. Raises _Unopened."""
    first, *others = keys.keys
    if is_sealed_with(first, sealed, place):
        return sealed
    if not any(is_sealed_with(key, sealed, place) for key in others):
        raise _Unopened(name_key(first))
    return keys.seal(keys.unseal(sealed, place), place)


async def _write(store: Store, entry: Entry, fresh: Envelope) -> bool:
    """Write the object; False if another write came first."""
    try:
        await store.commit([Put(entry.key, encode_envelope(fresh))], [AtRevision(entry.key, entry.revision)])
    except PreconditionFailed:
        return False
    return True
