"""A node's driver of volumes in Ceph, and what Ceph's own programs say of its pool."""

from __future__ import annotations

import asyncio
import json
import subprocess

from ceph_lab import place_of

from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.drivers.volume.rbd.driver import RbdVolumes
from weft.launch.local.ceph.layout import CephPlan

LOOKS = 50


def make_driver(ceph: CephPlan, node: str = "n1") -> RbdVolumes:
    host = Host(node, f"uid-{node}", "/nowhere", "/nowhere", "wtst", "10.99.0.1", "lo", "weft/t", Capacity(1, 1, 1))
    return RbdVolumes(host, SystemClock(), "ceph", place_of(ceph))


def rbd(ceph: CephPlan, *words: str) -> str:
    argv = ["rbd", "-c", str(ceph.conf), "--id", "weft", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def io(ceph: CephPlan, image: str, *commands: str) -> subprocess.CompletedProcess[str]:
    words = [word for command in commands for word in ("-c", command)]
    options = f"driver=rbd,pool={ceph.pool},image={image},conf={ceph.conf},user=weft"
    argv = ["qemu-io", *words, "--image-opts", options]
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)


async def list_images(ceph: CephPlan, driver: RbdVolumes) -> list[str]:
    """Also what is in the trash, once no driver of the test empties it any more: each tries what it finds there once."""
    trashed: list[str] = []
    for _ in range(LOOKS):
        while driver._images.purging:
            await asyncio.gather(*driver._images.purging)
        trashed = [one["name"] for one in json.loads(rbd(ceph, "trash", "ls", ceph.pool, "--format", "json"))]
        if not trashed:
            break
        await asyncio.sleep(0.2)
    return sorted([one for one in rbd(ceph, "ls", ceph.pool).split() if not one.startswith("weft-image-")] + trashed)


class Cut(BaseException):
    """The agent's process ends here."""
