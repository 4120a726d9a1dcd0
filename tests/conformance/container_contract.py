"""What every driver that runs containers promises, however it isolates them. A driver's test subclasses ``ContainerPromises``.

The subclass gives the fixture ``lab``, one node that stays for all its tests: ``lab.driver()`` is a driver made anew on it that
remembers nothing, and ``lab.drivers`` are those that weren't closed yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

from weft.contracts.driver.container import ContainerMount, ContainerPlan, HasLog, User
from weft.contracts.driver.runtime import (
    CanExec,
    CanResize,
    ExecRequest,
    GuestFacts,
    HasStats,
    RuntimeDriver,
)
from weft.objects.errors import IllegalTransition, NotFound, Unavailable, WeftError

WAIT_SECONDS = 60.0
MIB = 1 << 20


class Driver(RuntimeDriver[ContainerPlan], CanExec, HasStats, HasLog, Protocol):
    """A driver with everything these promises speak of."""


class ContainerLab(Protocol):
    """One node, an image of busybox on it in two layers, and what happens to a container without anyone asking the driver."""

    drivers: list[Any]

    def driver(self) -> Any: ...

    def plan(self, name: str, *argv: str, user: User | None = None, **more: Any) -> ContainerPlan:
        """A plan that can be started; by itself it sleeps. The same name gives the same id."""

    def script(self, name: str, text: str, **more: Any) -> ContainerPlan: ...

    def kill(self, facts: GuestFacts) -> None:
        """What runs it ends from one moment to the next."""

    def leftovers(self) -> list[str]:
        """What there is on the node of any container."""

    async def close_drivers(self) -> None: ...


def is_alive(pid: int | None) -> bool:
    """Whether the process runs; one that has ended may wait for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


async def until(driver: Driver, guest_id: str, fits: Callable[[GuestFacts], bool]) -> GuestFacts:
    async with asyncio.timeout(WAIT_SECONDS):
        while not fits(facts := await driver.inspect(guest_id)):
            try:
                await asyncio.wait_for(driver.changed(), 1.0)
            except TimeoutError:
                continue
    return facts


async def ended(driver: Driver, plan: ContainerPlan) -> GuestFacts:
    return await until(driver, plan.id, lambda facts: facts.state in ("stopped", "failed"))


async def ready(driver: Driver, plan: ContainerPlan) -> GuestFacts:
    """It runs, and commands can be run in it."""
    await driver.start(plan)
    return await until(driver, plan.id, lambda facts: facts.state == "running" and facts.ready is not False)


async def printed(driver: Driver, plan: ContainerPlan) -> str:
    return b"".join([line.data async for line in driver.read_log(plan.id)]).decode()


async def run(driver: Driver, plan: ContainerPlan) -> str:
    """All that it prints in a run that ends by itself."""
    before = len(await printed(driver, plan)) if (await driver.inspect(plan.id)).state != "absent" else 0
    await driver.start(plan)
    await ended(driver, plan)
    return (await printed(driver, plan))[before:]


async def says(driver: Driver, plan: ContainerPlan, word: str) -> None:
    """Return once it has printed that line."""
    async with asyncio.timeout(WAIT_SECONDS):
        async for line in driver.read_log(plan.id, follow=True):
            if line.data.decode().strip() == word:
                return
    raise AssertionError(f"it ended without saying {word}")


async def output_of(
    driver: Driver, plan: ContainerPlan, *argv: str, stdin: bytes = b"", **terminal: Any
) -> tuple[str, int | None]:
    session = await driver.exec(plan.id, ExecRequest(list(argv), **terminal))
    if not terminal:
        await session.write(stdin)
        await session.close_stdin()
    out = b""
    async with asyncio.timeout(WAIT_SECONDS):
        async for chunk in session.output():
            if chunk.channel == "exit":
                await session.close()
                return out.decode(), chunk.code
            out += chunk.data
    raise AssertionError("output ended without an exit")


async def bear(lab: ContainerLab) -> AsyncIterator[Driver]:
    """One driver that was just born; nothing is left on the node when its test is over."""
    driver = lab.driver()
    yield driver
    last = lab.drivers[-1]
    for facts in await last.recover():
        await last.stop(facts.id, grace_seconds=0)
        await last.remove(facts.id)
    await lab.close_drivers()
    assert lab.leftovers() == []


class ContainerPromises:
    @pytest.fixture
    async def driver(self, lab: ContainerLab) -> AsyncIterator[Driver]:
        async for driver in bear(lab):
            yield driver

    @pytest.fixture
    def reborn(self, lab: ContainerLab, driver: Driver) -> Callable[[], Any]:
        """Ends the driver without a word to its containers, and gives the next one."""

        async def restart() -> Driver:
            await driver.close()
            lab.drivers.clear()
            heir: Driver = lab.driver()
            return heir

        return restart

    async def test_it_says_what_it_can_do(self, driver: Driver) -> None:
        probe = await driver.probe()
        assert probe.driver == driver.name and probe.usable
        assert probe.kinds == ("container",) and probe.isolations
        assert {"exec", "stats", "log"} <= set(probe.capabilities)
        assert isinstance(driver, CanExec) and isinstance(driver, HasStats) and isinstance(driver, HasLog)

    async def test_an_unknown_one_is_absent_and_may_be_stopped_and_removed(self, driver: Driver) -> None:
        assert (await driver.inspect("nobody0000")).state == "absent"
        await driver.stop("nobody0000", grace_seconds=0)
        await driver.remove("nobody0000")
        with pytest.raises(NotFound):
            await driver.exec("nobody0000", ExecRequest(["true"]))
        with pytest.raises(NotFound):
            _ = [line async for line in driver.read_log("nobody0000")]

    async def test_it_says_what_it_prints_and_how_it_ended(self, lab: ContainerLab, driver: Driver) -> None:
        text = "echo one; echo two >&2; cat /etc/issue; hostname; echo $$; exit 3"
        plan = lab.script("talks", text, hostname="box")
        await driver.start(plan)
        facts = await ended(driver, plan)
        assert (facts.state, facts.reason, facts.exit_code) == ("failed", "exited", 3)
        lines = [line async for line in driver.read_log(plan.id)]
        assert {(line.channel, line.data) for line in lines} == {
            *(("stdout", b"one\n"), ("stderr", b"two\n"), ("stdout", b"upper\n"), ("stdout", b"box\n")),
            ("stdout", b"1\n"),
        }
        assert [line.data async for line in driver.read_log(plan.id, tail=1)] == [lines[-1].data]
        assert facts.started_at is not None and abs(lines[0].at - facts.started_at) < WAIT_SECONDS

    async def test_what_it_wrote_is_there_in_its_next_run_and_gone_when_removed(
        self, lab: ContainerLab, driver: Driver
    ) -> None:
        plan = lab.script("writes", "cat /kept 2>/dev/null; echo seen > /kept; rm -f /etc/issue")
        assert [await run(driver, plan) for _ in range(2)] == ["", "seen\n"]
        assert (await driver.inspect(plan.id)).reason == "completed"
        await driver.remove(plan.id)
        assert (await driver.inspect(plan.id)).state == "absent"
        assert await run(driver, plan) == ""
        other = lab.script("reads", "cat /etc/issue; ls /kept 2>/dev/null")
        assert await run(driver, other) == "upper\n"

    async def test_it_is_asked_to_end_and_forced_when_it_doesnt(self, lab: ContainerLab, driver: Driver) -> None:
        polite = lab.script("polite", "trap 'echo bye; exit 7' QUIT; echo up; while :; do sleep 0.05; done")
        process = msgspec.structs.replace(polite.process, stop_signal="SIGQUIT")
        polite = msgspec.structs.replace(polite, process=process)
        deaf = lab.script("deaf", "trap '' TERM; echo up; while :; do sleep 1; done")
        for plan in (polite, deaf):
            await ready(driver, plan)
            await says(driver, plan, "up")
        with pytest.raises(IllegalTransition):
            await driver.remove(polite.id)
        await driver.stop(polite.id, grace_seconds=WAIT_SECONDS)
        facts = await driver.inspect(polite.id)
        assert (facts.state, facts.reason, facts.exit_code) == ("stopped", "stopRequested", 7)
        assert (await printed(driver, polite)).endswith("bye\n")
        await driver.stop(deaf.id, grace_seconds=0.1)
        facts = await driver.inspect(deaf.id)
        assert (facts.state, facts.reason, facts.exit_code) == ("stopped", "stopRequested", 137)
        await driver.stop(deaf.id, grace_seconds=0)  # again is fine

    async def test_a_stop_that_is_given_up_leaves_it_running(self, lab: ContainerLab, driver: Driver) -> None:
        plan = lab.script("unmoved", "trap '' TERM; echo up; while :; do sleep 1; done")
        started = await ready(driver, plan)
        await says(driver, plan, "up")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(driver.stop(plan.id, grace_seconds=WAIT_SECONDS), 0.5)
        assert (await asyncio.wait_for(driver.start(plan), WAIT_SECONDS)).pid == started.pid

    async def test_one_that_is_killed_is_told_so_and_starts_again(self, lab: ContainerLab, driver: Driver) -> None:
        plan = lab.script("victim", "[ ! -e /kept ] || exit 0; echo here > /kept; sync; echo up; sleep 1000")
        facts = await ready(driver, plan)
        await says(driver, plan, "up")
        lab.kill(facts)
        facts = await ended(driver, plan)
        assert (facts.state, facts.reason) == ("failed", "killed")
        await driver.start(plan)
        assert (await ended(driver, plan)).exit_code == 0

    async def test_one_that_wants_more_memory_than_it_has_is_told_so(self, lab: ContainerLab, driver: Driver) -> None:
        plan = lab.plan("hungry", "tail", "/dev/zero")
        await driver.start(plan)
        facts = await ended(driver, plan)
        assert (facts.state, facts.reason, facts.exit_code) == ("failed", "outOfMemory", 137)

    async def test_commands_run_beside_it(self, lab: ContainerLab, driver: Driver) -> None:
        plan = lab.plan("host", user=User(1000, 1000, [7], home="/www"))
        process = msgspec.structs.replace(plan.process, env=["PATH=/bin", "A=b c"])
        plan = msgspec.structs.replace(plan, process=process)
        await ready(driver, plan)
        text = "cat; id -u; id -G; pwd; echo $A; exit 4"
        said = await output_of(driver, plan, "sh", "-c", text, stdin=b"given\n")
        assert said == ("given\n1000\n1000 7\n/\nb c\n", 4)
        session = await driver.exec(plan.id, ExecRequest(["sh", "-c", "pwd; echo $MORE"], {"MORE": "x"}, "/etc"))
        assert b"".join([chunk.data async for chunk in session.output()]) == b"/etc\nx\n"
        out, code = await output_of(driver, plan, "no-such-program")
        assert code == 127 and "no-such-program" in out
        assert (await driver.stats(plan.id)).resident_bytes > 0
        await driver.stop(plan.id, grace_seconds=0)
        with pytest.raises(Unavailable):
            await driver.exec(plan.id, ExecRequest(["true"]))

    async def test_a_command_has_a_terminal_that_changes_its_size(self, lab: ContainerLab, driver: Driver) -> None:
        plan = lab.plan("terminal")
        await ready(driver, plan)
        awaits = "until stty size | grep -x '{}'; do sleep 0.1; done"  # a runtime may pass a size on a moment later
        text = f"echo up; {awaits.format('33 99')}; {awaits.format('20 70')}; tty; exit 9"
        session = await driver.exec(plan.id, ExecRequest(["sh", "-c", text], tty=True))
        assert isinstance(session, CanResize), [chunk async for chunk in session.output()]
        changes = [
            (b"up", (33, 99)),
            (b"33 99", (20, 70)),
        ]  # each once the command runs and has reported the one before
        out = b""
        async with asyncio.timeout(WAIT_SECONDS):
            async for chunk in session.output():
                out += chunk.data
                if changes and changes[0][0] in out:
                    await session.resize(*changes.pop(0)[1])
        assert chunk.code == 9 and b"20 70" in out and b"/dev/pts/" in out

    async def test_a_terminal_has_the_size_that_it_was_given_before_its_command_began(
        self, lab: ContainerLab, driver: Driver
    ) -> None:
        plan = lab.plan("early")
        await ready(driver, plan)
        for delay in (0.0, 0.002, 0.005, 0.01, 0.02, 0.05):  # any of them may be before or after it begins
            text = "until stty size | grep -x '33 99'; do sleep 0.1; done; exit 9"
            session = await driver.exec(plan.id, ExecRequest(["sh", "-c", text], tty=True))
            assert isinstance(session, CanResize), [chunk async for chunk in session.output()]
            await asyncio.sleep(delay)
            await session.resize(33, 99)
            async with asyncio.timeout(WAIT_SECONDS):
                out = [chunk async for chunk in session.output()]
            assert out[-1].code == 9

    async def test_a_program_that_is_not_there_is_reported_on_a_terminal_too(
        self, lab: ContainerLab, driver: Driver
    ) -> None:
        plan = lab.plan("missing")
        await ready(driver, plan)
        out, code = await output_of(driver, plan, "no-such-program", tty=True)
        assert code == 127 and "no-such-program" in out

    async def test_a_command_ends_when_nobody_waits_for_it(self, lab: ContainerLab, driver: Driver) -> None:
        plan = lab.plan("hung")
        await ready(driver, plan)
        session = await driver.exec(plan.id, ExecRequest(["sleep", "999"]))
        count = ("sh", "-c", "ps | grep -c '[s]leep 999'")
        async with asyncio.timeout(WAIT_SECONDS):
            while (await output_of(driver, plan, *count))[0] != "1\n":
                await asyncio.sleep(0.05)
            await session.close()
            while (await output_of(driver, plan, *count))[0] != "0\n":
                await asyncio.sleep(0.05)

    async def test_a_driver_made_anew_finds_it_running_and_hears_its_end(
        self, lab: ContainerLab, driver: Driver, reborn: Callable[[], Any]
    ) -> None:
        plan = lab.script("stays", "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two; exit 5")
        before = await ready(driver, plan)
        heir = await reborn()
        [facts] = await heir.recover()
        assert (facts.state, facts.pid, facts.uid) == ("running", before.pid, plan.uid)
        assert (facts.incarnation, facts.started_at) == (before.incarnation, before.started_at)
        assert (await heir.start(plan)).pid == before.pid
        await ready(heir, plan)
        await output_of(heir, plan, "touch", "/go")  # it may be killed with the container, which ends for it
        assert (await ended(heir, plan)).exit_code == 5
        assert await printed(heir, plan) == "one\ntwo\n"

    async def test_one_that_ended_while_nobody_looked_is_told_as_it_ended(
        self, lab: ContainerLab, driver: Driver, reborn: Callable[[], Any]
    ) -> None:
        plan = lab.script("away", "sleep 0.5; echo bye; exit 6")
        pid = (await driver.start(plan)).pid
        heir = await reborn()
        async with asyncio.timeout(WAIT_SECONDS):
            while is_alive(pid):
                await asyncio.sleep(0.02)
        [facts] = await heir.recover()
        facts = await ended(heir, plan)
        assert (facts.state, facts.reason, facts.exit_code) == ("failed", "exited", 6)
        assert await printed(heir, plan) == "bye\n"

    async def test_it_has_the_rights_that_it_is_given_and_no_more(self, lab: ContainerLab, driver: Driver) -> None:
        text = """grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status
        mknod /x b 254 0 2>/dev/null || echo no device
        (echo 1 > /proc/sys/vm/overcommit_memory) 2>/dev/null || echo no sysctl
        mount -t tmpfs x /tmp 2>/dev/null || echo no mount"""
        out = await run(driver, lab.script("root", text, capabilities=["CAP_CHOWN", "CAP_KILL", "CAP_SYS_CHROOT"]))
        held = f"{1 << 0 | 1 << 5 | 1 << 18:016x}"
        assert [f"CapEff:\t{held}", f"CapBnd:\t{held}", "NoNewPrivs:\t1"] == out.splitlines()[:3]
        for word in ("no device", "no sysctl", "no mount"):
            assert word in out
        assert "CapEff:\t0000000000000000" in await run(driver, lab.script("user", text, user=User(1000, 1000)))

    async def test_a_read_only_root_is_read_only_but_for_tmp_and_run(self, lab: ContainerLab, driver: Driver) -> None:
        mounts = [ContainerMount("", "/data/scratch", size_bytes=4 * MIB), ContainerMount("", "/ro", read_only=True)]
        text = "for at in / /tmp /run /data /data/scratch /ro; do (echo x > $at/x) 2>/dev/null && echo $at; done; "
        text += "df -k /data/scratch | tail -1; cat /etc/hostname"
        out = await run(driver, lab.script("fixed", text, read_only_root=True, mounts=mounts))
        assert out.startswith("/tmp\n/run\n/data/scratch\n") and " 4096 " in out and out.endswith("fixed\n")

    async def test_another_cannot_take_its_id(self, lab: ContainerLab, driver: Driver) -> None:
        plan = lab.plan("mine")
        before = await driver.start(plan)
        with pytest.raises(WeftError):
            await driver.start(msgspec.structs.replace(plan, uid="00000000-0000-4000-8000-00000000beef"))
        assert (await driver.inspect(plan.id)).pid == before.pid

    async def test_a_start_that_fails_leaves_nothing(self, lab: ContainerLab, driver: Driver) -> None:
        plan = lab.plan("broken", layers=["/nowhere/at/all"])
        with pytest.raises(WeftError):
            await driver.start(plan)
        assert (await driver.inspect(plan.id)).state == "absent"
        assert lab.leftovers() == []
