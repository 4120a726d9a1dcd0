"""Guests move between two QEMU drivers while they write, and whoever dies on the way leaves exactly one, whole."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from guest_lab import GuestLab

from weft.contracts.migration import CanMigrate, MoveFacts, MoveSettings
from weft.contracts.runtime import GuestPlan
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.objects.errors import IllegalTransition, NotFound

pytest.register_assert_rewrite("tests.conformance.runtime_contract")

from tests.conformance.runtime_contract import ready, run

pytestmark = pytest.mark.host
SLOW = MoveSettings(bytes_per_second=4 << 20, pause_ms=50)


@pytest.fixture(scope="module")
def other_lab(tiny: Path) -> Iterator[GuestLab]:
    lab = GuestLab(tiny)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    program = tmp_path_factory.mktemp("verifier") / "verifier"
    source = Path(__file__).with_name("verifier.c")
    subprocess.run(["gcc", "-O2", "-static", "-s", "-o", str(program), str(source)], check=True)
    return program.read_bytes()


@pytest.fixture
async def here(lab: GuestLab) -> AsyncIterator[QemuDriver]:
    driver = lab.driver()
    await driver.recover()
    yield driver
    await lab.close_drivers()


@pytest.fixture
async def there(other_lab: GuestLab) -> AsyncIterator[QemuDriver]:
    driver = other_lab.driver()
    await driver.recover()
    yield driver
    await other_lab.close_drivers()


@pytest.fixture
async def plan(lab: GuestLab, here: QemuDriver, verifier: bytes) -> AsyncIterator[GuestPlan]:
    """A guest that runs here and writes: most of what memory it has free, and its disk."""
    plan = lab.plan("mover")
    facts = await here.inspect(plan.id)
    if facts.state != "running":
        await here.remove(plan.id)
        await ready(here, plan)
        await run(here, plan.id, "sh", "-c", "cat > /root/verifier; chmod +x /root/verifier", stdin=verifier)
        start = "/root/verifier 24 20000 /root/counter /dev/shm/verdict >/dev/null 2>&1 &"
        await run(here, plan.id, "sh", "-c", start)
    yield plan


async def verdict(driver: QemuDriver, plan: GuestPlan, *, after: int = 0) -> int:
    """How many rounds the verifier has done, beyond ``after``; nothing it wrote may be lost."""
    async with asyncio.timeout(60):
        while True:
            said = (await run(driver, plan.id, "cat", "/dev/shm/verdict"))[0].decode()
            if found := re.match(r"rounds=(\d+) bad=(\d+)", said):
                assert found[2] == "0", said
                if int(found[1]) > after:
                    return int(found[1])
            await asyncio.sleep(0.1)


async def come_to(driver: QemuDriver, plan: GuestPlan, key: str, *phases: str) -> MoveFacts:
    async with asyncio.timeout(60):
        while (facts := await driver.moves.progress(plan.id, key)).phase not in phases:
            await asyncio.sleep(0.005)
    return facts


async def move(
    source: QemuDriver, target: QemuDriver, plan: GuestPlan, key: str, settings: MoveSettings | None = None
) -> MoveFacts:
    settings = settings or MoveSettings()
    socket = await target.moves.expect(plan, await source.moves.describe(plan.id), key, settings)
    await source.moves.send(plan.id, key, socket, settings)
    facts = await come_to(source, plan, key, "handed over", "failed")
    assert facts.phase == "handed over", facts
    await come_to(target, plan, key, "arrived", "failed")
    await target.moves.take_over(plan.id, key)
    await source.moves.leave(plan.id, key)
    return facts


async def test_a_writing_guest_moves_there_and_back_and_notices_nothing(
    here: QemuDriver, there: QemuDriver, lab: GuestLab, other_lab: GuestLab, plan: GuestPlan
) -> None:
    assert isinstance(here, CanMigrate)
    before, rounds = await ready(here, plan), await verdict(here, plan)
    for number, (source, target, left) in enumerate(((here, there, lab), (there, here, other_lab))):
        await move(source, target, plan, f"move-{number}")
        gone = await source.inspect(plan.id)
        assert (gone.state, gone.reason) == ("stopped", "moved")
        await source.remove(plan.id)
        assert left.leftovers(plan.id) == []
        after = await ready(target, plan)
        assert after.boot_id == before.boot_id
        rounds = await verdict(target, plan, after=rounds + 1)


async def test_a_guest_that_may_stand_still_is_stopped_and_copied(
    here: QemuDriver, there: QemuDriver, plan: GuestPlan
) -> None:
    rounds = await verdict(here, plan)
    await move(here, there, plan, "still", MoveSettings(mode="stop-and-copy"))
    rounds = await verdict(there, plan, after=rounds)
    await here.remove(plan.id)
    await move(there, here, plan, "still-back", MoveSettings(mode="stop-and-copy"))
    await verdict(here, plan, after=rounds)
    await there.remove(plan.id)


async def test_a_move_called_off_leaves_the_guest_where_it_was(
    here: QemuDriver, there: QemuDriver, other_lab: GuestLab, plan: GuestPlan
) -> None:
    before, rounds = await ready(here, plan), await verdict(here, plan)
    socket = await there.moves.expect(plan, await here.moves.describe(plan.id), "off", SLOW)
    await here.moves.send(plan.id, "off", socket, SLOW)
    await here.moves.send(plan.id, "off", socket, SLOW)  # a step may be repeated
    await come_to(here, plan, "off", "moving")
    for steal in (there.moves.take_over(plan.id, "off"), there.start(plan), here.suspend(plan.id), here.adjust(plan)):
        with pytest.raises(IllegalTransition):
            await steal
    assert (await there.inspect(plan.id)).state == "starting"
    await here.moves.cancel(plan.id, "off")
    await there.moves.give_up(plan.id, "off")
    assert other_lab.leftovers(plan.id) == []
    await there.moves.give_up(plan.id, "off")
    await here.moves.cancel(plan.id, "off")
    assert (await ready(here, plan)).pid == before.pid
    await verdict(here, plan, after=rounds + 1)


async def test_a_guest_goes_on_at_the_source_when_the_target_dies_and_moves_with_the_next_try(
    here: QemuDriver, there: QemuDriver, other_lab: GuestLab, plan: GuestPlan
) -> None:
    before, rounds = await ready(here, plan), await verdict(here, plan)
    socket = await there.moves.expect(plan, await here.moves.describe(plan.id), "again", SLOW)
    await here.moves.send(plan.id, "again", socket, SLOW)
    await come_to(there, plan, "again", "moving")
    other_lab.kill(there, await there.inspect(plan.id))
    assert (await come_to(here, plan, "again", "failed", "handed over")).phase == "failed"
    rounds = await verdict(here, plan, after=rounds + 1)
    assert (await come_to(there, plan, "again", "failed", "arrived")).phase == "failed"
    with pytest.raises(IllegalTransition):
        await there.start(plan)  # it runs elsewhere
    await move(here, there, plan, "again")
    assert (await ready(there, plan)).boot_id == before.boot_id
    await verdict(there, plan, after=rounds + 1)
    await here.remove(plan.id)
    await move(there, here, plan, "home")
    await there.remove(plan.id)


async def test_drivers_made_anew_under_way_find_out_what_is_so(
    here: QemuDriver, there: QemuDriver, lab: GuestLab, other_lab: GuestLab, plan: GuestPlan
) -> None:
    before, rounds = await ready(here, plan), await verdict(here, plan)
    socket = await there.moves.expect(plan, await here.moves.describe(plan.id), "heirs", SLOW)
    here, there = await heir(lab), await heir(other_lab)
    assert await there.moves.expect(plan, await here.moves.describe(plan.id), "heirs", SLOW) == socket
    await here.moves.send(plan.id, "heirs", socket, SLOW)
    await come_to(there, plan, "heirs", "moving")
    here, there = await heir(lab), await heir(other_lab)
    assert (await come_to(here, plan, "heirs", "moving", "failed")).phase == "moving"
    await here.moves.adjust(plan.id, "heirs", bytes_per_second=0, pause_ms=300)
    assert (await come_to(here, plan, "heirs", "handed over", "failed")).phase == "handed over"
    here, there = await heir(lab), await heir(other_lab)
    assert (await here.inspect(plan.id)).state == "paused"
    assert (await there.inspect(plan.id)).state == "starting"
    assert (await come_to(here, plan, "heirs", "handed over", "failed")).phase == "handed over"
    with pytest.raises(IllegalTransition):
        await here.moves.cancel(plan.id, "heirs")
    await come_to(there, plan, "heirs", "arrived")
    await there.moves.take_over(plan.id, "heirs")
    with pytest.raises(IllegalTransition):
        await there.moves.give_up(plan.id, "heirs")
    here, there = await heir(lab), await heir(other_lab)
    await there.moves.take_over(plan.id, "heirs")
    await here.moves.leave(plan.id, "heirs")
    await here.moves.leave(plan.id, "heirs")
    with pytest.raises(IllegalTransition):
        await here.start(plan)
    assert (await ready(there, plan)).boot_id == before.boot_id
    await verdict(there, plan, after=rounds)
    await here.remove(plan.id)
    await move(there, here, plan, "home-again")
    await there.remove(plan.id)


async def test_a_guest_handed_over_comes_back_only_with_the_word_that_it_never_ran(
    here: QemuDriver, there: QemuDriver, plan: GuestPlan
) -> None:
    before, rounds = await ready(here, plan), await verdict(here, plan)
    settings = MoveSettings()
    socket = await there.moves.expect(plan, await here.moves.describe(plan.id), "word", settings)
    await here.moves.send(plan.id, "word", socket, settings)
    await come_to(here, plan, "word", "handed over")
    with pytest.raises(IllegalTransition):
        await here.moves.cancel(plan.id, "word")
    await there.moves.give_up(plan.id, "word")
    with pytest.raises((IllegalTransition, NotFound)):
        await there.moves.take_over(plan.id, "word")
    await here.moves.cancel(plan.id, "word", never_ran=True)
    assert (await ready(here, plan)).pid == before.pid
    await verdict(here, plan, after=rounds + 1)


async def heir(lab: GuestLab) -> QemuDriver:
    """The node's driver is gone without a word; this is the next one."""
    await lab.close_drivers()
    driver = lab.driver()
    await driver.recover()
    return driver
