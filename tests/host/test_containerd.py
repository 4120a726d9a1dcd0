"""Containers that a containerd holds: it, its shims and whoever started them may be killed, and nothing of another is touched.

What containers promise anyway is asked of this driver in test_container_promises, test_containers, _volumes and _walls.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from container_lab import ContainerLab
from containerd_lab import ContainerdLab

from weft.contracts.driver.container import ContainerPlan, User
from weft.contracts.driver.runtime import ExecRequest, GuestFacts
from weft.drivers.linux.processes import inspect_process
from weft.drivers.runtime.oci.conmon.logs import turned
from weft.drivers.runtime.oci.driver import OciDriver
from weft.objects.errors import Unavailable, WeftError

WAIT_SECONDS = 60.0

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("containerd", "ctr", "runc"))),
        reason="needs root, containerd and runc",
    ),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[ContainerdLab]:
    lab = ContainerdLab()
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture
async def driver(lab: ContainerdLab) -> AsyncIterator[OciDriver]:
    driver = lab.driver()
    yield driver
    if not lab.containerd.runs:
        lab.containerd.start()
    await lab.close_drivers()
    last = lab.driver()
    for facts in await last.recover():
        await last.stop(facts.id, grace_seconds=0)
        await last.remove(facts.id)
    await lab.close_drivers()
    for _ in range(600):  # a control group goes when the last process in it has been waited for
        if not lab.leftovers():
            break
        await asyncio.sleep(0.1)
    assert lab.leftovers() == []


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not holds():
            await asyncio.sleep(0.02)


async def ended(driver: OciDriver, plan: ContainerPlan) -> GuestFacts:
    async with asyncio.timeout(WAIT_SECONDS):
        while (facts := await driver.inspect(plan.id)).state not in ("stopped", "failed"):
            await asyncio.sleep(0.05)
    return facts


async def printed(driver: OciDriver, plan: ContainerPlan) -> str:
    return b"".join([line.data async for line in driver.read_log(plan.id)]).decode()


async def output_of(driver: OciDriver, plan: ContainerPlan, *argv: str) -> str:
    session = await driver.exec(plan.id, ExecRequest(list(argv)))
    out = b"".join([chunk.data async for chunk in session.output()]).decode()
    await session.close()
    return out


async def test_it_says_which_containerd_that_is(lab: ContainerdLab, driver: OciDriver) -> None:
    probe = await driver.probe()
    assert probe.driver == "containerd" and probe.usable and probe.problems == []
    assert probe.version.startswith(lab.containerd.say("version").split("Version:")[2].split()[0])


async def test_a_killed_containerd_takes_nothing_along(lab: ContainerdLab, driver: OciDriver) -> None:
    """Its containers run and print on, and can be stopped; one that ends meanwhile is told with its exit code."""
    stays = lab.script("stays", "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two; exit 5")
    leaves = lab.script("leaves", "trap 'exit 6' USR1; while :; do sleep 0.05; done")
    for plan in (stays, leaves):
        await driver.start(plan)
    before = await driver.inspect(stays.id)
    waiting = await driver.exec(stays.id, ExecRequest(["sh", "-c", "read x; echo $x; exit 3"]))
    lab.containerd.kill()
    assert (await driver.inspect(stays.id)).state == "running"
    assert not (await driver.probe()).usable
    with pytest.raises(WeftError) as refused:
        await driver.start(lab.plan("another"))
    assert "containerd doesn't answer" in refused.value.message
    leaving = (await driver.inspect(leaves.id)).pid
    assert leaving is not None
    os.kill(leaving, signal.SIGUSR1)
    await until(lambda: inspect_process(leaving) is None)
    lab.containerd.start()
    assert (await ended(driver, leaves)).exit_code == 6
    await waiting.write(b"still here\n")
    chunks = [chunk async for chunk in waiting.output()]
    assert b"".join(chunk.data for chunk in chunks) == b"still here\n" and chunks[-1].code == 3
    await waiting.close()
    assert (await driver.probe()).usable
    assert (await driver.inspect(stays.id)).pid == before.pid
    assert await output_of(driver, stays, "touch", "/go") == ""
    assert (await ended(driver, stays)).exit_code == 5
    assert await printed(driver, stays) == "one\ntwo\n"


async def test_agent_and_containerd_are_killed_and_all_is_found_again(
    lab: ContainerdLab, driver: OciDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # None is being started again meanwhile: to wait for it shows nothing.
    monkeypatch.setattr("weft.drivers.runtime.oci.containerd.client.CONNECT_SECONDS", 0.5)
    monkeypatch.setattr("weft.drivers.runtime.oci.containerd.tasks.EXIT_SECONDS", 1.0)
    plan = lab.script("both", "while [ ! -e /go ]; do sleep 0.05; done; exit 4")
    before = await driver.start(plan)
    await lab.close_drivers()
    lab.containerd.kill()
    heir = lab.driver()
    [facts] = await heir.recover()  # though nobody can be asked
    assert (facts.state, facts.pid) == ("running", before.pid)
    await heir.stop(plan.id, grace_seconds=0)
    assert (await heir.inspect(plan.id)).reason == "stopRequested"
    with pytest.raises(Unavailable):
        await heir.remove(plan.id)  # it would stay in containerd's books
    monkeypatch.undo()
    lab.containerd.start()
    await heir.remove(plan.id)
    assert lab.leftovers() == []


async def test_what_a_killed_agent_left_of_a_start_is_cleared_by_the_next(
    lab: ContainerdLab, driver: OciDriver
) -> None:
    plan = lab.plan("cut-off")
    script = (
        "import asyncio, msgspec, os, sys\n"
        "from weft.contracts.driver.container import ContainerPlan\n"
        "from weft.contracts.driver.host import Host\n"
        "from weft.drivers.runtime.oci.containerd import client\n"
        "from weft.drivers.runtime.oci.driver import OciDriver\n"
        "real = client.Client.call\n"
        "async def call(self, path, **more):\n"
        "    if path == 'tasks.v1.Tasks/Start' and not more['container_id'].startswith('probe'):\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return await real(self, path, **more)\n"
        "client.Client.call = call\n"
        "host = msgspec.json.decode(sys.argv[1], type=Host)\n"
        "plan = msgspec.json.decode(sys.argv[2], type=ContainerPlan)\n"
        "asyncio.run(OciDriver(host, containerd=sys.argv[3]).start(plan))\n"
    )
    words = [msgspec.json.encode(lab.host).decode(), msgspec.json.encode(plan).decode(), lab.containerd.address]
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, *words)
    assert await agent.wait() == -signal.SIGKILL
    assert plan.id in lab.containerd.say("tasks", "list", "-q")
    [facts] = await driver.recover()
    assert (facts.state, facts.reason) == ("failed", "startInterrupted")
    assert lab.processes() == [] and plan.id not in lab.containerd.say("containers", "list", "-q")
    assert (await driver.start(plan)).state == "running"


async def test_a_shim_that_is_killed_takes_its_container_along_and_no_other(
    lab: ContainerdLab, driver: OciDriver
) -> None:
    plan, other = lab.plan("held"), lab.plan("beside")
    await driver.start(plan)
    await driver.start(other)
    shim = driver._known[plan.id].record.shim
    assert shim is not None
    os.kill(shim.pid, signal.SIGKILL)
    facts = await ended(driver, plan)
    assert (facts.state, facts.reason, facts.exit_code) == ("failed", "shimLost", None)
    assert (await driver.inspect(other.id)).state == "running"
    assert (await driver.start(plan)).state == "running"


async def test_one_whose_record_is_lost_is_found_in_containerds_books(lab: ContainerdLab, driver: OciDriver) -> None:
    plan = lab.plan("forgotten")
    before = await driver.start(plan)
    await lab.close_drivers()
    shutil.rmtree(Path(lab.host.state_dir, "containers", plan.id))
    heir = lab.driver()
    [facts] = await heir.recover()
    assert (facts.state, facts.uid, facts.pid) == ("running", plan.uid, before.pid)
    await heir.stop(plan.id, grace_seconds=0)


async def test_containers_of_others_are_left_alone(lab: ContainerdLab, driver: OciDriver) -> None:
    """Another's namespace, and another node in weft's own: neither is told of, stopped or removed."""
    root = lab.folder / "layers" / "lower"
    lab.containerd.say("run", "-d", "--rootfs", str(root), "theirs", "/bin/sleep", "1000", namespace="others")
    neighbour = ContainerLab("runc")
    host = msgspec.structs.replace(neighbour.host, node="n2")
    second = OciDriver(host, containerd=lab.containerd.address)
    try:
        plan = neighbour.plan("neighbours")
        await second.start(plan)
        assert await driver.recover() == []
        await driver.start(lab.plan("mine"))
        assert (await second.inspect(plan.id)).state == "running"
        assert "theirs" in lab.containerd.say("tasks", "list", namespace="others").split()
        assert "RUNNING" in lab.containerd.say("tasks", "list", namespace="others")
        await second.stop(plan.id, grace_seconds=0)
        await second.remove(plan.id)
    finally:
        await second.close()
        neighbour.close()
        lab.containerd.say("tasks", "kill", "-s", "SIGKILL", "theirs", namespace="others")
        await until(lambda: "STOPPED" in lab.containerd.say("tasks", "list", namespace="others"))
        lab.containerd.say("tasks", "delete", "theirs", namespace="others")
        lab.containerd.say("containers", "delete", "theirs", namespace="others")


async def test_what_it_may_print_is_bounded_and_its_own_outputs_can_be_opened(
    lab: ContainerdLab, driver: OciDriver
) -> None:
    text = (
        "echo opened > /dev/stdout; echo too > /dev/stderr; dd if=/dev/zero bs=1M count=9 2>/dev/null | tr '\\0' 'x'; "
    )
    plan = lab.script("loud", text + "echo; echo last", user=User(1000, 1000))
    await driver.start(plan)
    assert (await ended(driver, plan)).reason == "completed"
    log = Path(lab.host.state_dir, "containers", plan.id, "log")
    assert turned(log).read_bytes().count(b"opened") == 1
    assert [line.data async for line in driver.read_log(plan.id, tail=1)] == [b"last\n"]
    assert log.stat().st_size < 8 << 20


async def test_containers_change_hands_without_being_touched(lab: ContainerdLab, driver: OciDriver) -> None:
    """An agent that is told another runtime cares for what the one before holds."""
    held = lab.plan("by-containerd")
    before = await driver.start(held)
    await lab.close_drivers()
    plain = OciDriver(lab.host)
    lab.drivers.append(plain)
    [facts] = await plain.recover()
    assert (facts.state, facts.pid) == ("running", before.pid)
    assert await output_of(plain, held, "echo", "here") == "here\n"
    alone = lab.plan("by-conmon")
    by_conmon = await plain.start(alone)
    await lab.close_drivers()
    heir = lab.driver()
    assert {facts.pid for facts in await heir.recover()} == {before.pid, by_conmon.pid}
    await heir.stop(alone.id, grace_seconds=0)
    assert (await heir.inspect(alone.id)).exit_code == 137


async def test_a_containerd_that_isnt_there_is_said_so(lab: ContainerdLab, tmp_path: Path) -> None:
    driver = OciDriver(lab.host, containerd=str(tmp_path / "none.sock"))
    probe = await driver.probe()
    [problem] = probe.problems
    assert not probe.usable and "none.sock" in problem and "start it" in problem
    await driver.close()


async def test_commands_run_in_one_that_was_given_its_network(lab: ContainerdLab, driver: OciDriver) -> None:
    """A namespace that isn't its own users': runc 1.1 starts such a container and then runs no command in it."""
    with subprocess.Popen(["unshare", "--net", "sleep", "1000"]) as holder:
        await until(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != os.readlink("/proc/self/ns/net"))
        plan = lab.plan("networked", netns=f"/proc/{holder.pid}/ns/net")
        await driver.start(plan)
        assert await output_of(driver, plan, "echo", "here") == "here\n"
        holder.kill()
