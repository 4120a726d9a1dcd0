"""Fence other nodes off a disk that they may have open before a guest begins with it: the server has given the disk to this node,
and a node that was given up can't be reached."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from weft.agent.state.allocation import LocalAllocation
from weft.agent.volume.pools import Pools
from weft.agent.workload.shape import ROOT_SERIAL, name_serial
from weft.contracts.driver.volume import CanFence
from weft.kinds.allocation import ROOT, list_disks

log = logging.getLogger("weft.agent")


async def fence_disks(pools: Pools, local: LocalAllocation, has: Sequence[str] = ()) -> None:
    """``has``: serials of the disks that its running guest has open. Raises DriverFailed."""
    serials = {ROOT: ROOT_SERIAL} | {volume.uid: name_serial(volume.name) for volume in local.spec.volumes}
    for disk in list_disks(local.spec):
        if serials[disk] in has:
            continue
        driver = await pools.of(local.spec, disk)
        if isinstance(driver, CanFence):
            for address in await driver.fence(local.id if disk == ROOT else disk):
                log.warning("%s: cut off %s, which had its disk %s open", local.what, address, serials[disk])
