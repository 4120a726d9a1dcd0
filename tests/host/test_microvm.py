"""Real containers in machines of their own: they run, end, are limited, and outlive whoever started them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from container_lab import MIB, ContainerLab
from container_labs import open_lab
from microvm_lab import MicrovmLab

from weft.contracts.driver.container import ContainerMount, User
from weft.contracts.driver.runtime import CanKill, ExecRequest, KeptSession, SessionMark
from weft.drivers.runtime.qemu import guest
from weft.drivers.runtime.qemu.image_disk import WRITTEN_BYTES, ImageDisks
from weft.drivers.runtime.qemu.microvm import translate
from weft.drivers.runtime.qemu.microvm.driver import MicrovmDriver
from weft.drivers.runtime.qemu.microvm.exchange_disk import ENDED, RING_AT, RING_BYTES, RUNNING, read_head
from weft.drivers.runtime.qemu.qmp import Qmp, connect_qmp
from weft.drivers.volume.directory.driver import DirectoryVolumes
from weft.objects.errors import DriverFailed, InvalidInput, TooLarge, Unavailable

pytest.register_assert_rewrite("tests.conformance.container_contract")

from tests.conformance.container_contract import WAIT_SECONDS, bear, ended, output_of, printed, ready, run, says, until

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def lab() -> Iterator[ContainerLab]:
    with open_lab("microvm") as lab:
        yield lab


@pytest.fixture
async def driver(lab: MicrovmLab) -> AsyncIterator[MicrovmDriver]:
    async for driver in bear(lab):
        yield driver


# What a run is.


async def test_its_kernel_is_its_own(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    out = await run(driver, lab.script("own", "uname -r; cat /proc/sys/kernel/random/boot_id; nproc; free -m"))
    words = out.split()
    assert words[0] != os.uname().release
    assert words[1] != Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert words[2] == "1" and 64 < int(words[words.index("Mem:") + 1]) < 128


async def test_its_file_system_needs_no_growing(lab: MicrovmLab, tmp_path: Path) -> None:
    """A machine that is off amid that would leave one on which the kernel of its next run fails."""
    base = await ImageDisks(tmp_path).ensure_root(lab.layers)
    told = subprocess.run(["dumpe2fs", "-h", base], capture_output=True, text=True, check=True).stdout
    facts = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    assert int(facts["Block count"]) * 4096 == os.stat(base).st_size > WRITTEN_BYTES
    assert int(facts["Free blocks"]) * 4096 > WRITTEN_BYTES * 0.98 and int(facts["Free inodes"]) > 100_000
    assert os.stat(base).st_blocks * 512 < 16 * MIB


@pytest.mark.long
@pytest.mark.parametrize(("megabytes", "cpu"), [(96, 0.5), (1024, 2.0)])
async def test_the_least_and_more_than_one_cpu_are_enough(
    lab: MicrovmLab, driver: MicrovmDriver, megabytes: int, cpu: float
) -> None:
    plan = lab.script(
        f"size-{megabytes}", "nproc; set -- $(free -m | grep Mem); echo $2", cpu=cpu, memory_bytes=megabytes * MIB
    )
    count, total = map(int, (await run(driver, plan)).split())
    assert count == max(1, int(cpu)) and megabytes - 100 < total < megabytes


@pytest.mark.long
async def test_one_image_is_made_once_for_all_and_never_written(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    one, two = lab.script("one", "echo one > /mine; cat /mine"), lab.script("two", "ls / /mine; df -m / | tail -1")
    await run(driver, one)
    images = list(Path(lab.host.state_dir, "microvm", "images").iterdir())
    before = [(path.name, path.stat().st_mtime_ns, path.stat().st_ino) for path in images]
    out = await run(driver, two)
    assert "No such file" in out
    after = [(path.name, path.stat().st_ino) for path in Path(lab.host.state_dir, "microvm", "images").iterdir()]
    assert not Path(lab.layers[1], "mine").exists() and "lost+found" not in out
    assert len(before) == 1 and after == [(name, inode) for name, _, inode in before]


async def test_it_can_write_so_much_and_no_more(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    text = (
        "df -m / | tail -1; dd if=/dev/zero of=/big bs=1M count=200 2>&1 | grep -o 'No space left on device'; "
        "du -m /big; rm /big; echo on > /on && cat /on"
    )
    out = await run(driver, lab.script("room", text, disk_bytes=24 * MIB))
    assert "No space left on device" in out and out.endswith("on\n")
    words = out.split()
    size, written = int(words[1]), int(words[words.index("/big") - 1])
    assert 24 < size < 84 and 19 < written < 64  # beside what its image takes, and may grow by


async def test_a_program_that_isnt_there_is_told_so(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    plan, seen = lab.plan("nothing", "no-such-program"), set[str]()
    facts = await driver.start(plan)
    async with asyncio.timeout(WAIT_SECONDS):
        while facts.state != "failed":
            seen.add(facts.state)
            await asyncio.sleep(0.01)
            facts = await driver.inspect(plan.id)
    assert seen == {"starting"}, "it never ran"
    assert "no-such-program: not found" in await printed(driver, plan)
    assert (facts.state, facts.reason, facts.exit_code) == ("failed", "commandNotFound", 127)
    assert facts.message == "'no-such-program' is not in the container's PATH"


@pytest.mark.long
async def test_it_prints_more_than_is_kept_and_the_end_is_there(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    """The lines are whole, in order, and take no more of the node's disk than they may."""
    text = "i=0; while [ $i -lt 40 ]; do seq $((i * 25000)) $((i * 25000 + 24999)); i=$((i + 1)); done; echo -n last"
    plan = lab.script("floods", text)
    await driver.start(plan)
    assert (await ended(driver, plan)).exit_code == 0
    lines = (await printed(driver, plan)).splitlines()
    assert lines[-1] == "last" and lines[-2] == "999999"
    assert [int(line) for line in lines[:-1]] == list(range(1_000_000 - len(lines) + 1, 1_000_000))
    assert len(lines) > 100_000
    disk = Path(lab.host.state_dir, "microvm", "containers", plan.id, "exchange-disk")
    assert disk.stat().st_size == RING_AT + RING_BYTES
    assert [line.data async for line in driver.read_log(plan.id, tail=2)] == [b"999999\n", b"last"]


# How it ends.


async def test_one_that_still_boots_is_asked_as_soon_as_it_can_hear(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    plan = lab.script("early", "sleep 1.5; trap 'exit 5' TERM; while :; do sleep 0.05; done")
    await driver.start(plan)
    await driver.stop(plan.id, grace_seconds=WAIT_SECONDS)
    facts = await driver.inspect(plan.id)
    assert (facts.state, facts.reason) == ("stopped", "stopRequested")
    assert facts.exit_code == 5


@pytest.mark.long
async def test_one_that_is_over_before_its_monitor_is_reached_has_ended_and_isnt_begun_again(
    lab: MicrovmLab, driver: MicrovmDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = lab.script("quick", "echo ran; exit 3")
    disk = Path(lab.host.state_dir, "microvm", "containers", plan.id, "exchange-disk")

    async def connect_late(place: str, *, timeout_seconds: float) -> Qmp:
        async with asyncio.timeout(WAIT_SECONDS):
            while (head := read_head(disk)) is None or head.state != ENDED or lab.processes():
                await asyncio.sleep(0.02)
        return await connect_qmp(place, timeout_seconds=timeout_seconds)

    with monkeypatch.context() as patched:
        patched.setattr(guest, "connect_qmp", connect_late)
        facts = await driver.start(plan)
    assert (facts.state, facts.reason, facts.exit_code) == ("failed", "exited", 3)
    assert await printed(driver, plan) == "ran\n" and lab.processes() == []
    [facts] = await lab.driver().recover()
    assert (facts.reason, facts.exit_code) == ("exited", 3)


@pytest.mark.long
async def test_a_start_that_is_given_up_once_its_machine_has_begun_ends_nothing(
    lab: MicrovmLab, driver: MicrovmDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = lab.script("given-up", "echo ran; exec sleep 1000")
    disk = Path(lab.host.state_dir, "microvm", "containers", plan.id, "exchange-disk")
    with monkeypatch.context() as patched:
        patched.setattr(guest, "connect_qmp", lambda *_, **more: asyncio.sleep(WAIT_SECONDS))
        starting = asyncio.create_task(driver.start(plan))
        async with asyncio.timeout(WAIT_SECONDS):
            while (told := read_head(disk)) is None or told.state != RUNNING:
                await asyncio.sleep(0.02)
        patched.undo()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
    assert (await driver.inspect(plan.id)).state == "running"
    assert (await driver.start(plan)).state in ("starting", "running")
    await says(driver, plan, "ran")
    assert await printed(driver, plan) == "ran\n"


async def test_a_fork_bomb_stays_in_its_limit(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    plan = lab.script("bomb", "echo up; f() { f | f & }; f; exec sleep 1000", pids=40)  # no more forks of its own
    await ready(driver, plan)
    await says(driver, plan, "up")
    await asyncio.sleep(2)
    assert len([pid for pid in lab.processes() if "qemu" in Path(f"/proc/{pid}/comm").read_text()]) == 1
    await driver.stop(plan.id, grace_seconds=0)


async def test_a_kernel_that_panics_is_an_end_and_what_it_ran_is_not_run_twice(
    lab: MicrovmLab, driver: MicrovmDriver
) -> None:
    text = "echo run; sleep 0.5; umount /proc/sysrq-trigger; echo c > /proc/sysrq-trigger; sleep 100"
    rights = [*lab.plan("x").capabilities, "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]
    plan = lab.script("panics", text, capabilities=rights)
    assert (await run(driver, plan)).count("run") == 1
    facts = await driver.inspect(plan.id)
    assert (facts.state, facts.reason, facts.exit_code) == ("failed", "guestPanicked", None)


@pytest.mark.long
async def test_a_kernel_that_panics_before_its_init_is_an_end(
    lab: MicrovmLab, driver: MicrovmDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translate, "CMDLINE", f"{translate.CMDLINE} rdinit=/nothing")
    plan = lab.script("early", "echo never")
    assert await run(driver, plan) == ""
    facts = await driver.inspect(plan.id)
    assert (facts.state, facts.reason, facts.exit_code) == ("failed", "guestPanicked", None)


async def test_after_a_power_cut_it_is_told_so_and_what_it_had_synced_is_there(
    lab: MicrovmLab, driver: MicrovmDriver
) -> None:
    plan = lab.script("cut", "cat /kept && exit 0; echo kept > /kept; sync; echo up; sleep 1000")
    facts = await ready(driver, plan)
    await says(driver, plan, "up")
    await driver.close()
    lab.drivers.clear()
    lab.kill(facts)
    record = Path(lab.host.state_dir, "microvm", "guests", plan.id, "guest.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"host_boot_id": "another"}))
    shutil.rmtree(lab.host.run_dir)
    Path(lab.host.run_dir).mkdir()
    second = lab.driver()
    [facts] = await second.recover()
    assert (facts.state, facts.reason) == ("failed", "nodeRestarted")
    assert (await run(second, plan)) == "kept\n"


# Commands beside it.


async def test_a_command_that_a_signal_ends_says_so_and_many_bytes_pass_both_ways(
    lab: MicrovmLab, driver: MicrovmDriver
) -> None:
    plan = lab.plan("host")
    await ready(driver, plan)
    assert (await output_of(driver, plan, "sh", "-c", "kill -KILL $$"))[1] is None
    data = os.urandom(1_000_000)
    session = await driver.exec(plan.id, ExecRequest(["cat"]))
    sending = asyncio.create_task(session.write(data))
    got = b""
    async for chunk in session.output():
        got += chunk.data
        if len(got) == len(data):
            await session.close_stdin()
    await sending
    assert got == data
    with pytest.raises(InvalidInput):
        await driver.exec(plan.id, ExecRequest([]))


async def test_a_command_that_hears_nothing_can_be_killed(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    plan = lab.plan("deaf")
    await ready(driver, plan)
    deaf = "trap '' HUP TERM INT; echo here; env | grep -c ENTERED; while :; do sleep 0.1; done"
    session = await driver.exec(plan.id, ExecRequest(["sh", "-c", deaf]))
    assert isinstance(session, CanKill)
    out = b""
    async with asyncio.timeout(WAIT_SECONDS):
        async for chunk in session.output():
            out += chunk.data
            if out.endswith(b"0\n") and chunk.channel != "exit":
                await session.kill()
    assert out == b"here\n0\n" and (chunk.channel, chunk.signal) == ("exit", 9)
    await session.kill()  # again is fine
    await session.close()
    assert (await output_of(driver, plan, "sh", "-c", "ps | grep -c '[t]rap'"))[0] == "0\n"


async def test_a_command_outlives_who_started_it(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    plan = lab.plan("lasting")
    await ready(driver, plan)
    mark = SessionMark("ab" * 16)
    session = await driver.exec(plan.id, ExecRequest(["sh", "-c", "echo begun; read x; echo got $x; exit 6"]), mark)
    assert isinstance(session, KeptSession)
    async for chunk in session.output():
        if chunk.data == b"begun\n":
            break
    standing = session.standing
    await driver.close()
    lab.drivers.clear()
    second = lab.driver()
    await second.recover()
    await until(second, plan.id, lambda facts: facts.ready is True)
    mark = SessionMark("ab" * 16, standing.run, stdout=6)
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                again = await second.exec(plan.id, ExecRequest(["true"]), mark)
                break
            except Unavailable:
                await asyncio.sleep(0.05)
        await again.write(b"more\n")
        found = [chunk async for chunk in again.output()]
    assert b"".join(chunk.data for chunk in found) == b"got more\n" and found[-1].code == 6


# Who started it, and what holds it, may be killed at any moment.


async def test_a_start_that_was_cut_off_can_be_made_again(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    plan = lab.script("begun", "echo ran")
    starting = asyncio.create_task(driver.start(plan))
    record = Path(lab.host.state_dir, "microvm", "containers", plan.id, "container.json")
    while not record.exists():
        await asyncio.sleep(0.001)
    kept = record.read_bytes()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert lab.leftovers() == []
    record.parent.mkdir(parents=True)  # as kill -9 leaves it
    record.write_bytes(kept)
    second = lab.driver()
    [facts] = await second.recover()
    assert (facts.state, facts.reason) == ("failed", "startInterrupted")
    assert await run(second, plan) == "ran\n"


# Walls, and what it gets of the image.


async def test_it_sees_nothing_of_its_machine(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    text = """ls /kept /weft-agent 2>/dev/null || echo no machine
    ls /dev | grep -c vd; mkdir -p /tmp/a; chroot /tmp/a /nothing 2>/dev/null; ls /proc | grep -c '^[0-9]'"""
    out = await run(driver, lab.script("looks", text))
    assert out.startswith("no machine\n0\n") and int(out.splitlines()[2]) < 5


async def test_what_is_in_its_image_is_there_as_it_was(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    """Owners, modes, links, attributes; and what an upper layer took away isn't."""
    lower, upper = lab.folder / "l1" / "fs", lab.folder / "l2" / "fs"
    for folder in (lower / "gone", lower / "opaque", lower / "d", upper / "opaque"):
        folder.mkdir(parents=True)
    (lower / "gone" / "x").touch()
    (lower / "opaque" / "old").touch()
    (upper / "opaque" / "new").touch()
    os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    os.mknod(upper / "gone", 0o020000, 0)
    tool = lower / "d" / "tool"
    tool.write_text("#!/bin/sh\n")
    os.chown(tool, 1234, 70000)
    tool.chmod(0o4751)
    os.link(tool, lower / "d" / "same")
    os.setxattr(tool, "user.note", b"kept")
    (lower / "d" / "loop").symlink_to("/d/../../../../proc/self")
    (lower / "d" / "a name\nwith lines").touch()
    text = "ls / /opaque; stat -c '%u %g %a %h' /d/tool /d/same; readlink /d/loop; ls /d | wc -l; "
    plan = lab.script("image", text, layers=[str(upper), *lab.layers, str(lower)])
    out = await run(driver, plan)
    assert "gone" not in out and "old" not in out and "new" in out
    assert out.count("1234 70000 4751 2") == 2 and "/d/../../../../proc/self" in out and out.endswith("4\n")
    [image] = [
        path for path in Path(lab.host.state_dir, "microvm", "images").glob("*.ext4") if "/d/tool" in _names(path)
    ]
    told = subprocess.run(["debugfs", "-R", "ea_get /d/tool user.note", str(image)], capture_output=True, check=True)
    assert b"kept" in told.stdout


def _names(image: Path) -> str:
    told = subprocess.run(["debugfs", "-R", "stat /d/tool", str(image)], capture_output=True, text=True, check=True)
    return "/d/tool" if "Inode:" in told.stdout else ""


async def test_an_image_with_links_in_odd_places_stays_in_its_root(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    odd = lab.folder / "odd" / "fs"
    (odd / "real").mkdir(parents=True)
    for name, aim in (("proc", "/real"), ("dev", "../../real"), ("run", "/../../../kept")):
        (odd / name).symlink_to(aim)
    plan = lab.script("odd", "ls /kept 2>/dev/null; echo ran; ls /weft-agent", layers=[str(odd), *lab.layers])
    out = await run(driver, plan)
    assert "ran" in out and "/weft-agent: No such file" in out and "config" not in out


async def test_nobody_else_may_read_what_it_was_told_or_has_printed(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    plan = lab.script("secret", "echo $KEY")
    plan = msgspec.structs.replace(plan, process=msgspec.structs.replace(plan.process, env=["PATH=/bin", "KEY=s3cret"]))
    await driver.start(plan)
    for pid in lab.processes():
        assert b"s3cret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert (await ended(driver, plan)).exit_code == 0
    folder = Path(lab.host.state_dir, "microvm", "containers", plan.id)
    assert folder.stat().st_mode & 0o077 == 0


# Volumes.


async def test_a_volume_has_one_file_system_for_those_with_and_without_machines(
    lab: MicrovmLab, driver: MicrovmDriver
) -> None:
    volumes = DirectoryVolumes(lab.host)
    disk = (await volumes.ensure_files("data", size_bytes=32 * MIB, owner=(1000, 1000))).path
    mounts = [ContainerMount(disk, "/data/deep", file_system="ext4")]
    user = User(1000, 1000)
    text = "ls /data/deep; echo kept > /data/deep/mine; df -m /data/deep | tail -1; grep deep /proc/mounts; ls /dev"
    out = await run(driver, lab.script("writes-volume", text, mounts=mounts, user=user))
    assert "lost+found" not in out and "/dev/volume0 /data/deep ext4 rw,nosuid,nodev" in out
    assert "volume0" not in out.split("errors=remount-ro")[1]
    before = await volumes.ensure_files("data", size_bytes=64 * MIB, owner=(0, 0))  # checked, and grown
    assert before.path == disk
    mounts = [ContainerMount(disk, "/data/deep", True, file_system="ext4")]
    text = "cat /data/deep/mine; stat -c %u /data/deep/mine; (echo x > /data/deep/x) 2>/dev/null || echo refused; "
    text += "set -- $(df -m /data/deep | tail -1); [ $2 -gt 40 ] && echo larger"
    assert await run(driver, lab.script("reads", text, mounts=mounts)) == "kept\n1000\nrefused\nlarger\n"


@pytest.mark.long
async def test_a_volume_that_another_has_is_not_had_twice(
    lab: MicrovmLab, driver: MicrovmDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # QEMU locks no disk before the memory of a saved machine is there (tests/warm): these boot.
    monkeypatch.setenv("PATH", f"/usr/bin:{os.environ['PATH']}")
    disk = (await DirectoryVolumes(lab.host).ensure_files("once", size_bytes=16 * MIB, owner=(0, 0))).path
    mounts = [ContainerMount(disk, "/data", file_system="ext4")]
    one, two = lab.script("has", "echo up; sleep 1000", mounts=mounts), lab.script("wants", "exit 0", mounts=mounts)
    facts = await ready(driver, one)
    with pytest.raises(DriverFailed, match="lock"):
        await driver.start(two)
    assert (await driver.inspect(two.id)).state == "absent"
    lab.kill(facts)
    await ended(driver, one)
    assert (await driver.start(two)).state in ("starting", "running")
    assert (await ended(driver, two)).exit_code == 0


# What can't be had.


async def test_what_it_cant_have_is_refused_and_leaves_nothing(lab: MicrovmLab, driver: MicrovmDriver) -> None:
    folder = lab.plan("folder", mounts=[ContainerMount(str(lab.folder), "/data")])
    disks = [ContainerMount("/x", f"/data{number}", file_system="ext4") for number in range(7)]
    for plan, word in (
        (folder, "folders of the node"),
        (lab.plan("disks", mounts=disks), "at most 6 volumes"),
        (lab.plan("small", memory_bytes=64 * MIB), "at least 96 MiB"),
        (lab.plan("device", devices=["/dev/fuse"]), "devices"),
        (lab.plan("rights", capabilities=["CAP_FLY"]), "CAP_FLY"),
    ):
        with pytest.raises(InvalidInput) as refused:
            await driver.start(plan)
        assert word in f"{refused.value.message} {refused.value.hint}"
        assert (await driver.inspect(plan.id)).state == "absent"
    long = lab.plan("long", "true", "x" * (2 << 20))
    with pytest.raises(TooLarge):
        await driver.start(long)
    missing = lab.plan("missing", layers=[str(lab.folder / "nothing")])
    with pytest.raises(DriverFailed, match="can't be converted to a disk"):
        await driver.start(missing)
    assert lab.leftovers() == []


async def test_a_node_without_the_kernel_says_what_to_do(lab: MicrovmLab, tmp_path: Path) -> None:
    driver = MicrovmDriver(lab.host, tmp_path)
    probe = await driver.probe()
    assert not probe.usable and (probe.kinds, probe.isolations) == (("container",), ("vm",))
    [problem] = probe.problems
    assert str(tmp_path) in problem and "python -m weft.images microvm" in problem
    with pytest.raises(DriverFailed):
        await driver.start(lab.plan("never"))
    await driver.close()
