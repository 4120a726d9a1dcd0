"""The header of a repository: the one object that is not encrypted. All keys are derived from its id and the secret, so without it
nothing can be read: it has a copy, and is made again where both are lost and somebody knows the id."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import msgspec

from weft.backup.errors import (
    ObjectMissing,
    header_altered,
    header_lost,
    is_full,
    no_repository,
    refused,
    too_new,
    wrong_key,
)
from weft.backup.format import CHUNK, HEADER, VERSION, decode_index, decode_manifest
from weft.backup.key import Keys, RepositoryKey
from weft.backup.storage.contract import Storage, list_own
from weft.objects.errors import DriverFailed, Forbidden, Unavailable, WeftError

HEADER_COPY = "clean-up/header"
_LIMIT = 64 << 10
_MOST_TRIED = 20  # manifests, and indexes of packs: all but one may be damaged


class Header(msgspec.Struct, kw_only=True):
    """``mac`` signs the rest of it."""

    format: str
    version: int
    id: str
    created: float
    chunk_bytes: int = CHUNK
    fingerprint: str = ""  # of the key
    mac: str = ""


class _PageInstead(ValueError):
    """A server that isn't one of S3, or lies, has the same answer for all that it is asked for."""


def make_header(identity: str, keys: Keys, now: float) -> Header:
    header = Header(format=HEADER, version=VERSION, id=identity, created=now, fingerprint=keys.fingerprint)
    header.mac = _sign(keys, header)
    return header


def has_header(storage: Storage) -> bool:
    with contextlib.suppress(ObjectMissing):
        storage.get(HEADER, 0, 1)
        return True
    return False


def holds_backups(storage: Storage) -> bool:
    return any(True for prefix in ("packs/", "backups/", "index/") for _ in islice(list_own(storage, prefix), 1))


def find_header(storage: Storage, key: RepositoryKey, ids: Callable[[], Iterable[str]], now: float) -> Header:
    """The header; where it is missing or damaged its copy; else one that is made from the first of ``ids`` with which ``key`` reads
    what is there. Raises NotFound (no repository is there), BackupAltered (one is, but its header can't be rebuilt), Forbidden."""
    problem: WeftError
    try:
        return _read(storage, HEADER, key)
    except ObjectMissing:
        problem = header_lost(storage.url) if holds_backups(storage) else no_repository(storage.url)
    except _PageInstead:
        problem = refused(storage.url, f"its answer for {HEADER} is a page or a listing, not an object")
    except (ValueError, msgspec.MsgspecError):
        problem = header_altered(storage.url)
    with contextlib.suppress(ObjectMissing, ValueError, msgspec.MsgspecError, Forbidden):
        return _read(storage, HEADER_COPY, key)
    for identity in dict.fromkeys(ids()):
        keys = key.keys_of(identity)
        if any(_opened(storage, keys)):
            return make_header(identity, keys, now)
    raise problem


def keep_header(storage: Storage, key: RepositoryKey, header: Header) -> None:
    """Write it and its copy where they are missing or damaged. One in another's hands is left, as is one that can't be written."""
    for place in (HEADER, HEADER_COPY):
        try:
            _read(storage, place, key)
        except (ObjectMissing, ValueError, msgspec.MsgspecError):
            _write(storage, place, header)
        except Forbidden:
            if place == HEADER_COPY:  # of a repository that lay here before
                _write(storage, place, header)


def _write(storage: Storage, place: str, header: Header) -> None:
    try:
        storage.put(place, msgspec.json.encode(header))
    except Forbidden:
        pass  # mounted read-only
    except Unavailable as problem:
        if not is_full(problem):
            raise


def _read(storage: Storage, place: str, key: RepositoryKey) -> Header:
    """Raises ObjectMissing; ValueError or MsgspecError if it is damaged; Forbidden if it is another key's, or a newer weft's."""
    data = storage.get(place, 0, _LIMIT)
    if data.startswith(b"<") and storage.url.startswith("s3://"):
        raise _PageInstead(place)
    header = msgspec.json.decode(data, type=Header)
    if header.format != HEADER:
        raise ValueError(header.format)
    if header.version > VERSION or header.chunk_bytes != CHUNK:
        raise too_new(storage.url, header.version)
    keys = key.keys_of(header.id)
    if header.fingerprint != keys.fingerprint:
        raise wrong_key(storage.url)
    if header.mac != _sign(keys, header):
        raise ValueError(header.mac)
    return header


def _opened(storage: Storage, keys: Keys) -> Iterator[bool]:
    """Whether these keys read what is there: of some manifests, then of some indexes of packs."""
    for found in islice(list_own(storage, "backups/"), _MOST_TRIED):
        with contextlib.suppress(WeftError, ObjectMissing):
            sealed = storage.get(found.key, version=found.version)
            decode_manifest(keys, found.key.removeprefix("backups/"), sealed)
            yield True
    for found in islice(list_own(storage, "index/"), _MOST_TRIED):
        with contextlib.suppress(DriverFailed, ObjectMissing):
            decode_index(keys, found.key.removeprefix("index/"), storage.get(found.key, version=found.version))
            yield True


def _sign(keys: Keys, header: Header) -> str:
    body = msgspec.json.encode([header.format, header.version, header.id, header.created, header.chunk_bytes])
    return keys.mac("header", body).hex()
