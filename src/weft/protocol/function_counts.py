"""Counts of functions at each gateway since its start: attached to a lease of its own and never stored, like a node's heartbeat.
Pure."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import msgspec

from weft.objects.identity import ServerIdentity

LEASE_PREFIX = "gateway/"  # before the gateway's name
LEASE_SECONDS = 15.0
MOST_FUNCTIONS = 800  # in a digest, which has 64 KB


class FunctionCounts(msgspec.Struct, array_like=True):
    """Counters of one function, all since the gateway's start: so they only grow, and a restart is seen as one."""

    invocations: int = 0  # that came, and were not refused by a limit
    errors: int = 0  # that the code ended with an error, or that were lost with their node
    throttles: int = 0
    seconds: float = 0.0  # that the code took, together


def name_gateway(server: ServerIdentity) -> str:
    """The name of a server's gateway, also a label that people see: another folder of a server of that name has another one."""
    return f"{server.name}-{server.uid[:8]}"


def read_gateway(name: str) -> str:
    """The server's name, of its gateway's."""
    return name.rpartition("-")[0]


def write_counts(counts: Mapping[str, FunctionCounts]) -> bytes:
    """Write counts by the functions' uids: of more than MOST_FUNCTIONS those that were invoked most."""
    names = heapq.nlargest(MOST_FUNCTIONS, counts, key=lambda uid: counts[uid].invocations)
    return msgspec.msgpack.encode({uid: counts[uid] for uid in names})


def read_counts(written: bytes) -> dict[str, FunctionCounts]:
    """Nothing if it can't be decoded: the gateway is of another version."""
    try:
        return msgspec.msgpack.decode(written, type=dict[str, FunctionCounts])
    except msgspec.MsgspecError:
        return {}
