"""Decide the steps by which all servers replace the key that seals secrets. Each changes its own keys by the record, and says in
its lease which it has; the next step begins when all have done the last. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from weft.protocol.server.presence import Presence
from weft.protocol.server.rotation import DROPPED, SWITCHED, Rotation, Step
from weft.trust.seal import MOST_KEYS, name_key

SETTLE_SECONDS = 30.0  # for which a request may be under way that has sealed with the former key, and not written yet
ORPHANED_SECONDS = 60.0  # a lease says what a server had some seconds ago
_NEXT: dict[Step, Step] = {"spread": "switch", "switch": "reseal", "reseal": "drop", "drop": "done"}


def arrange_keys(keys: Sequence[bytes], rotation: Rotation) -> list[bytes]:
    """The server's own keys as the rotation's step has them, as far as it has the new one: the first one seals."""
    new = [key for key in keys if name_key(key) == rotation.key]
    if not new or rotation.step not in SWITCHED:
        return list(keys)
    if rotation.step in DROPPED:
        return new[:1]
    return [new[0], *(key for key in keys if key != new[0])]


def add_keys(keys: Sequence[bytes], found: Sequence[bytes]) -> list[bytes]:
    """``keys``, and those in ``found``, which open from now on. Where they are too many, of which most were of rotations that never
    began, the last of ``keys`` go."""
    fresh = [key for key in dict.fromkeys(found) if key not in keys][: MOST_KEYS - 1]
    return [*keys[: MOST_KEYS - len(fresh)], *fresh]


def list_waiting(rotation: Rotation, servers: Collection[str], present: Mapping[str, Presence]) -> dict[str, str]:
    """The servers of the fabric that haven't done the rotation's step yet, each with the reason."""
    if rotation.step in ("reseal", "done"):
        return {}
    found = {}
    for name in sorted({*servers, *present}):
        one = present.get(name)
        if one is None:
            found[name] = "it doesn't answer"
        elif not one.seal_keys:
            found[name] = f"it runs weft {one.release or 'of an earlier release'}, which has no rotation"
        elif rotation.key not in one.seal_keys:
            found[name] = "it doesn't have the new key yet"
        elif rotation.step in SWITCHED and one.seal_keys[0] != rotation.key:
            found[name] = "it seals with the former key yet"
        elif rotation.step in DROPPED and len(one.seal_keys) > 1:
            found[name] = "it has the former key yet"
    return found


def advance(rotation: Rotation, now: float) -> Rotation:
    """The rotation at its next step."""
    step = _NEXT[rotation.step]
    finished = now if step == "done" else None
    return msgspec.structs.replace(rotation, step=step, changed_at=now, finished_at=finished)


def is_orphaned(rotation: Rotation, servers: Collection[str], present: Mapping[str, Presence], now: float) -> bool:
    """Whether no server has its key, as after a restore: all of them are there, and have had the time to report their keys.
    Nothing was ever sealed with it."""
    return (
        rotation.step == "spread"
        and now - rotation.begun_at > ORPHANED_SECONDS
        and set(servers) <= set(present)
        and all(rotation.key not in one.seal_keys for one in present.values())
    )
