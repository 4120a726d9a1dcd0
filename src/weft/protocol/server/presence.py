"""Contents of a server's lease: where it is reached, and which program it runs. It is attached to the lease, which lives while the
server serves, and never stored. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.kinds.parts.packages import InstallOutcome
from weft.kinds.server import StoreUse

LEASE_PREFIX = "server/"  # before the server's name
LEASE_SECONDS = 10.0
SCHEDULES = "schedules"  # the lease of the gateway that fires functions' schedules
MOST_PLACE = 300  # characters of an address
MOST_ADDRESSES = 64  # of one server's machine; more are not known to others


class Presence(msgspec.Struct, frozen=True, omit_defaults=True):
    uid: Annotated[str, msgspec.Meta(max_length=64)]  # of the server's state folder
    address: Annotated[str, msgspec.Meta(max_length=MOST_PLACE)] = ""  # URL of its API
    gateway: Annotated[str, msgspec.Meta(max_length=MOST_PLACE)] = ""  # HOST:PORT for streams
    functions: Annotated[str, msgspec.Meta(max_length=MOST_PLACE)] = ""  # HOST:PORT for callers of functions
    member: Annotated[str, msgspec.Meta(max_length=64)] = ""  # HOST:PORT of its member of the store
    addresses: Annotated[list[str], msgspec.Meta(max_length=MOST_ADDRESSES)] = []  # IPv4, of its machine
    api_ports: Annotated[list[int], msgspec.Meta(max_length=MOST_ADDRESSES)] = []  # of its API and its streams
    function_ports: Annotated[list[int], msgspec.Meta(max_length=MOST_ADDRESSES)] = []
    store: StoreUse | None = None
    free: int | None = None  # bytes, on the disk of its member of the store
    release: Annotated[str, msgspec.Meta(max_length=64)] = ""
    installed: InstallOutcome | None = None  # what became of the last packages of an upgrade
    by_hand: Annotated[str, msgspec.Meta(max_length=MOST_PLACE)] = ""  # why packages can't be installed there
    seal_keys: Annotated[
        list[str], msgspec.Meta(max_length=16)
    ] = []  # ids of the keys that it has; the first one seals
    started_at: float = 0.0  # unix seconds
    trouble: Annotated[str, msgspec.Meta(max_length=MOST_PLACE)] = ""  # why it isn't Ready, though it runs
    sent_at: float = 0.0  # unix seconds, by its clock
    is_known: bool = False  # it has seen its object: if that is gone, people have deleted it


def name_holder(name: str, uid: str) -> str:
    """The holder of a lease that a server's process takes: no two servers have the same."""
    return f"{name}:{uid}"


def read_server(holder: str) -> str:
    """The server's name, of a lease's holder."""
    return holder.partition(":")[0]


def encode_presence(presence: Presence) -> bytes:
    return msgspec.json.encode(presence)


def read_presence(digest: bytes) -> Presence | None:
    """None for what another release may have written, and this one can't read."""
    try:
        return msgspec.json.decode(digest, type=Presence)
    except msgspec.MsgspecError:
        return None
