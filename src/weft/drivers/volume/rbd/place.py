"""The Ceph pool that a node offers, from its agent's option. Pure."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

import msgspec

from weft.objects.errors import InvalidInput

CONF, USER = "/etc/ceph/ceph.conf", "weft"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class RbdPlace(msgspec.Struct, frozen=True):
    pool: str
    conf: str = CONF
    user: str = USER


def read_place(text: str) -> RbdPlace:
    """``POOL[?conf=PATH&user=NAME]``. Raises InvalidInput."""
    pool, _, rest = text.partition("?")
    given = dict(parse_qsl(rest, keep_blank_values=True))
    place = RbdPlace(pool, given.pop("conf", CONF), given.pop("user", USER))
    if given or not _NAME.fullmatch(pool) or not place.conf.startswith("/") or not _NAME.fullmatch(place.user):
        raise InvalidInput(
            f"rbd:{text} is not a Ceph pool: write rbd:POOL, rbd:POOL?conf=PATH or rbd:POOL?conf=PATH&user=NAME",
            field="pool",
            hint="like --pool ceph=rbd:weft?conf=/etc/ceph/ceph.conf&user=weft",
        )
    return place
