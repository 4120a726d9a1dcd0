"""The fake runtime keeps every runtime's promises, and fails and waits when told to."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.runtime import BootDisk, GuestDisk, GuestFacts, GuestPlan
from weft.contracts.driver.snapshot import SnapshotPlan
from weft.drivers.runtime.fake.driver import FakeDriver, FakeOrders
from weft.objects.errors import DriverFailed

pytest.register_assert_rewrite(
    "tests.conformance.runtime_contract", "tests.conformance.runtime_migration", "tests.conformance.runtime_snapshots"
)

from tests.conformance.runtime_contract import RuntimePromises, until
from tests.conformance.runtime_migration import MovePromises
from tests.conformance.runtime_snapshots import SnapshotPromises


class FakeLab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = Host("n1", "uid1", str(folder), str(folder), "w1", "", "", "", Capacity(1, 1 << 30, 1 << 30))

    def driver(self, orders: FakeOrders | None = None) -> FakeDriver:
        return FakeDriver(self.host, orders=orders)

    def plan(self, name: str) -> GuestPlan:
        uid = str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
        short = hashlib.sha256(uid.encode()).hexdigest()[:10]
        disk = GuestDisk("/nowhere/root.qcow2", "qcow2", "root")
        return GuestPlan(short, uid, name, 1, "q35", 1.0, 1, 128 << 20, BootDisk(), [disk], [])

    def break_start(self, driver: FakeDriver, plan: GuestPlan) -> GuestPlan:
        driver.orders.failures["start"] = [DriverFailed("the disk is missing")]
        return plan

    def plan_snapshot(self, plan: GuestPlan, key: str, *, memory: bool = False) -> SnapshotPlan:
        path = self.folder / f"{plan.name}-{key}"
        return SnapshotPlan(key, {"root": f"{path}.qcow2"}, f"{path}.memory" if memory else "")

    def copy_disks(self, plan: GuestPlan, name: str) -> list[GuestDisk]:
        return plan.disks

    def kill(self, driver: FakeDriver, facts: GuestFacts) -> None:
        driver.kill(facts.id)

    async def power_off(self, driver: FakeDriver, facts: GuestFacts) -> None:
        driver.power_off(facts.id)

    def leftovers(self, guest_id: str) -> list[str]:
        return [str(path) for path in self.folder.rglob(f"*{guest_id}*")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeLab]:
    yield FakeLab(tmp_path_factory.mktemp("fake"))


@pytest.fixture(scope="module")
def other_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeLab]:
    yield FakeLab(tmp_path_factory.mktemp("fake-there"))


class TestFake(RuntimePromises):
    pass


class TestFakeMoves(MovePromises):
    pass


class TestFakeSnapshots(SnapshotPromises):
    pass


async def test_a_failure_happens_once_and_then_the_verb_works(lab: FakeLab) -> None:
    driver = lab.driver(FakeOrders(failures={"stop": [DriverFailed("stuck")], "suspend": [DriverFailed("disk full")]}))
    plan = lab.plan("stubborn")
    await driver.start(plan)
    with pytest.raises(DriverFailed, match="disk full"):
        await driver.suspend(plan.id)
    with pytest.raises(DriverFailed, match="stuck"):
        await driver.stop(plan.id, grace_seconds=0)
    assert (await driver.inspect(plan.id)).state == "running"
    await driver.stop(plan.id, grace_seconds=0)
    assert (await driver.inspect(plan.id)).state == "stopped"
    await driver.close()


async def test_a_slow_start_is_seen_as_starting_and_leaves_nothing_when_cut_off(lab: FakeLab) -> None:
    driver = lab.driver(FakeOrders(delay_seconds={"start": 60.0}))
    plan = lab.plan("slow")
    starting = asyncio.create_task(driver.start(plan))
    await asyncio.sleep(0)
    assert (await driver.inspect(plan.id)).state == "starting"
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert (await driver.inspect(plan.id)).state == "absent"


async def test_a_guest_that_was_booting_when_the_driver_died_becomes_ready_for_the_next(lab: FakeLab) -> None:
    first = lab.driver(FakeOrders(boot_seconds=60.0))
    plan = lab.plan("booting")
    await first.start(plan)
    await first.close()
    heir = lab.driver()
    await heir.recover()
    await until(heir, plan.id, lambda facts: facts.ready is True)
    await heir.close()
