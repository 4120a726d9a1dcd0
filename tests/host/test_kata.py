"""Containers that a runtime of containerd's is given as Kata is: layers with the task, folders, a network namespace, and the API
for all else. The runtime is runc's; that nothing here looks at its processes makes it stand for one that has none on the node.

What containers promise anyway is asked of this driver in test_container_promises (long).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from container_labs import open_lab
from containerd_lab import Containerd, ContainerdLab
from kata_lab import RUNC, KataLab

from weft.contracts.driver.container import ContainerMount
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.runtime.oci import process_holder
from weft.drivers.runtime.oci.kata.driver import KataDriver
from weft.drivers.runtime.oci.kata.translate import name_class
from weft.drivers.runtime.oci.rootfs import loop_device
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.errors import DriverFailed, InvalidInput, Unavailable

pytest.register_assert_rewrite("tests.conformance.container_contract")

from tests.conformance.container_contract import MIB, bear, ended, output_of, printed, ready, run

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def lab() -> Iterator[KataLab]:
    with open_lab("kata", "mkfs.ext4") as lab:
        assert isinstance(lab, KataLab)
        yield lab


@pytest.fixture
async def driver(lab: KataLab) -> AsyncIterator[KataDriver]:
    async for driver in bear(lab):
        yield driver
        if not lab.containerd.runs:
            lab.containerd.start()
    async with asyncio.timeout(60):
        while attached(lab):
            await asyncio.sleep(0.02)


def attached(lab: KataLab) -> list[str]:
    """Loop devices on files of this lab."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found.append(path.read_text().strip())
    return [name for name in found if str(lab.folder) in name]


async def make_volume(lab: KataLab, name: str) -> ContainerMount:
    facts = await DirectoryVolumes(lab.host).ensure_files(name, size_bytes=16 * MIB, owner=(0, 0))
    return ContainerMount(facts.path, "/data", file_system="ext4")


async def test_it_says_by_what_its_machines_are(lab: KataLab, driver: KataDriver) -> None:
    probe = await driver.probe()
    version = lab.containerd.say("version").split("Version:")[2].split()[0]
    assert (probe.driver, probe.version, probe.isolations) == ("kata", f"runc by containerd {version}", ("vm",))
    assert await driver.probe() is probe  # the same one answers
    with pytest.raises(InvalidInput, match="devices"):
        await driver.start(lab.plan("devices", devices=["/dev/null"]))


async def test_it_runs_ends_and_is_counted_without_a_look_at_processes_or_control_groups(
    lab: KataLab, driver: KataDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it prints, commands, a volume, many layers, and what it uses."""
    volume = await make_volume(lab, "vol-one")
    layers = [str(lab.folder / "many" / f"{number:064}") for number in range(60)]
    for layer in layers:
        Path(layer).mkdir(parents=True)
    (Path(layers[0]) / "top").write_text("from the top layer\n")
    text = "cat /top; echo mine > /data/file; trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done"
    plan = lab.script("seen", text, layers=[*layers, *lab.layers], mounts=[volume])
    await driver.probe()
    monkeypatch.setattr(loop_device, "_LOOKS", 5)

    def look(*_: object, **__: object) -> None:
        raise AssertionError("it looked")

    for name in ("stats", "out_of_memory_kills"):
        monkeypatch.setattr(ControlGroups, name, look)
    for name in ("is_alive", "inspect_process", "wait_for_end"):
        monkeypatch.setattr(process_holder, name, look)
    facts = await ready(driver, plan)
    assert facts.pid is not None and facts.pid > 1
    assert await output_of(driver, plan, "cat", "/data/file") == ("mine\n", 0)
    assert (await driver.stats(plan.id)).resident_bytes > 0
    assert (await driver.stats(plan.id)).cpu_seconds > 0
    await driver.adjust(msgspec.structs.replace(plan, memory_bytes=96 * MIB))
    assert (await driver.inspect(plan.id)).shape.memory_bytes == 96 * MIB  # type: ignore[union-attr]
    with pytest.raises(DriverFailed, match="still in use"):
        await driver.start(lab.plan("wants-it", mounts=[volume]))
    await driver.stop(plan.id, grace_seconds=30)
    assert attached(lab) == []  # at once: the next run has it checked first
    monkeypatch.undo()
    assert (await driver.inspect(plan.id)).exit_code == 7
    assert await printed(driver, plan) == "from the top layer\nup\n"
    await driver.remove(plan.id)
    assert not (lab.run.with_name("volumes") / plan.id).exists()
    again = lab.script("again", "cat /data/file", mounts=[volume])
    assert await run(driver, again) == "mine\n"


async def test_what_it_writes_lies_on_a_disk_of_its_own_and_stays_there(lab: KataLab, driver: KataDriver) -> None:
    text = "[ -e /big ] && wc -c < /big; set -- $(df -m / | tail -1); echo $2; "
    text += "dd if=/dev/zero of=/big bs=1M count=100 2>&1 | grep -o 'No space left on device'"
    plan = lab.script("writes", text, disk_bytes=32 * MIB)
    size, lack = (await run(driver, plan)).split("\n", 1)
    assert lack == "No space left on device\n" and 24 < int(size) <= 32
    kept = int((await run(driver, plan)).split()[0])
    assert 16 * MIB < kept < 32 * MIB and (lab.state / plan.id / "root.ext4").stat().st_size == 32 * MIB


async def test_want_of_memory_is_heard_of_containerd(lab: KataLab, driver: KataDriver) -> None:
    plan = lab.plan("hungry", "tail", "/dev/zero")
    await driver.start(plan)
    facts = await ended(driver, plan)
    assert (facts.reason, facts.exit_code) == ("outOfMemory", 137)


async def test_its_network_is_the_one_it_is_given(lab: KataLab, driver: KataDriver) -> None:
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "ip link add eth0 type veth peer name eth1; exec sleep 1000"]
    ) as holder:
        async with asyncio.timeout(60):
            while "eth0" not in Path(f"/proc/{holder.pid}/net/dev").read_text():
                await asyncio.sleep(0.02)
        plan = lab.script("networked", "ls /sys/class/net; sleep 1000", netns=f"/proc/{holder.pid}/ns/net")
        await ready(driver, plan)
        out, code = await output_of(driver, plan, "ls", "/sys/class/net")
        assert code == 0 and "eth0" in out.split()
        await driver.stop(plan.id, grace_seconds=0)
        holder.kill()


@pytest.mark.long
async def test_what_befalls_it_while_containerd_or_its_agent_is_away_is_told_after(
    lab: KataLab, driver: KataDriver
) -> None:
    """Neither takes a container along, and what lies in a volume is there whatever could not be cleared away."""
    volume = await make_volume(lab, "vol-away")
    stays = lab.script(
        "stays", "echo kept > /data/file; while [ ! -e /go ]; do sleep 0.05; done; exit 5", mounts=[volume]
    )
    leaves = lab.script("leaves", "while [ ! -e /go ]; do sleep 0.05; done; exit 6")
    for plan in (stays, leaves):
        await ready(driver, plan)
    root = lab.containerd.folder / "state" / "io.containerd.runtime.v2.task" / "weft" / leaves.id / "rootfs"
    lab.containerd.kill()
    (root / "go").touch()
    with pytest.raises(Unavailable):
        await driver.stop(stays.id, grace_seconds=0)  # nobody can tell it
    await lab.close_drivers()
    heir = lab.driver()
    assert {facts.state for facts in await heir.recover()} == {"running"}  # as far as anybody knows
    lab.containerd.start()
    assert (await ended(heir, leaves)).exit_code == 6
    await heir.stop(stays.id, grace_seconds=0)
    facts = await heir.inspect(stays.id)
    assert (facts.state, facts.reason, facts.exit_code) == ("stopped", "stopRequested", 137)
    assert await run(heir, lab.script("reads", "cat /data/file", mounts=[volume])) == "kept\n"


async def test_a_shim_that_is_killed_takes_its_container_along(lab: KataLab, driver: KataDriver) -> None:
    plan = lab.plan("held")
    await ready(driver, plan)
    shim = driver._known[plan.id].record.shim
    assert shim is not None
    os.kill(shim.pid, signal.SIGKILL)
    facts = await ended(driver, plan)
    assert (facts.state, facts.reason, facts.exit_code) == ("failed", "shimLost", None)
    assert (await driver.start(plan)).state == "running"


async def test_what_a_killed_agent_left_of_a_start_is_cleared_by_the_next(lab: KataLab, driver: KataDriver) -> None:
    plan = lab.plan("cut-off", mounts=[await make_volume(lab, "vol-cut")])
    script = (
        "import asyncio, msgspec, os, sys\n"
        "from weft.contracts.driver.container import ContainerPlan\n"
        "from weft.contracts.driver.host import Host\n"
        "from weft.drivers.runtime.oci.containerd import client\n"
        "from weft.drivers.runtime.oci.kata.driver import KataDriver\n"
        "real = client.Client.call\n"
        "async def call(self, path, **more):\n"
        "    if path == 'tasks.v1.Tasks/Start' and not more['container_id'].startswith('probe'):\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return await real(self, path, **more)\n"
        "client.Client.call = call\n"
        "host = msgspec.json.decode(sys.argv[1], type=Host)\n"
        "plan = msgspec.json.decode(sys.argv[2], type=ContainerPlan)\n"
        "asyncio.run(KataDriver(host, None, sys.argv[3], sys.argv[4]).start(plan))\n"
    )
    words = [msgspec.json.encode(lab.host).decode(), msgspec.json.encode(plan).decode(), lab.containerd.address, RUNC]
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, *words)
    assert await agent.wait() == -signal.SIGKILL
    assert plan.id in lab.containerd.say("tasks", "list", "-q") and attached(lab)
    [facts] = await driver.recover()
    assert (facts.state, facts.reason) == ("failed", "startInterrupted")
    assert lab.processes() == [] and plan.id not in lab.containerd.say("containers", "list", "-q")
    assert (await driver.start(plan)).state == "running"


@pytest.mark.long
async def test_it_and_the_driver_of_plain_containers_never_meet_in_one_containerd(
    lab: KataLab, driver: KataDriver
) -> None:
    """Also not where a record is lost, and one is found again by containerd's books alone."""
    plan, other = lab.plan("machine"), lab.plan("plain")
    before = await ready(driver, plan)
    plain = ContainerdLab.driver(lab)  # type: ignore[arg-type]
    lab.drivers.remove(plain)  # type: ignore[arg-type]
    try:
        assert await plain.recover() == []
        await plain.start(other)
        await lab.close_drivers()
        shutil.rmtree(lab.state / plan.id)
        heir = lab.driver()
        [facts] = await heir.recover()
        assert (facts.state, facts.uid, facts.pid) == ("running", plan.uid, before.pid)
        assert (await plain.inspect(other.id)).state == "running"
        await plain.stop(other.id, grace_seconds=0)
        await plain.remove(other.id)
    finally:
        await plain.close()


async def test_a_shim_that_makes_no_machine_is_said_so_in_its_words(
    lab: KataLab, driver: KataDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = lab.folder / "bin" / "containerd-shim-kata-v2"
    shim.parent.mkdir()
    tries = lab.folder / "tries"
    shim.write_text(f"#!/bin/sh\necho try >> {tries}; echo no machine here >&2; exit 1\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
    own = Containerd(lab.folder / "own")
    own.start()
    broken = KataDriver(lab.host, None, own.address, name_class("kata"))
    try:
        probe = await broken.probe()
        tried = tries.read_text()
        assert await broken.probe() is probe and tries.read_text() == tried  # not again, as long as nothing has changed
        os.utime(shim)
        assert not (await broken.probe()).usable and tries.read_text() > tried
    finally:
        await broken.close()
        own.end()
    [problem] = probe.problems
    assert not probe.usable and probe.isolations == ("vm",)
    assert "can't run a container on this node" in problem and "no machine here" in problem
    assert ("no /dev/kvm" in problem) is not os.path.exists("/dev/kvm")
