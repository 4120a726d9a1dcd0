"""Cuts off who has an image open: on the cluster's blocklist its clients can write nothing any more, wherever they are.

RBD's exclusive lock alone is no fence: a client that lives gives it to the next one that asks, and takes it back.
"""

from __future__ import annotations

from weft.drivers.linux.ceph.programs import CephClient
from weft.objects.errors import NotFound

# A client that stood still for longer would find its lock gone, and can't write without it.
BLOCKED_SECONDS = 30 * 24 * 3600


async def cut_off(client: CephClient, image: str) -> list[str]:
    """The addresses of the clients that had it open or held its lock. Raises NotFound, DriverFailed."""
    watchers = (await client.ask("rbd", "status", image))["watchers"]
    locks = await client.ask("rbd", "lock", "ls", image)
    addresses = sorted({str(one["address"]) for one in [*watchers, *locks]})
    for address in addresses:
        await client.run("ceph", "osd", "blocklist", "add", address, str(BLOCKED_SECONDS))
    for lock in locks:
        try:
            await client.run("rbd", "lock", "rm", image, str(lock["id"]), str(lock["locker"]))
        except NotFound:
            continue
    return addresses
