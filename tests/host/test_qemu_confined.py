"""A guest's QEMU has a user of its own, no rights, only its own files, and a bounded number of processes."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import msgspec
import pytest
from guest_lab import MIB, GuestLab

from weft.contracts.driver.runtime import BootKernel, GuestDisk, GuestPlan
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.drivers.runtime.qemu.process.confinement import FIRST_USER, USERS, choose_open_files
from weft.drivers.runtime.qemu.qmp import QmpError, connect_qmp

pytest.register_assert_rewrite("tests.conformance.runtime_contract")

from tests.conformance.runtime_contract import ready, run

pytestmark = pytest.mark.host


@pytest.fixture
def plan(lab: GuestLab) -> GuestPlan:
    return lab.plan("kept-in", machine="microvm", disks=1)


def status_of(folder: Path) -> dict[str, str]:
    lines = (folder / "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def files_of(pid: int) -> set[str]:
    """The plain files it has open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if stat.S_ISREG(link.stat().st_mode):
            found.add(os.readlink(link))
    return found


async def test_every_thread_runs_as_its_own_user_without_rights(driver: QemuDriver, plan: GuestPlan) -> None:
    facts = await ready(driver, plan)
    users = set()
    for thread in Path(f"/proc/{facts.pid}/task").iterdir():
        status = status_of(thread)
        users |= {*status["Uid"].split(), *status["Gid"].split()}
        assert {status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", "")
    (user,) = users
    assert FIRST_USER <= int(user) < FIRST_USER + USERS


async def test_it_has_nothing_open_but_its_own(driver: QemuDriver, lab: GuestLab, plan: GuestPlan) -> None:
    facts = await ready(driver, plan)
    assert facts.pid is not None
    state = Path(lab.host.state_dir, "guests", plan.id)
    assert isinstance(plan.boot, BootKernel)
    disks = {disk.path for disk in plan.disks} | {disk.base for disk in plan.disks if disk.base}
    logs = {str(state / "console.log"), str(state / "qemu.log"), str(Path(lab.host.run_dir, plan.id, "pid"))}
    assert files_of(facts.pid) - disks <= logs | {plan.boot.kernel, plan.boot.initrd}
    assert files_of(facts.pid) >= disks
    limits = Path(f"/proc/{facts.pid}/limits").read_text().splitlines()
    (most,) = (line.split()[3:5] for line in limits if line.startswith("Max open files"))
    assert most == [str(choose_open_files(plan))] * 2


async def test_it_can_open_no_disk_of_another_guest(driver: QemuDriver, lab: GuestLab, plan: GuestPlan) -> None:
    facts = await ready(driver, plan)
    other = lab.plan("neighbour", machine="microvm")
    assert (await ready(driver, other)).state == "running"
    user = status_of(Path(f"/proc/{facts.pid}"))["Uid"].split()[0]
    assert user != status_of(Path(f"/proc/{(await driver.inspect(other.id)).pid}"))["Uid"].split()[0]
    disk, socket = other.disks[0].path, Path(lab.host.run_dir, other.id, "qmp2")
    monitor = await connect_qmp(str(Path(lab.host.run_dir, plan.id, "qmp2")))
    with pytest.raises(QmpError, match="Permission denied"):
        await monitor.execute("blockdev-add", driver="file", **{"node-name": "stolen"}, filename=disk)
    monitor.close()
    for target, words in ((disk, ["head", "-c", "1"]), (socket.parent, ["ls"])):
        tried = subprocess.run(
            ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", *words, str(target)], capture_output=True
        )
        assert tried.returncode != 0 and b"Permission denied" in tried.stderr
    await driver.stop(other.id, grace_seconds=0)
    await driver.remove(other.id)


async def test_its_processes_are_counted(driver: QemuDriver, lab: GuestLab, plan: GuestPlan) -> None:
    await ready(driver, plan)
    if driver._cgroups.problem:
        pytest.skip(driver._cgroups.problem)
    (most,) = Path("/sys/fs/cgroup").glob(f"*/{lab.host.cgroup}/{plan.id}/pids.max")
    assert 0 < int(most.read_text()) <= 512


async def test_a_disk_that_names_a_file_of_the_host_as_its_base_does_not_get_it(
    driver: QemuDriver, lab: GuestLab, plan: GuestPlan
) -> None:
    secret, forged = lab.folder / "secret", lab.folder / "forged.qcow2"
    secret.write_bytes(b"secret" * 1024)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(forged), str(MIB)], check=True
    )
    plan = msgspec.structs.replace(plan, disks=[*plan.disks, GuestDisk(str(forged), "qcow2", "forged")])
    await driver.stop(plan.id, grace_seconds=0)
    await ready(driver, plan)
    out, _, code = await run(driver, plan.id, "head", "-c", "6", "/dev/vdc")
    assert (out, code) == (b"\0" * 6, 0)
    await driver.stop(plan.id, grace_seconds=0)
    await driver.remove(plan.id)
