"""Commands on a terminal that never begin: they are told of, and nothing of them is left, whatever the runtime does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from container_lab import ContainerLab
from container_labs import open_lab

from weft.contracts.driver.container import ContainerPlan
from weft.contracts.driver.runtime import ExecRequest
from weft.drivers.linux.processes import find_by_argument
from weft.drivers.runtime.oci.driver import OciDriver
from weft.drivers.runtime.oci.exec import terminal
from weft.drivers.runtime.oci.mount_namespace import spawn_in_mount_namespace
from weft.objects.errors import DriverFailed

pytest.register_assert_rewrite("tests.conformance.container_contract")

from tests.conformance.container_contract import WAIT_SECONDS, bear, is_alive, output_of, ready

pytestmark = pytest.mark.host

# runc, but what it does to run a command begins with this, which may hang. Its number is in the file "began" then.
STAND_IN = """#!/bin/sh
for word; do
  if [ "$word" = exec ]; then
    echo $$ >> {folder}/began
    {hangs}
  fi
done
exec runc "$@"
"""
HANGS = "exec tail -n 0 -f {folder}/began"
# As runc 1.1 does if it comes to set its terminal after the command couldn't be started: it waited for its child, wrote neither
# the error nor a pid file, and waits.
HANGS_ONCE = f"[ $(wc -l < {{folder}}/began) -gt 1 ] || {{ sleep 0.1; {HANGS}; }}"


@pytest.fixture(params=["crun", "runc"])
def lab(request: pytest.FixtureRequest) -> Iterator[ContainerLab]:
    with open_lab(request.param) as lab:
        yield lab


@pytest.fixture
def runc() -> Iterator[ContainerLab]:
    with open_lab("runc") as lab:
        yield lab


@contextlib.asynccontextmanager
async def stand_in(lab: ContainerLab, hangs: str, name: str) -> AsyncIterator[tuple[OciDriver, ContainerPlan]]:
    """A container that runs, of a runtime that may hang."""
    program = lab.folder / "runc"
    program.write_text(STAND_IN.replace("{hangs}", hangs).replace("{folder}", str(lab.folder)))
    program.chmod(0o700)
    lab.runtime = str(program)
    async with contextlib.aclosing(bear(lab)) as drivers:
        async for driver in drivers:
            plan = lab.plan(name)
            await ready(driver, plan)
            yield driver, plan


def list_begun(lab: ContainerLab) -> list[int]:
    try:
        return [int(line) for line in (lab.folder / "began").read_text().splitlines()]
    except FileNotFoundError:
        return []


def list_marks(lab: ContainerLab, plan: ContainerPlan) -> list[Path]:
    return list(Path(lab.host.run_dir, "containers", plan.id).glob("*exec-*"))


async def test_a_runtime_that_hangs_over_a_command_that_could_not_be_started_is_asked_again(runc: ContainerLab) -> None:
    async with stand_in(runc, HANGS_ONCE, "again") as (driver, plan):
        out, code = await output_of(driver, plan, "no-such-program", tty=True)
        assert code == 127 and "no-such-program" in out
        hung, asked_again = list_begun(runc)
        assert not is_alive(hung) and not is_alive(asked_again)


async def test_a_command_that_never_begins_is_given_up(runc: ContainerLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "HAND_OVER_SECONDS", 1.0)
    async with stand_in(runc, HANGS, "never") as (driver, plan):
        async with asyncio.timeout(WAIT_SECONDS):
            with pytest.raises(DriverFailed, match="terminal wasn't there within 1 s"):
                await output_of(driver, plan, "true", tty=True)
        [hung] = list_begun(runc)
        assert not is_alive(hung) and list_marks(runc, plan) == []


async def test_a_runtime_that_hangs_ends_when_nobody_waits_for_it(runc: ContainerLab) -> None:
    async with stand_in(runc, HANGS, "left") as (driver, plan), asyncio.timeout(WAIT_SECONDS):
        starting = asyncio.create_task(driver.exec(plan.id, ExecRequest(["true"], tty=True)))
        while not list_begun(runc):
            await asyncio.sleep(0.01)
        starting.cancel()
        await asyncio.wait([starting])
        [hung] = list_begun(runc)
        assert not is_alive(hung) and list_marks(runc, plan) == []


async def test_a_terminal_may_hang_up_at_any_moment(lab: ContainerLab) -> None:
    async for driver in bear(lab):
        plan = lab.plan("moments")
        await ready(driver, plan)
        before = set(lab.processes())
        for moment in range(50):
            starting = asyncio.create_task(driver.exec(plan.id, ExecRequest(["cat"], tty=True)))
            await asyncio.wait([starting], timeout=moment * 0.002)
            if not starting.cancel():
                await (await starting).close()
        async with asyncio.timeout(WAIT_SECONDS):
            while set(lab.processes()) - before or list_marks(lab, plan):
                await asyncio.sleep(0.05)


async def test_a_program_whose_start_is_cancelled_does_not_run_on(runc: ContainerLab) -> None:
    (place := runc.folder / "nothing").touch()
    starting = asyncio.create_task(spawn_in_mount_namespace(["tail", "-f", str(place)], []))
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled() and find_by_argument(str(place)) == []
