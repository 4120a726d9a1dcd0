"""What every runtime that can migrate promises of a move, whoever dies on the way. A test subclasses ``MovePromises``.

The subclass gives ``lab`` and ``other_lab``, two nodes that stay for all its tests, and may say by ``look`` what a guest
must not have lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

import pytest
from tests.conformance.runtime_contract import Driver, RuntimeLab, ready

from weft.contracts.driver.migration import CanMigrate, MigrationFacts, MigrationMode, MigrationSettings
from weft.contracts.driver.runtime import CanAdjust, GuestPlan
from weft.objects.errors import IllegalTransition, NotFound

SLOW = MigrationSettings(bytes_per_second=4 << 20, pause_ms=50)


class MigratingDriver(Driver, CanMigrate, CanAdjust[GuestPlan], Protocol):
    """A driver with everything these promises speak of."""


async def come_to(driver: MigratingDriver, plan: GuestPlan, key: str, *phases: str) -> MigrationFacts:
    async with asyncio.timeout(60):
        while (facts := await driver.migrations.progress(plan.id, key)).phase not in phases:
            await asyncio.sleep(0.005)
    return facts


async def migrate(
    source: MigratingDriver, target: MigratingDriver, plan: GuestPlan, key: str, mode: MigrationMode = "plain"
) -> None:
    settings = MigrationSettings(mode=mode)
    socket = await target.migrations.expect(plan, await source.migrations.describe(plan.id), key, settings)
    await source.migrations.send(plan.id, key, socket, settings)
    facts = await come_to(source, plan, key, "handedOver", "failed")
    assert facts.phase == "handedOver", facts
    await come_to(target, plan, key, "arrived", "failed")
    await target.migrations.take_over(plan.id, key)
    await source.migrations.leave(plan.id, key)


class MovePromises:
    @pytest.fixture
    async def here(self, lab: RuntimeLab) -> AsyncIterator[MigratingDriver]:
        driver = await self.heir(lab)
        yield driver
        await driver.close()

    @pytest.fixture
    async def there(self, other_lab: RuntimeLab) -> AsyncIterator[MigratingDriver]:
        driver = await self.heir(other_lab)
        yield driver
        await driver.close()

    @pytest.fixture
    async def plan(self, lab: RuntimeLab, here: MigratingDriver) -> GuestPlan:
        """A guest that runs here."""
        plan = lab.plan("mover")
        if (await here.inspect(plan.id)).state != "running":
            await here.remove(plan.id)
            await ready(here, plan)
            await self.prepare(here, plan)
        return plan

    async def heir(self, lab: RuntimeLab, before: MigratingDriver | None = None) -> MigratingDriver:
        """The node's driver is gone without a word; this is the next one."""
        if before is not None:
            await before.close()
        driver = lab.driver()
        await driver.recover()
        assert isinstance(driver, CanMigrate)
        return driver  # type: ignore[return-value]

    async def prepare(self, driver: MigratingDriver, plan: GuestPlan) -> None:
        """A guest that has just started."""

    async def look(self, driver: MigratingDriver, plan: GuestPlan, *, after: int = 0) -> int:
        """Nothing that the guest wrote is lost; how far it has come, beyond ``after``."""
        await ready(driver, plan)
        return after + 1

    async def test_it_moves_there_and_back_and_notices_nothing(
        self, here: MigratingDriver, there: MigratingDriver, lab: RuntimeLab, other_lab: RuntimeLab, plan: GuestPlan
    ) -> None:
        before, seen = await ready(here, plan), await self.look(here, plan)
        ways: list[tuple[MigratingDriver, MigratingDriver, RuntimeLab, MigrationMode]] = [
            (here, there, lab, "plain"),
            (there, here, other_lab, "stop-and-copy"),
            (here, there, lab, "xbzrle"),
            (there, here, other_lab, "multifd-zstd"),
        ]
        for number, (source, target, left, mode) in enumerate(ways):
            await migrate(source, target, plan, f"move-{number}", mode)
            gone = await source.inspect(plan.id)
            assert (gone.state, gone.reason) == ("stopped", "migrated")
            with pytest.raises(IllegalTransition):
                await source.start(plan)
            await source.remove(plan.id)
            assert left.leftovers(plan.id) == []
            assert (await ready(target, plan)).boot_id == before.boot_id
            seen = await self.look(target, plan, after=seen + 1)

    async def test_what_a_guest_does_to_its_memory_is_seen_while_it_runs(
        self, here: MigratingDriver, lab: RuntimeLab, plan: GuestPlan
    ) -> None:
        load = await here.migrations.sample(plan.id, seconds=0.2)
        assert 0 < load.memory_bytes <= 2 * plan.memory_bytes
        assert 0 <= load.written_bytes <= load.memory_bytes and load.dirty_bytes_per_second >= 0
        assert 0 <= load.changed_share <= 1 <= load.samples
        with pytest.raises((IllegalTransition, NotFound)):
            await here.migrations.sample(lab.plan("nobody").id)

    async def test_called_off_it_stays_where_it_was(
        self, here: MigratingDriver, there: MigratingDriver, other_lab: RuntimeLab, plan: GuestPlan
    ) -> None:
        before, seen = await ready(here, plan), await self.look(here, plan)
        socket = await there.migrations.expect(plan, await here.migrations.describe(plan.id), "off", SLOW)
        await here.migrations.send(plan.id, "off", socket, SLOW)
        await here.migrations.send(plan.id, "off", socket, SLOW)  # a step may be repeated
        await come_to(here, plan, "off", "migrating")
        for stolen in (
            there.migrations.take_over,
            there.migrations.leave,
            here.migrations.leave,
            here.migrations.give_up,
        ):
            with pytest.raises(IllegalTransition):
                await stolen(plan.id, "off")
        with pytest.raises(IllegalTransition):
            await there.start(plan)
        with pytest.raises(IllegalTransition):
            await here.suspend(plan.id)
        with pytest.raises(IllegalTransition):
            await here.adjust(plan)
        assert (await there.inspect(plan.id)).state == "starting"
        for _ in range(2):
            await here.migrations.cancel(plan.id, "off")
            await there.migrations.give_up(plan.id, "off")
        assert other_lab.leftovers(plan.id) == []
        assert (await ready(here, plan)).pid == before.pid
        await self.look(here, plan, after=seen + 1)

    async def test_when_the_target_dies_it_goes_on_at_the_source_and_moves_with_the_next_try(
        self, here: MigratingDriver, there: MigratingDriver, other_lab: RuntimeLab, plan: GuestPlan
    ) -> None:
        before, seen = await ready(here, plan), await self.look(here, plan)
        socket = await there.migrations.expect(plan, await here.migrations.describe(plan.id), "again", SLOW)
        await here.migrations.send(plan.id, "again", socket, SLOW)
        await come_to(here, plan, "again", "migrating")
        await come_to(there, plan, "again", "migrating")
        other_lab.kill(there, await there.inspect(plan.id))
        assert (await come_to(here, plan, "again", "failed", "handedOver")).phase == "failed"
        seen = await self.look(here, plan, after=seen + 1)
        assert (await come_to(there, plan, "again", "failed", "arrived")).phase == "failed"
        with pytest.raises(IllegalTransition):
            await there.start(plan)  # it runs elsewhere
        await migrate(here, there, plan, "again")
        assert (await ready(there, plan)).boot_id == before.boot_id
        await self.look(there, plan, after=seen + 1)
        await here.remove(plan.id)
        await migrate(there, here, plan, "home")
        await there.remove(plan.id)
        await here.migrations.cancel(plan.id, "never begun")  # however it came here
        await ready(here, plan)

    async def test_when_the_source_dies_on_the_way_it_starts_again_only_with_the_targets_word(
        self, here: MigratingDriver, there: MigratingDriver, lab: RuntimeLab, plan: GuestPlan
    ) -> None:
        socket = await there.migrations.expect(plan, await here.migrations.describe(plan.id), "torn", SLOW)
        await here.migrations.send(plan.id, "torn", socket, SLOW)
        await come_to(here, plan, "torn", "migrating")
        lab.kill(here, await here.inspect(plan.id))
        assert (await come_to(here, plan, "torn", "failed")).phase == "failed"
        with pytest.raises(IllegalTransition):
            await here.start(plan)
        with pytest.raises(IllegalTransition):
            await here.migrations.cancel(plan.id, "torn")
        await there.migrations.give_up(plan.id, "torn")
        await here.migrations.cancel(plan.id, "torn", never_ran=True)
        assert (await here.inspect(plan.id)).state == "failed"
        await ready(here, plan)
        await self.prepare(here, plan)

    async def test_drivers_made_anew_at_every_step_find_out_what_is_so(
        self, here: MigratingDriver, there: MigratingDriver, lab: RuntimeLab, other_lab: RuntimeLab, plan: GuestPlan
    ) -> None:
        before, seen = await ready(here, plan), await self.look(here, plan)
        socket = await there.migrations.expect(plan, await here.migrations.describe(plan.id), "heirs", SLOW)
        here, there = await self.heir(lab, here), await self.heir(other_lab, there)
        assert await there.migrations.expect(plan, await here.migrations.describe(plan.id), "heirs", SLOW) == socket
        await here.migrations.send(plan.id, "heirs", socket, SLOW)
        await come_to(here, plan, "heirs", "migrating")
        here, there = await self.heir(lab, here), await self.heir(other_lab, there)
        assert (await come_to(here, plan, "heirs", "migrating", "failed")).phase == "migrating"
        happened = asyncio.create_task(self.names(here, plan))
        await asyncio.sleep(0.05)
        await here.migrations.adjust(plan.id, "heirs", bytes_per_second=0, pause_ms=300)
        assert (await come_to(here, plan, "heirs", "handedOver", "failed")).phase == "handedOver"
        assert "stopped" in await happened
        here, there = await self.heir(lab, here), await self.heir(other_lab, there)
        assert (await here.inspect(plan.id)).state == "paused"
        assert (await there.inspect(plan.id)).state == "starting"
        assert (await come_to(here, plan, "heirs", "handedOver", "failed")).phase == "handedOver"
        with pytest.raises(IllegalTransition):
            await here.migrations.cancel(plan.id, "heirs")
        await come_to(there, plan, "heirs", "arrived")
        await there.migrations.take_over(plan.id, "heirs")
        with pytest.raises(IllegalTransition):
            await there.migrations.give_up(plan.id, "heirs")
        here, there = await self.heir(lab, here), await self.heir(other_lab, there)
        await there.migrations.take_over(plan.id, "heirs")
        for _ in range(2):
            await here.migrations.leave(plan.id, "heirs")
        assert (await ready(there, plan)).boot_id == before.boot_id
        await self.look(there, plan, after=seen)
        await here.remove(plan.id)
        await migrate(there, here, plan, "home-again")
        await there.remove(plan.id)
        await here.close()
        await there.close()

    async def names(self, driver: MigratingDriver, plan: GuestPlan) -> list[str]:
        """What happens to the guest until it stands still."""
        seen: list[str] = []
        async with asyncio.timeout(30):
            async for event in driver.migrations.events(plan.id):
                seen.append(event.name)
                if event.name == "stopped":
                    break
        return seen

    async def test_handed_over_it_comes_back_only_with_the_word_that_it_never_ran(
        self, here: MigratingDriver, there: MigratingDriver, plan: GuestPlan
    ) -> None:
        before, seen = await ready(here, plan), await self.look(here, plan)
        settings = MigrationSettings()
        socket = await there.migrations.expect(plan, await here.migrations.describe(plan.id), "word", settings)
        await here.migrations.send(plan.id, "word", socket, settings)
        await come_to(here, plan, "word", "handedOver")
        with pytest.raises(IllegalTransition):
            await here.migrations.cancel(plan.id, "word")
        await there.migrations.give_up(plan.id, "word")
        with pytest.raises((IllegalTransition, NotFound)):
            await there.migrations.take_over(plan.id, "word")
        await here.migrations.cancel(plan.id, "word", never_ran=True)
        assert (await ready(here, plan)).pid == before.pid
        await self.look(here, plan, after=seen + 1)
