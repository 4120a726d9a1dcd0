"""Copies of a running Debian: each has its own SSH host keys, which its image's script makes while its links are down."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from guest_lab import ROOT

pytest.register_assert_rewrite(
    "tests.conformance.runtime_contract", "tests.conformance.runtime_snapshots", "snapshot_lab"
)

from snapshot_lab import SnapshotLab
from tests.conformance.runtime_contract import ready, run
from tests.conformance.runtime_snapshots import until_over

from weft.contracts.driver.identity import Identity
from weft.contracts.driver.runtime import GuestPlan
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.images.recipes import ensure_bundle

pytestmark = [pytest.mark.host, pytest.mark.long]
WHO = "hostname; cat /etc/machine-id /sys/class/net/e*/address; cat /etc/ssh/ssh_host_*_key.pub | sha256sum; cat /etc/hostname"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[SnapshotLab]:
    cache = Path(os.environ.get("WEFT_CACHE", ROOT / ".weft" / "cache"))
    with tarfile.open(ensure_bundle("debian-12", cache, lambda word: None)) as archive:
        archive.extractall(tmp_path)
    lab = SnapshotLab(tmp_path)
    yield lab
    await lab.close_drivers()
    lab.close()


async def who(driver: QemuDriver, plan: GuestPlan) -> list[str]:
    out, err, code = await run(driver, plan.id, "sh", "-c", WHO)
    assert code == 0, err
    return out.decode().split()


async def test_copies_of_a_debian_have_names_ids_and_host_keys_of_their_own(lab: SnapshotLab) -> None:
    def plan_debian(name: str) -> GuestPlan:
        return msgspec.structs.replace(lab.plan_with_nic(name), memory_bytes=512 << 20)

    plan, driver = plan_debian("debian"), lab.driver()
    await ready(driver, plan)
    await run(
        driver,
        plan.id,
        "sh",
        "-c",
        "ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key; hostname > /etc/hostname; sync",
    )
    snapshot = lab.plan_snapshot(plan, "m", memory=True)
    await driver.snapshots.take(plan.id, snapshot)
    assert (await until_over(driver, plan, "m")).phase == "done"
    told = [await who(driver, plan)]
    for name in ("twin-1", "twin-2"):
        identity = Identity(name, hashlib.md5(name.encode()).hexdigest())
        copy = msgspec.structs.replace(
            plan_debian(name), memory=snapshot.memory, disks=lab.copy_disks(plan, name), identity=identity
        )
        await driver.start(copy)
        await ready(driver, copy)
        told.append(await who(driver, copy))
        assert told[-1][:3] == [name, identity.machine_id, copy.nics[0].mac] and told[-1][-1] == name
        await driver.stop(copy.id, grace_seconds=0)
    assert all(len(set(words)) == 3 for words in zip(*(one[:4] for one in told), strict=True)), told
    assert await who(driver, plan) == told[0], "the original stays who it is"
    await driver.stop(plan.id, grace_seconds=0)
