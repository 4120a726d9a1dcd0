"""Containers that are saved as they run and go on from there, on another node too. Runs where CRIU works with the kernel; in a
machine of Debian 12 (test_in_a_machine.py) it does."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from container_lab import ContainerLab

from weft.contracts.driver.container import BEGUN_AFRESH, ContainerPlan
from weft.drivers.runtime.oci.checkpoint.probe import find_checkpoint_problem
from weft.drivers.runtime.oci.driver import OciDriver
from weft.drivers.runtime.oci.runtime import Runtime
from weft.objects.errors import DriverFailed, IllegalTransition

pytestmark = [pytest.mark.host]
COUNT = "n=0; while true; do n=$((n+1)); echo $n > /m; mv /m /n; sleep 0.1; done"
WEB = (
    "mkdir -p /www; rm /etc/issue; httpd -p 80 -h /www; n=0; "
    "while true; do n=$((n+1)); echo $n > /m; mv /m /www/n; sleep 0.1; done"
)
ADDRESS = "10.213.0.2"


def sh(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)


@contextmanager
def make_network(name: str) -> Iterator[str]:
    """The path of a network namespace whose address is ADDRESS; there is one at a time."""
    sh(f"ip netns add {name} && ip link add weft-t-{name} type veth peer name eth0 netns {name}")
    sh(f"ip address add 10.213.0.1/24 dev weft-t-{name}; ip link set weft-t-{name} up")
    sh(f"ip -n {name} address add {ADDRESS}/24 dev eth0; ip -n {name} link set eth0 up; ip -n {name} link set lo up")
    try:
        yield f"/run/netns/{name}"
    finally:
        sh(f"ip link delete weft-t-{name}; ip netns delete {name}")


def fetch(path: str) -> str:
    with urllib.request.urlopen(f"http://{ADDRESS}/{path}", timeout=30) as answer:
        return str(answer.read().decode().strip())


@pytest.fixture
async def labs() -> AsyncIterator[list[ContainerLab]]:
    """Two nodes."""
    if shutil.which("runc") is None or shutil.which("conmon") is None:
        pytest.skip("needs runc and conmon")
    if lack := await find_checkpoint_problem(Runtime(str(shutil.which("runc")), Path("/run"))):
        pytest.skip(lack)
    labs = [ContainerLab("runc"), ContainerLab("runc")]
    labs[1].layers = labs[0].layers
    try:
        yield labs
    finally:
        for lab in labs:
            await lab.close_drivers()
            lab.close()


async def carry(one: OciDriver, other: OciDriver, plan: ContainerPlan, guest_id: str) -> None:
    """From node to node, where it has another id."""
    shutil.copy(await one.carrying.pack(plan.id), await other.carrying.expect(guest_id))
    await other.carrying.unpack(guest_id, "of-the-target", 2)
    await one.remove(plan.id)


def read_count(driver: OciDriver, guest_id: str) -> int:
    try:
        return int((driver._paths(guest_id).upper / "n").read_text())
    except FileNotFoundError:
        return 0


async def count_beyond(driver: OciDriver, guest_id: str, before: int) -> None:
    async with asyncio.timeout(60):
        while read_count(driver, guest_id) <= before:
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("users", ["own", "the node's"])
async def test_one_goes_on_at_another_node_with_its_memory_its_root_and_its_listener(
    labs: list[ContainerLab], users: str
) -> None:
    here, there = (lab.driver() for lab in labs)
    with make_network("weft-a") as network:
        disk = 64 << 20 if users == "own" else 0  # or a folder of its node's
        plan = labs[0].script("web", WEB, netns=network, user_namespace=users == "own", disk_bytes=disk)
        await here.start(plan)
        await asyncio.sleep(3.0)
        before = int(fetch("n"))
        await here.suspend(plan.id)
        assert (await here.inspect(plan.id)).state == "suspended"
        await here.suspend(plan.id)  # again is fine
    moved = msgspec.structs.replace(plan, id="0123456789", uid="of-the-target", incarnation=2)
    await carry(here, there, plan, moved.id)
    assert labs[0].leftovers() == []
    told = await there.inspect(moved.id)
    assert (told.state, told.uid, told.incarnation) == ("suspended", "of-the-target", 2)
    with make_network("weft-b") as network:
        facts = await there.start(msgspec.structs.replace(moved, netns=network))
        assert (facts.state, facts.reason) == ("running", None), facts.message
        assert facts.pid in there._groups.processes(moved.id), "it has the limits of this node's group"
        async with asyncio.timeout(60):
            while int(fetch("n")) <= before:  # a server that began anew would take as long
                await asyncio.sleep(0.1)
        assert not there._paths(moved.id).saved.whole.exists() and not there._paths(moved.id).saved.resuming.exists()
        await there.stop(moved.id, grace_seconds=0)
        assert (await there.inspect(moved.id)).state == "stopped"
        await there.remove(moved.id)
    assert labs[1].leftovers() == []


async def test_a_driver_made_anew_finds_it_saved_and_lets_it_go_on(labs: list[ContainerLab]) -> None:
    lab, driver = labs[0], labs[0].driver()
    plan = lab.script("count", COUNT)
    await driver.start(plan)
    await count_beyond(driver, plan.id, 5)
    saving = asyncio.create_task(driver.suspend(plan.id))
    await asyncio.sleep(1.0)
    saving.cancel()  # as an agent that is killed: what saves it goes on
    await asyncio.gather(saving, return_exceptions=True)
    await lab.close_drivers()
    anew = lab.driver()
    (facts,) = await anew.recover()
    if facts.state == "running":  # it wasn't as far
        await anew.suspend(plan.id)
    assert (await anew.inspect(plan.id)).state == "suspended"
    before = read_count(anew, plan.id)
    facts = await anew.start(plan)
    assert (facts.state, facts.reason) == ("running", None), facts.message
    await count_beyond(anew, plan.id, before)
    await anew.stop(plan.id, grace_seconds=0)
    await anew.remove(plan.id)


async def test_one_that_cant_go_on_begins_afresh_and_says_why(labs: list[ContainerLab]) -> None:
    driver = labs[0].driver()
    plan = labs[0].script("count", COUNT)
    await driver.start(plan)
    await count_beyond(driver, plan.id, 20)
    await driver.suspend(plan.id)
    before = read_count(driver, plan.id)
    for image in driver._paths(plan.id).saved.whole.glob("core-*.img"):
        image.write_bytes(image.read_bytes()[:100])
    facts = await driver.start(plan)
    assert (facts.state, facts.reason) == ("running", BEGUN_AFRESH) and facts.message
    async with asyncio.timeout(60):
        while read_count(driver, plan.id) >= before:
            await asyncio.sleep(0.05)
    assert not driver._paths(plan.id).saved.whole.exists() and not driver._paths(plan.id).saved.resuming.exists()
    await driver.stop(plan.id, grace_seconds=0)
    await driver.remove(plan.id)
    assert labs[0].leftovers() == []


async def test_one_that_cant_be_saved_runs_on(labs: list[ContainerLab], monkeypatch: pytest.MonkeyPatch) -> None:
    driver = labs[0].driver()
    plan = labs[0].script("count", COUNT)
    await driver.start(plan)
    await count_beyond(driver, plan.id, 1)
    with monkeypatch.context() as broken:
        broken.setattr(
            "weft.drivers.runtime.oci.checkpoint.criu.CRIU_WORDS", "network-lock nothing\n"
        )  # CRIU refuses that
        with pytest.raises(DriverFailed) as refused:
            await driver.suspend(plan.id)
    assert refused.value.token == "notSaved"
    assert (await driver.inspect(plan.id)).state == "running"
    await count_beyond(driver, plan.id, read_count(driver, plan.id))
    await driver.suspend(plan.id)
    with pytest.raises(IllegalTransition):
        await driver.carrying.pack("another")
    await driver.remove(plan.id)
    assert labs[0].leftovers() == []
