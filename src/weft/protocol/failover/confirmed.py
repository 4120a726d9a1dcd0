"""Stamps of nodes that were confirmed, on their way from the controllers to the API server: a value beside a lease for each
node. It may be lost or be old: then guests run for a shorter time."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

CONFIRMED_PREFIX = "confirmed/"  # before the node's uid
CONFIRMED_SECONDS = 60.0  # after which nobody needs a value any more
HOLDER = "controllers"


def write_confirmed(stamps: Mapping[str, str]) -> bytes:
    """``stamps``: of one node, by the workload's uid."""
    return msgspec.msgpack.encode(dict(stamps))


def read_confirmed(written: bytes) -> dict[str, str]:
    """Empty if it can't be decoded."""
    try:
        return msgspec.msgpack.decode(written, type=dict[str, str]) if written else {}
    except msgspec.MsgspecError:
        return {}
