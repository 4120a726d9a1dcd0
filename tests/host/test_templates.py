"""Machines that begin from a template, on real QEMU: each is another one, shares the template's RAM, and lives on as any other."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from guest_lab import MIB, GuestLab, make_disk, unpack_tiny

from weft.agent.template.setup import write_setup
from weft.contracts.driver.identity import Identity
from weft.contracts.driver.runtime import DiskLayer, ExecRequest, GuestDisk, GuestNic, GuestPlan
from weft.contracts.driver.template import RAM, STATE
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.drivers.runtime.qemu.template import driver as making
from weft.kinds.allocation import AllocationSpec, Resources
from weft.objects.errors import DriverFailed
from weft.objects.identity import Ref

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKq0x5w3x5w3x5w3x5w3x5w3x5w3x5w3x5w3x5w3x5w3 me"
WHO = "hostname; cat /etc/machine-id; cat /sys/class/net/eth*/address; head -c 16 /dev/urandom | md5sum"


class Made(NamedTuple):
    lab: TemplateLab
    template: GuestPlan
    folder: Path


class TemplateLab(GuestLab):
    def plan_template(self, name: str) -> GuestPlan:
        plan = self.plan(f"template.{name}")
        return msgspec.structs.replace(plan, nics=[GuestNic("wtlab0", "02:00:00:00:00:01", 1450)])

    def plan_copy(self, number: int, template: GuestPlan, folder: Path, setup: str = "") -> GuestPlan:
        """A copy with a disk of its own over the template's."""
        name, base = f"copy{number}", template.disks[0]
        info = subprocess.run(["qemu-img", "info", "--output=json", base.path], capture_output=True, check=True)
        own = self.folder / f"{name}.qcow2"
        size = str(json.loads(info.stdout)["virtual-size"])
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(own), size], check=True)
        disk = GuestDisk(str(own), "qcow2", "root", base=base.base, layers=[DiskLayer(base.path, "qcow2")])
        return msgspec.structs.replace(
            self.plan(name),
            disks=[disk],
            nics=[GuestNic(f"wtlab{number}", f"02:00:00:00:01:{number:02x}", 1450)],
            memory=str(folder / STATE),
            ram=str(folder / RAM),
            identity=Identity(name, uuid.uuid4().hex),
            setup=setup,
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A template of tiny, made once."""
    lab = TemplateLab(unpack_tiny(tmp_path_factory.mktemp("tiny")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "REST_SECONDS", 0.5)
        try:
            template, folder = asyncio.run(make(lab))
            yield Made(lab, template, folder)
        finally:
            lab.close()


async def run(driver: QemuDriver, guest_id: str, command: str) -> str:
    session = await driver.exec(guest_id, ExecRequest(["sh", "-c", command]))
    said = b""
    async for chunk in session.output():
        said += chunk.data
    await session.close()
    return said.decode(errors="replace")


async def until_ready(driver: QemuDriver, plan: GuestPlan) -> None:
    async with asyncio.timeout(60):
        while not (facts := await driver.inspect(plan.id)).ready:
            assert facts.state in ("starting", "running"), facts
            await asyncio.sleep(0.02)


async def make(lab: TemplateLab) -> tuple[GuestPlan, Path]:
    driver, plan, folder = lab.driver(), lab.plan_template("lab"), lab.folder / "template"
    folder.mkdir(mode=0o700)
    await driver.templates.make(plan, folder)
    assert lab.leftovers(plan.id) == [] and (await driver.inspect(plan.id)).state == "absent"
    await lab.close_drivers()
    return plan, folder


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / RAM).read_bytes() + (folder / STATE).read_bytes()).hexdigest()


def test_copies_are_others_share_ram_and_leave_the_template_as_it_was(made: Made) -> None:
    lab, template, folder = made

    async def go() -> None:
        driver = lab.driver()
        before, who = digest(folder), []
        for number in (1, 2):
            copy = lab.plan_copy(number, template, folder)
            facts = await driver.start(copy)
            await until_ready(driver, copy)
            who.append((await run(driver, copy.id, WHO)).splitlines())
            rollup = Path(f"/proc/{facts.pid}/smaps_rollup").read_text()
            private = int(re.search(r"Private_Dirty: +(\d+)", rollup)[1])  # type: ignore[index]
            assert private < 80 * 1024, rollup
        (name, id_, mac, drawn), (other_name, other_id, other_mac, other_drawn) = who
        assert (name, other_name) == ("copy1", "copy2") and (mac, other_mac) == (
            "02:00:00:00:01:01",
            "02:00:00:00:01:02",
        )
        assert id_ != other_id and drawn != other_drawn
        assert digest(folder) == before
        await lab.close_drivers()

    asyncio.run(go())


@pytest.mark.long
def test_a_copy_is_set_up_grows_suspends_and_boots_as_any_machine(made: Made) -> None:
    spec = AllocationSpec(
        node="n",
        node_uid="n",
        workload=Ref("vm", "default", "copy3", "u"),
        workload_generation=1,
        incarnation=1,
        resources=Resources(),
        users=["alice"],
        ssh_keys=[KEY],
        user_data="#!/bin/sh\necho began >/root/began\n",
    )

    lab, template, folder = made

    async def go() -> None:
        driver = lab.driver()
        copy = lab.plan_copy(3, template, folder, write_setup(spec, has_cloud_init=False))
        copy = msgspec.structs.replace(copy, console_note="weft: vm/copy3 did not boot")
        await driver.start(copy)
        await until_ready(driver, copy)
        await run(driver, copy.id, "echo from itself >/dev/console")
        printed = Path(driver.console_log(copy.id)).read_text(errors="replace")
        note, boot, own = re.split(r"weft: vm/copy3 did not boot|weft: up to here[^\n]*", printed)
        assert note == "" and boot.strip(), printed
        assert "from itself" in own
        said = await run(
            driver, copy.id, "grep ^alice /etc/passwd; cat /home/alice/.ssh/authorized_keys; cat /root/began"
        )
        assert "alice" in said and KEY in said and "began" in said, said
        grown = msgspec.structs.replace(
            copy, memory="", ram="", setup="", identity=None, memory_bytes=256 * MIB, cpu=2.0, vcpus=2
        )
        await driver.adjust(grown)
        async with asyncio.timeout(30):
            while int((await run(driver, copy.id, "grep MemTotal /proc/meminfo")).split()[1]) < 200 * 1024:
                await asyncio.sleep(0.1)
        await driver.suspend(copy.id)
        await driver.start(grown)
        await until_ready(driver, copy)
        assert "copy3" in await run(driver, copy.id, WHO)
        await driver.stop(copy.id, grace_seconds=10)
        await driver.start(grown)
        await until_ready(driver, copy)
        again = await run(driver, copy.id, WHO)
        assert "copy3" in again and "02:00:00:00:01:03" in again
        await lab.close_drivers()

    asyncio.run(go())


def test_the_next_driver_sets_up_what_one_that_died_began(made: Made) -> None:
    lab, template, folder = made

    async def go() -> None:
        driver = lab.driver()
        copy = lab.plan_copy(4, template, folder, "sleep 1; echo done >/root/done\n")
        await driver.start(copy)
        assert not (await driver.inspect(copy.id)).ready
        await lab.close_drivers()
        driver = lab.driver()
        await driver.recover()
        await until_ready(driver, copy)
        assert await run(driver, copy.id, "cat /root/done; hostname") == "done\ncopy4\n"
        await lab.close_drivers()

    asyncio.run(go())


def test_a_copy_whose_setup_fails_ends_and_says_why(made: Made) -> None:
    lab, template, folder = made

    async def go() -> None:
        driver = lab.driver()
        copy = lab.plan_copy(5, template, folder, "echo no such disk >&2; exit 3\n")
        await driver.start(copy)
        async with asyncio.timeout(30):
            while (facts := await driver.inspect(copy.id)).state == "running":
                await asyncio.sleep(0.05)
        assert facts.state == "failed" and "no such disk" in (facts.message or ""), facts
        await lab.close_drivers()

    asyncio.run(go())


def test_a_machine_that_boots_and_never_answers_makes_no_template_and_leaves_nothing(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = made.lab
    monkeypatch.setattr(making, "READY_SECONDS", 6.0)
    folder = lab.folder / "mute"
    folder.mkdir(mode=0o700)
    plan = lab.plan_template("mute")
    bare = lab.folder / "bare.qcow2"
    make_disk(bare, size_bytes=64 * MIB)  # its init finds no root, says so, and waits
    plan = msgspec.structs.replace(plan, disks=[GuestDisk(str(bare), "qcow2", "root")])

    async def go() -> None:
        driver = lab.driver()
        with pytest.raises(DriverFailed, match="the machine booted, but no agent in it answered within 6 s"):
            await driver.templates.make(plan, folder)
        assert (await driver.inspect(plan.id)).state == "absent"
        await lab.close_drivers()

    asyncio.run(go())
    assert lab.leftovers(plan.id) == [] and not lab.processes(f"/{plan.id}/")
    assert not (folder / STATE).exists(), "what is less than whole has no state"


@pytest.mark.long
@pytest.mark.parametrize("amid", ["its boot", "the save"])
def test_an_agent_that_is_killed_while_it_makes_one_leaves_a_machine_that_the_next_one_ends(
    made: Made, amid: str
) -> None:
    lab = made.lab
    name = amid.replace(" ", "-")
    plan, folder = lab.plan_template(name), lab.folder / name
    folder.mkdir(mode=0o700)
    host, json_plan = (msgspec.json.encode(part).decode() for part in (lab.host, plan))
    program = Path(__file__).with_name("crashing_driver.py")
    agent = subprocess.Popen([sys.executable, str(program), host, json_plan, f"template:{folder}", "0"])
    try:
        deadline = time.monotonic() + 120
        while not ((folder / STATE).exists() if amid == "the save" else lab.processes(f"/{plan.id}/")):
            assert agent.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        agent.kill()
    finally:
        agent.kill()
        agent.wait()

    async def go() -> None:
        driver = lab.driver()
        await driver.recover()
        await driver.templates.clear("template.")
        assert (await driver.inspect(plan.id)).state == "absent"
        await lab.close_drivers()

    asyncio.run(go())
    assert lab.leftovers(plan.id) == [] and not lab.processes(f"/{plan.id}/")
