"""Whether something else on this machine already holds a port that a workload wants to publish here."""

from __future__ import annotations

import errno
import socket

from weft.contracts.clock import Clock

_TRIES = 5
_PAUSE_SECONDS = 0.1


def probe_port(address: str, port: int, protocol: str) -> bool:
    """True if ``address``:``port`` could be listened on now; also for an address this machine doesn't have."""
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
    """Like ``probe_port``, but patient for half a second: who served a publication just deleted lets go only now."""
    for _ in range(_TRIES):
        if probe_port(address, port, protocol):
            return True
        await clock.sleep(_PAUSE_SECONDS)
    return False
