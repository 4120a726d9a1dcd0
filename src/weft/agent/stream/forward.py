"""Byte streams to a guest that need no agent in it: a TCP port in its network, and its screen. Woken by a stream.

Reads the ticket's input; acts through the network driver's and the runtime's optional protocols.
"""

from __future__ import annotations

import asyncio
import contextlib

from weft.agent.state.allocation import LocalAllocation
from weft.agent.stream.connection import Stream
from weft.agent.stream.guest_location import GuestLocator
from weft.agent.workload.runtimes import Driver
from weft.contracts.clock import Clock
from weft.contracts.driver.network import CanDial, NetworkDriver
from weft.contracts.driver.runtime import HasScreen
from weft.kinds.parts.stream_verbs import ForwardInput
from weft.objects.errors import Unavailable
from weft.objects.identity import short_id
from weft.protocol.frames import encode_exit

AGAIN_SECONDS = 0.5


async def serve_port(
    stream: Stream, network: NetworkDriver, local: LocalAllocation, given: ForwardInput, clock: Clock
) -> None:
    """Relay bytes to and from ``given.port`` of the guest; a closed port is tried for ``given.patience`` seconds. Raises
    Unavailable."""
    if not local.spec.nics:
        raise Unavailable(f"{local.short_name} has no network, so none of its ports can be reached", reason="noNetwork")
    if not isinstance(network, CanDial):
        raise Unavailable(f"network driver {network.name} can't reach the ports of workloads", reason="unsupported")
    nic = local.spec.nics[0]
    deadline = clock.elapsed() + given.patience
    while True:
        try:
            connection = await network.dial(short_id(nic.network_uid), nic.address, given.port)
            break
        except OSError as problem:
            if clock.elapsed() >= deadline:
                raise Unavailable(
                    f"{local.short_name}: nothing answers at {nic.address}:{given.port}: {problem.strerror or problem}",
                    reason="portUnreachable",
                    hint="check that it runs and listens on that port; weft vm logs shows its output",
                ) from problem
        await clock.sleep(AGAIN_SECONDS)
    await stream.carry(*await asyncio.open_connection(sock=connection))
    await stream.send(encode_exit(0))


async def serve_screen(stream: Stream, runtime: Driver, local: LocalAllocation, where: GuestLocator) -> None:
    """Relay RFB (VNC) to and from the guest's screen. Raises Unavailable for a guest without one, and (``guestMigrated``) when it
    has migrated: RFB begins with a greeting, so a viewer must reconnect; IllegalTransition if another cluster has it."""
    if not isinstance(runtime, HasScreen):
        raise Unavailable(f"runtime {runtime.name} has no screens", reason="unsupported")
    path = await runtime.screen_socket(local.id)
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError as problem:
        raise Unavailable(
            f"{local.short_name}: its screen can't be reached: {problem.strerror}", hint="check that it runs"
        ) from None
    with contextlib.suppress(ConnectionResetError):
        await stream.carry(reader, writer)
    if reader.at_eof() or reader.exception() is not None:  # it may hang up with bytes unread
        gone = await where.settle()
        if gone is not None and gone.refusal is not None:
            raise gone.refusal
        if gone is not None and gone.place is not None:
            raise Unavailable(
                f"it migrated to node {gone.place['node']}: reconnect the viewer",
                reason="guestMigrated",
            )
        await stream.send(encode_exit(0))
