"""Another cluster's words about an Arrival, read as a stranger's, and the requests to it about one. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from weft.kinds.arrival import ARRIVAL
from weft.kinds.fields.cells import dig
from weft.objects.errors import InvalidInput, NotFound, WeftError, shorten

MOST_TEXT = 600  # characters of another cluster's words


OLDER = "olderRelease"


class SeenArrival(msgspec.Struct, frozen=True):
    """An Arrival as the other cluster shows it."""

    uid: str = ""
    phase: str = ""
    node: str = ""
    node_uid: str = ""
    allocation: str = ""
    address: str = ""
    pause_ms: int = 0
    never_ran: bool = False
    reason: str = ""
    message: str = ""
    name: str = ""


class ArrivalAct(msgspec.Struct, frozen=True):
    """A request to the other cluster."""

    what: Literal["create", "cancel", "settle"]
    name: str
    project: str
    own_project: str
    manifest: dict[str, Any] = {}


def read_seen(obj: Mapping[str, Any]) -> SeenArrival:
    """An Arrival from another cluster: text is cut, and what has another type isn't there."""

    def read(path: str, most: int = 80) -> str:
        value = dig(obj, path)
        return cut(value, most) if isinstance(value, str) else ""

    pause = dig(obj, "status.pause_ms")
    return SeenArrival(
        uid=read("uid"),
        phase=read("status.phase"),
        node=read("status.node"),
        node_uid=read("status.node_uid"),
        allocation=read("status.allocation"),
        address=_read_address(read("status.address")),
        pause_ms=pause if isinstance(pause, int) and 0 <= pause < 1 << 40 else 0,
        never_ran=dig(obj, "status.never_ran") is True,
        reason=read("status.reason"),
        message=read("status.message", MOST_TEXT),
        name=read("name"),
    )


def _read_address(text: str) -> str:
    """``text`` if it is an IP address with a port, to which a node here can connect; else ""."""
    host, _, port = text.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return ""
    return text if port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65_535 else ""


def read_absence(problem: WeftError) -> WeftError | None:
    """None if the other cluster says that it has no such Arrival; else the problem, also of one that knows no Arrivals."""
    if not isinstance(problem, NotFound):
        return problem
    if problem.details.get("kind") == ARRIVAL.name:
        return None
    return InvalidInput("its release is older, and knows no migrations between clusters", reason=OLDER)


def cut(text: str, most: int) -> str:
    """Another cluster's words, printable."""
    return "".join(one if one.isprintable() else " " for one in shorten(text, most))
