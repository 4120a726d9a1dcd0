"""What every runtime driver promises, whatever it runs. A driver's test subclasses ``RuntimePromises``.

The subclass gives the fixture ``lab``, one node that stays for all its tests: ``lab.driver()`` is a driver made anew on
it that remembers nothing. Guests are dear, so tests share one and say what they need of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec
import pytest

from weft.contracts.driver.runtime import (
    CanCarry,
    CanExec,
    CanSuspend,
    ExecRequest,
    ExecSession,
    GuestFacts,
    GuestPlan,
    HasStats,
    RuntimeDriver,
)
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, NotFound, Unavailable, WeftError

WAIT_SECONDS = 90.0


class Driver(RuntimeDriver[GuestPlan], CanSuspend, CanExec, HasStats, Protocol):
    """A driver with everything these promises speak of."""


class RuntimeLab(Protocol):
    """One node, and what happens on it without anyone asking the driver."""

    def driver(self) -> Driver: ...

    def plan(self, name: str) -> GuestPlan:
        """A plan that can be started; the same name gives the same plan."""

    def break_start(self, driver: Driver, plan: GuestPlan) -> GuestPlan:
        """A plan whose start will fail."""

    def kill(self, driver: Driver, facts: GuestFacts) -> None:
        """The machine dies from one moment to the next."""

    async def power_off(self, driver: Driver, facts: GuestFacts) -> None:
        """The guest shuts itself down; may return before it has."""

    def leftovers(self, guest_id: str) -> list[str]:
        """What there still is on the node of a guest that was removed."""


async def until(driver: Driver, guest_id: str, fits: Callable[[GuestFacts], bool]) -> GuestFacts:
    """The guest's facts once they fit; told by ``changed``, looked up again now and then."""
    facts = await driver.inspect(guest_id)
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not fits(facts):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(driver.changed(), 1.0)
                facts = await driver.inspect(guest_id)
    except TimeoutError:
        raise AssertionError(f"it never came; this is how it is: {facts}") from None
    return facts


async def ready(driver: Driver, plan: GuestPlan) -> GuestFacts:
    """The guest, running and answering; started if it wasn't."""
    facts = await driver.inspect(plan.id)
    if facts.state != "running":
        await driver.start(plan)
    return await until(driver, plan.id, lambda facts: facts.state == "running" and facts.ready is True)


async def start_command(driver: Driver, guest_id: str, request: ExecRequest) -> ExecSession:
    """Right after an adoption or a resume the agent may need a moment."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                return await driver.exec(guest_id, request)
            except Unavailable:
                await asyncio.sleep(0.02)


async def run(driver: Driver, guest_id: str, *argv: str, stdin: bytes = b"") -> tuple[bytes, bytes, int | None]:
    session = await start_command(driver, guest_id, ExecRequest(argv=list(argv)))

    async def feed() -> None:
        await session.write(stdin)
        await session.close_stdin()

    feeding = asyncio.create_task(feed())
    out, err = bytearray(), bytearray()
    async with asyncio.timeout(WAIT_SECONDS):
        async for chunk in session.output():
            if chunk.channel == "exit":
                await feeding
                return bytes(out), bytes(err), chunk.code
            (out if chunk.channel == "stdout" else err).extend(chunk.data)
    raise AssertionError("output ended without an exit")


class RuntimePromises:
    @pytest.fixture
    async def driver(self, lab: RuntimeLab) -> AsyncIterator[Driver]:
        """Every test begins with a driver that was just born, and so finds the guests of the test before."""
        driver = lab.driver()
        await driver.recover()
        yield driver
        await driver.close()

    @pytest.fixture
    def plan(self, lab: RuntimeLab) -> GuestPlan:
        return lab.plan("shared")

    @pytest.fixture
    async def reborn(self, lab: RuntimeLab, driver: Driver) -> AsyncIterator[Callable[[], Awaitable[Driver]]]:
        """Ends the driver without a word to its guests, and gives the next one."""
        heirs: list[Driver] = []

        async def restart() -> Driver:
            await driver.close()
            heirs.append(lab.driver())
            return heirs[-1]

        yield restart
        for heir in heirs:
            await heir.close()

    async def test_it_says_what_it_can_do(self, driver: Driver) -> None:
        probe = await driver.probe()
        assert probe.driver == driver.name
        assert probe.usable
        assert probe.machines
        assert {"suspend", "exec", "stats"} <= set(probe.capabilities)
        assert isinstance(driver, CanSuspend) and isinstance(driver, CanExec) and isinstance(driver, HasStats)

    async def test_an_unknown_guest_is_absent_and_may_be_stopped_and_removed(self, driver: Driver) -> None:
        assert (await driver.inspect("nobody0000")).state == "absent"
        await driver.stop("nobody0000", grace_seconds=0)
        await driver.remove("nobody0000")
        with pytest.raises(NotFound):
            await driver.exec("nobody0000", ExecRequest(argv=["true"]))

    async def test_a_guest_starts_and_says_when_it_is_ready(self, driver: Driver, lab: RuntimeLab) -> None:
        plan = lab.plan("first")
        facts = await driver.start(plan)
        assert (facts.state, facts.uid, facts.name) == ("running", plan.uid, plan.name)
        assert facts.incarnation == plan.incarnation
        facts = await until(driver, plan.id, lambda facts: facts.ready is True)
        assert facts.boot_id and facts.pid and facts.started_at
        again = await driver.start(plan)
        assert (again.pid, again.boot_id) == (facts.pid, facts.boot_id)
        with pytest.raises(IllegalTransition):
            await driver.remove(plan.id)
        await driver.stop(plan.id, grace_seconds=0)
        assert (await driver.inspect(plan.id)).state == "stopped"
        await driver.remove(plan.id)
        assert (await driver.inspect(plan.id)).state == "absent"
        assert lab.leftovers(plan.id) == []

    async def test_a_new_driver_finds_the_guest_it_never_started(
        self, driver: Driver, plan: GuestPlan, reborn: Callable[[], Awaitable[Driver]]
    ) -> None:
        before = await ready(driver, plan)
        heir = await reborn()
        (after,) = [facts for facts in await heir.recover() if facts.id == plan.id]
        assert (after.state, after.pid, after.boot_id) == ("running", before.pid, before.boot_id)
        assert (after.uid, after.incarnation, after.started_at) == (before.uid, before.incarnation, before.started_at)
        assert (await run(heir, plan.id, "echo", "still", "here"))[0] == b"still here\n"
        await heir.close()

    async def test_commands_run_in_it(self, driver: Driver, plan: GuestPlan) -> None:
        await ready(driver, plan)
        assert await run(driver, plan.id, "echo", "a  b", "c") == (b"a  b c\n", b"", 0)
        assert (await run(driver, plan.id, "false"))[2] == 1
        out, err, code = await run(driver, plan.id, "no-such-program")
        assert (out, code) == (b"", 127)
        assert b"no-such-program" in err

    async def test_ten_megabytes_pass_unchanged_both_ways_four_at_once(self, driver: Driver, plan: GuestPlan) -> None:
        await ready(driver, plan)
        data = [os.urandom(10_000_000), *(os.urandom(100_000) for _ in range(3))]
        results = await asyncio.gather(*(run(driver, plan.id, "cat", stdin=part) for part in data))
        got = [hashlib.sha256(out).hexdigest() for out, _, _ in results]
        assert got == [hashlib.sha256(part).hexdigest() for part in data]

    async def test_stats_grow(self, driver: Driver, plan: GuestPlan) -> None:
        await ready(driver, plan)
        first = await driver.stats(plan.id)
        assert first.resident_bytes > 0
        await run(driver, plan.id, "cat", stdin=bytes(100_000))
        assert (await driver.stats(plan.id)).cpu_seconds >= first.cpu_seconds

    async def test_another_guest_cannot_take_its_id(self, driver: Driver, plan: GuestPlan) -> None:
        before = await ready(driver, plan)
        with pytest.raises(DriverFailed):
            await driver.start(msgspec.structs.replace(plan, uid="00000000-0000-4000-8000-00000000beef"))
        assert (await driver.inspect(plan.id)).pid == before.pid

    async def test_suspended_it_keeps_its_boot_across_drivers(
        self, driver: Driver, plan: GuestPlan, reborn: Callable[[], Awaitable[Driver]]
    ) -> None:
        before = await ready(driver, plan)
        await driver.suspend(plan.id)
        facts = await driver.inspect(plan.id)
        assert (facts.state, facts.pid) == ("suspended", None)
        await driver.suspend(plan.id)
        heir = await reborn()
        (found,) = [facts for facts in await heir.recover() if facts.id == plan.id]
        assert found.state == "suspended"
        with pytest.raises(Unavailable):
            await heir.exec(plan.id, ExecRequest(argv=["true"]))
        after = await heir.start(plan)
        assert after.state == "running"
        after = await until(heir, plan.id, lambda facts: facts.ready is True)
        assert after.boot_id == before.boot_id
        assert (await run(heir, plan.id, "echo", "awake"))[0] == b"awake\n"
        await heir.close()

    async def test_suspended_it_goes_on_elsewhere_as_one_file(
        self, driver: Driver, lab: RuntimeLab, reborn: Callable[[], Awaitable[Driver]]
    ) -> None:
        assert isinstance(driver, CanCarry)
        plan, carrying = lab.plan("carried"), driver.carrying
        there = msgspec.structs.replace(
            plan, id="elsewhere0", uid="00000000-0000-4000-8000-00000000cafe", incarnation=plan.incarnation + 1
        )

        async def unpack(plan: GuestPlan) -> None:
            await carrying.unpack(there.id, there.uid, there.incarnation, lambda: plan)

        before = await ready(driver, plan)
        with pytest.raises(IllegalTransition):
            await carrying.pack(plan.id)
        await driver.suspend(plan.id)
        packed = Path(await carrying.pack(plan.id)).read_bytes()
        coming = Path(await carrying.expect(there.id))
        for broken in (b"", packed[: len(packed) // 2], packed[:-1]):
            coming.write_bytes(broken)
            with pytest.raises(DriverFailed):
                await unpack(there)
            assert (await driver.inspect(there.id)).state == "absent"
        coming.write_bytes(packed)
        with pytest.raises((InvalidInput, DriverFailed)):
            await unpack(msgspec.structs.replace(there, machine="microvm"))
        for _ in range(2):  # the source sends all of it again after a lost connection
            coming.write_bytes(packed)
            await unpack(there)
            came = await driver.inspect(there.id)
            assert (came.state, came.uid, came.boot_id) == ("suspended", there.uid, before.boot_id)
        assert (await driver.inspect(plan.id)).state == "suspended", "the source keeps it until it is told otherwise"
        await driver.stop(plan.id, grace_seconds=0)
        await driver.remove(plan.id)
        heir = await reborn()
        assert there.id in {facts.id for facts in await heir.recover() if facts.state == "suspended"}
        await heir.start(there)
        after = await until(heir, there.id, lambda facts: facts.ready is True)
        assert (after.boot_id, after.incarnation) == (before.boot_id, there.incarnation)
        assert (await run(heir, there.id, "echo", "awake"))[0] == b"awake\n"
        await heir.stop(there.id, grace_seconds=0)
        await heir.remove(there.id)
        assert lab.leftovers(there.id) == lab.leftovers(plan.id) == []
        await heir.close()

    async def test_stopped_it_gives_saved_memory_up(self, driver: Driver, plan: GuestPlan) -> None:
        before = await ready(driver, plan)
        await driver.suspend(plan.id)
        await driver.stop(plan.id, grace_seconds=0)
        assert (await driver.inspect(plan.id)).state == "stopped"
        await driver.start(plan)
        after = await until(driver, plan.id, lambda facts: facts.ready is True)
        assert after.boot_id != before.boot_id

    async def test_a_killed_guest_has_failed_and_its_commands_are_lost(
        self, driver: Driver, lab: RuntimeLab, plan: GuestPlan
    ) -> None:
        facts = await ready(driver, plan)
        session = await start_command(driver, plan.id, ExecRequest(argv=["cat"]))
        lab.kill(driver, facts)
        ended = await until(driver, plan.id, lambda facts: facts.state != "running")
        assert (ended.state, ended.reason, ended.pid) == ("failed", "killed", None)
        with pytest.raises(Unavailable):
            async with asyncio.timeout(WAIT_SECONDS):
                _ = [chunk async for chunk in session.output()]
        with pytest.raises(IllegalTransition):
            await driver.suspend(plan.id)

    async def test_a_guest_that_powers_itself_off_has_stopped(
        self, driver: Driver, lab: RuntimeLab, plan: GuestPlan
    ) -> None:
        await lab.power_off(driver, await ready(driver, plan))
        ended = await until(driver, plan.id, lambda facts: facts.state != "running")
        assert (ended.state, ended.reason) == ("stopped", "guestPoweredOff")

    async def test_a_graceful_stop_lets_the_guest_end_itself(self, driver: Driver, plan: GuestPlan) -> None:
        await ready(driver, plan)
        await driver.stop(plan.id, grace_seconds=20)
        facts = await driver.inspect(plan.id)
        assert (facts.state, facts.reason) == ("stopped", "stopRequested")
        await driver.stop(plan.id, grace_seconds=20)

    async def test_a_guest_that_still_boots_ends_as_soon_as_it_can(self, driver: Driver, plan: GuestPlan) -> None:
        """Nobody in it hears the power button yet: whoever waits for its end must not wait out the grace."""
        await driver.start(plan)
        await asyncio.wait_for(driver.stop(plan.id, grace_seconds=600), 60)
        facts = await driver.inspect(plan.id)
        assert (facts.state, facts.reason) == ("stopped", "stopRequested")

    async def test_what_happened_while_nobody_watched_is_told_apart(
        self, driver: Driver, lab: RuntimeLab, plan: GuestPlan
    ) -> None:
        killed, left = await ready(driver, plan), await ready(driver, lab.plan("other"))
        await lab.power_off(driver, left)
        lab.kill(driver, killed)
        await driver.close()
        heir = lab.driver()
        await heir.recover()
        facts = await until(heir, killed.id, lambda facts: facts.state != "running")
        assert (facts.state, facts.reason) == ("failed", "killed")
        facts = await until(heir, left.id, lambda facts: facts.state != "running")
        assert (facts.state, facts.reason) == ("stopped", "guestPoweredOff")
        for guest in (killed, left):
            await heir.remove(guest.id)
            assert lab.leftovers(guest.id) == []
        await heir.close()

    async def test_a_start_that_fails_leaves_nothing(self, driver: Driver, lab: RuntimeLab) -> None:
        plan = lab.break_start(driver, lab.plan("broken"))
        with pytest.raises(WeftError):
            await driver.start(plan)
        assert (await driver.inspect(plan.id)).state == "absent"
        assert lab.leftovers(plan.id) == []
