"""Whether a port is free to be published: on every node, and on the server's machine.

Reads the digests in the nodes' leases; probes this machine's ports.
"""

from __future__ import annotations

import errno
import math
import socket

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.objects.envelope import decode_envelope
from weft.protocol.heartbeat import LEASE_PREFIX, HeldPorts, read_digest

# People and nodes need these on every machine, also on one that joins later.
RESERVED = {
    ("tcp", 22): "SSH",
    ("tcp", 53): "DNS",
    ("udp", 53): "DNS",
    ("udp", 67): "DHCP",
    ("udp", 68): "DHCP",
    ("udp", 4789): "VXLAN, by which nodes carry networks",
    ("udp", 8445): "agents, which answer each other's probes there",
}
FORCE_HINT = "--force-publish publishes it anyway; where a program of a node listens on it, that program keeps it"
_TRIES = 5
_PAUSE_SECONDS = 0.1
_LOOK_EVERY_SECONDS = 1.0
_MOST_NAMED = 3


def probe_port(address: str, port: int, protocol: str) -> bool:
    """True if a program could listen on ``address``:``port`` now; also for an address that this machine doesn't have."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as problem:
            return problem.errno not in (errno.EADDRINUSE, errno.EACCES)
    return True


async def is_port_free(address: str, port: int, protocol: str, clock: Clock) -> bool:
    """Like ``probe_port``, but patient for half a second: a published port that was just deleted is closed only now."""
    for _ in range(_TRIES):
        if probe_port(address, port, protocol):
            return True
        await clock.sleep(_PAUSE_SECONDS)
    return False


def find_reserved(port: int, protocol: str, served: tuple[str, ...]) -> str:
    """Purpose that the port is reserved for; "" if it isn't. ``served``: the server's own addresses (host:port, TCP)."""
    if protocol == "tcp" and any(place.rpartition(":")[2] == str(port) for place in served):
        return "this fabric's server"
    return RESERVED.get((protocol, port), "")


class NodePorts:
    """The ports that programs on the nodes listen on, as each node last reported."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._looked_at = -math.inf
        self._held: dict[str, HeldPorts] = {}  # by uid of the node

    async def find_holders(self, port: int, protocol: str) -> str:
        """The nodes where a program listens on the port, for people; "" if there are none. Raises StoreUnavailable."""
        now = self._clock.elapsed()
        if now - self._looked_at >= _LOOK_EVERY_SECONDS:
            leases = await self._store.leases(LEASE_PREFIX, digests=True)
            digests = ((lease.name.removeprefix(LEASE_PREFIX), read_digest(lease.digest)) for lease in leases)
            self._held = {uid: digest.held for uid, digest in digests if digest is not None}
            self._looked_at = now
        uids = {uid for uid, held in self._held.items() if port in (held.udp if protocol == "udp" else held.tcp)}
        return await self._name(uids) if uids else ""

    async def _name(self, uids: set[str]) -> str:
        page = await self._store.list("/node/")
        nodes = (decode_envelope(entry.value, entry.revision) for entry in page.entries)
        names = sorted(node.name for node in nodes if node.uid in uids)
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        return f"{'node' if len(names) == 1 else 'nodes'} {', '.join(names[:_MOST_NAMED])}{more}" if names else ""
