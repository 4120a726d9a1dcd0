"""A disk that is copied from a server while its guest runs: an agent that begins meanwhile doesn't wait for the server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from guest_lab import GuestLab

from weft.contracts.driver.layers import KeptDisk, KeptSnapshot
from weft.contracts.driver.runtime import DiskLayer, GuestDisk
from weft.drivers.runtime.qemu.snapshot import driver as snapshots
from weft.drivers.volume.directory.driver import DirectoryVolumes

pytest.register_assert_rewrite("tests.conformance.runtime_contract")

from tests.conformance.runtime_contract import ready, run

pytestmark = pytest.mark.host
SIZE = 4 << 20


class Killed(Exception): ...


@contextmanager
def serving(disk: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """QEMU's own server, at a socket in no folder."""
    words = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=data,read-only=on,filename={disk}"]
    words += ["--nbd-server", f"addr.type=unix,addr.path={name},addr.abstract=on"]
    words += ["--export", "type=nbd,id=data,node-name=data,name=data"]
    with subprocess.Popen(words) as server:
        try:
            yield server
        finally:
            server.kill()


async def test_an_agent_that_begins_while_the_server_of_a_disk_is_away_goes_on_with_the_copy_later(
    lab: GuestLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes, driver, disk = DirectoryVolumes(lab.host), lab.driver(), tmp_path / "data"
    name, content = f"weft-test-{os.getpid()}", os.urandom(SIZE)
    disk.write_bytes(content)
    await volumes.copies.stand_in("in", f"{name}/data")
    await volumes.copies.take_in(KeptSnapshot("s1", "uid-s1", {"data": KeptDisk(("in",), SIZE)}))
    facts = await volumes.layers.clone("served", "s1", "data")
    [stand_in] = await volumes.layers.list_layers("served")
    layer = DiskLayer(stand_in.path, stand_in.format, stand_in.server)
    served = GuestDisk(facts.path, "qcow2", "data", layers=[layer])
    plan = lab.plan("served")
    plan = msgspec.structs.replace(plan, disks=[*plan.disks, served])

    async def die(*given: object) -> None:
        raise Killed

    try:
        with serving(disk, name) as first:
            await ready(driver, plan)
            first.send_signal(signal.SIGSTOP)
            with monkeypatch.context() as patch:
                patch.setattr(snapshots, "follow_absorbing", die)
                with pytest.raises(Killed):  # the agent, while a piece is waited for
                    await driver.snapshots.absorb(plan.id, "data", stand_in.path)
        await driver.close()
        driver = lab.driver()
        async with asyncio.timeout(60):
            [found] = await driver.recover()
        assert found.state == "running"
        with serving(disk, name):
            await driver.snapshots.absorb(plan.id, "data", stand_in.path)
        guest = await driver._guests.get(plan.id)
        assert [one.layers for one in guest.record.plan.disks if one.serial == "data"] == [[]]
        said, _, code = await run(driver, plan.id, "sh", "-c", f"head -c {SIZE} /dev/vdb | sha256sum")
        assert (said.split()[0].decode(), code) == (hashlib.sha256(content).hexdigest(), 0)
        await driver.stop(plan.id, grace_seconds=0)
    finally:
        await lab.close_drivers()
