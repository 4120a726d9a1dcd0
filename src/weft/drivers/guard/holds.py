"""The guests that the guard lets run, and until when. Pure: requests and CLOCK_BOOTTIME in, what to end out.

Imports the standard library only, as ``process`` does. A guest whose time is over stays here: it is ended again for as long as
anything is in its groups, so one that a stopped agent begins to start too late doesn't run either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

MOST_HOLDS = 1000
MOST_REQUEST_BYTES = 64 << 10
AT_ONCE = 50  # guests in a request, at most
_FRAME_BYTES = 100  # of a request, around what it renews
MOST_GROUPS, MOST_PATH = 16, 512
MOST_ID = 64
LOOK_SECONDS = 0.1  # between two looks at the groups of a guest whose time is over
FORMAT = 1


class Hold(NamedTuple):
    """The hold of one guest."""

    until: float  # seconds of CLOCK_BOOTTIME: nothing of it runs later
    groups: tuple[str, ...]  # folders of its control groups
    ended_at: float = 0.0  # when something of it was ended, by the same clock; 0: nothing since ``until`` was set


class HoldRequest(NamedTuple):
    """``renew``: by the guest's id, and only those; ``drop``: ids of guests that may run for good, or are gone."""

    renew: dict[str, Hold]
    drop: tuple[str, ...]


Holds = dict[str, Hold]


def read_request(data: bytes) -> HoldRequest:
    """Raises ValueError, which says what is wrong, without what came."""
    if len(data) > MOST_REQUEST_BYTES:
        raise ValueError(f"the request is longer than {MOST_REQUEST_BYTES} bytes")
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("the request is not JSON") from None
    if not isinstance(given, dict) or given.keys() - {"renew", "drop"}:
        raise ValueError("the request must be an object with renew and drop")
    renew, drop = given.get("renew", {}), given.get("drop", [])
    if not isinstance(renew, dict) or not isinstance(drop, list) or not all(_is_id(one) for one in (*renew, *drop)):
        raise ValueError(f"renew must be an object and drop a list, with ids of at most {MOST_ID} characters")
    return HoldRequest({name: _read_hold(one) for name, one in renew.items()}, tuple(drop))


def apply_request(holds: Holds, request: HoldRequest) -> Holds:
    """Raises ValueError for too many guests; then nothing has changed."""
    after = {name: one for name, one in holds.items() if name not in request.drop} | request.renew
    if len(after) > MOST_HOLDS:
        raise ValueError(f"the guard holds at most {MOST_HOLDS} guests")
    return after


def list_due(holds: Mapping[str, Hold], now: float) -> list[str]:
    """The guests whose time is over."""
    return [name for name, one in holds.items() if one.until <= now]


def note_ended(holds: Holds, name: str, now: float) -> Holds:
    """Something of the guest was there after its time, and was ended."""
    return {**holds, name: holds[name]._replace(ended_at=now)}


def find_next(holds: Mapping[str, Hold], now: float) -> float | None:
    """When to look again; None: nothing is held."""
    return min((one.until if one.until > now else now + LOOK_SECONDS for one in holds.values()), default=None)


def write_holds(holds: Mapping[str, Hold], boot_id: str) -> bytes:
    return json.dumps({"format": FORMAT, "boot": boot_id, "holds": holds}).encode()


def write_answer(holds: Mapping[str, Hold], boot_id: str) -> bytes:
    """Write the holds that a caller needs: until when, and when ended. With the groups of ``MOST_HOLDS`` it would be longer than a
    packet may be."""
    held = {name: [one.until, one.ended_at] for name, one in holds.items()}
    return json.dumps({"format": FORMAT, "boot": boot_id, "held": held}).encode()


def read_answer(data: bytes, boot_id: str) -> Holds:
    """Read holds as ``write_answer`` wrote them, without their groups; also what a guard of an older release answers, which agents
    outlive. Raises ValueError."""
    given = json.loads(data)
    if not isinstance(given, dict) or not isinstance(held := given.get("held"), dict):
        return read_holds(data, boot_id)
    whole = {
        name: _read_hold([one[0], ["/"], one[1]])
        for name, one in held.items()
        if isinstance(one, list) and len(one) == 2
    }
    if len(whole) < len(held):
        raise ValueError("what is held must be [until, ended]")
    return {name: one._replace(groups=()) for name, one in whole.items()} if given.get("boot") == boot_id else {}


def split_renewal(renew: Mapping[str, list[Any]]) -> list[dict[str, list[Any]]]:
    """Parts that each fit into a request."""
    parts, free = list[dict[str, list[Any]]](), 0
    for name, one in renew.items():
        size = len(json.dumps({name: one}))
        if size > free or len(parts[-1]) >= AT_ONCE:
            parts.append({})
            free = MOST_REQUEST_BYTES - _FRAME_BYTES
        parts[-1][name] = one
        free -= size
    return parts


def read_holds(data: bytes, boot_id: str) -> Holds:
    """Those of this boot: another one's clock began anew, and its guests are gone. Raises ValueError for a damaged file."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("the file is not JSON") from None
    if not isinstance(given, dict) or not isinstance(holds := given.get("holds"), dict):
        raise ValueError("the file is not one of a guard")
    return {name: _read_hold(one) for name, one in holds.items()} if given.get("boot") == boot_id else {}


def _is_id(given: Any) -> bool:
    return isinstance(given, str) and 1 <= len(given) <= MOST_ID


def _read_hold(given: Any) -> Hold:
    if not isinstance(given, list) or not 2 <= len(given) <= 3 or not isinstance(given[1], list):
        raise ValueError("a hold must be [until, groups]")
    until, groups, ended = given[0], given[1], given[2] if len(given) == 3 else 0.0
    if not all(isinstance(one, int | float) and 0 <= one < 1e12 for one in (until, ended)):
        raise ValueError("until must be seconds of CLOCK_BOOTTIME")
    paths = all(isinstance(one, str) and one.startswith("/") and len(one) <= MOST_PATH for one in groups)
    if not 1 <= len(groups) <= MOST_GROUPS or not paths:
        raise ValueError(f"groups must be 1 to {MOST_GROUPS} absolute paths of at most {MOST_PATH} characters")
    return Hold(float(until), tuple(groups), float(ended))
