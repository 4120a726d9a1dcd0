"""Real guests: what is in tiny, both machines, consoles, limits, reboots, and an agent that loses its host."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import time
from pathlib import Path

import msgspec
import pytest
from guest_lab import MIB, GuestLab

from weft.contracts.driver.runtime import Counters, ExecRequest, GuestDisk, GuestPlan
from weft.drivers.linux.processes import resident_bytes
from weft.drivers.runtime.qemu import driver as qemu
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.images.tiny.build import build_tiny
from weft.objects.errors import Unavailable

pytest.register_assert_rewrite("tests.conformance.runtime_contract")

from tests.conformance.runtime_contract import ready, run, start_command, until

pytestmark = pytest.mark.host
APPLETS = ["dd", "cmp", "cp", "cat", "test", "wc", "sha256sum", "uname", "awk", "ip", "nc", "httpd", "udhcpc", "sh"]


@pytest.fixture
def plan(lab: GuestLab) -> GuestPlan:
    return lab.plan("guest", memory_bytes=256 * MIB, disks=2)


async def shell(driver: QemuDriver, plan: GuestPlan, script: str) -> str:
    out, err, code = await run(driver, plan.id, "sh", "-c", script)
    assert code == 0, err.decode() + out.decode()
    return out.decode().strip()


async def count(counters: list[Counters]) -> dict[str, float]:
    """All that is counted, once each has been read; a disk's answer comes at a later reading than its question."""
    found: dict[str, float] = {}
    async with asyncio.timeout(20):
        for one in counters:
            asked_at = time.monotonic()
            while (counted := one.read(time.monotonic(), often=True)) is None or counted.at < asked_at:
                await asyncio.sleep(0.05)
            found |= counted.values
    return found


@pytest.mark.long
async def test_tiny_has_what_people_need(driver: QemuDriver, plan: GuestPlan) -> None:
    await ready(driver, plan)
    assert (
        await shell(
            driver, plan, f"for name in {' '.join(APPLETS)}; do command -v $name >/dev/null || echo $name; done"
        )
        == ""
    )
    assert await shell(driver, plan, "hostname") == "guest"
    assert await shell(driver, plan, "cat /proc/sys/kernel/random/entropy_avail") == "256"


@pytest.mark.long
async def test_tmp_holds_110_megabytes_that_outlive_a_restart(driver: QemuDriver, plan: GuestPlan) -> None:
    await ready(driver, plan)
    script = "dd if=/dev/zero of=/tmp/big bs=1M count=110 && cp /proc/version /tmp/mark && wc -c < /tmp/big"
    assert await shell(driver, plan, script) == str(110 * MIB)
    await driver.stop(plan.id, grace_seconds=20)
    await ready(driver, plan)
    assert await shell(driver, plan, "wc -c < /tmp/big; cmp /tmp/mark /proc/version && rm /tmp/big") == str(110 * MIB)


async def test_httpd_serves(driver: QemuDriver, plan: GuestPlan) -> None:
    await ready(driver, plan)
    script = "ip link set lo up; httpd -p 127.0.0.1:80 -h /www; wget -q -O - http://127.0.0.1/"
    assert "It works" in await shell(driver, plan, script)


async def test_disks_are_found_by_their_serials(driver: QemuDriver, plan: GuestPlan) -> None:
    await ready(driver, plan)
    script = "for disk in /sys/block/vd*; do cat $disk/serial; echo; done"
    assert (await shell(driver, plan, script)).split() == ["root", "data-0", "data-1"]
    await shell(driver, plan, "echo hello > /dev/vdb; sync")
    stats = await driver.stats(plan.id)
    assert stats.written_bytes > 0 and stats.read_bytes > 0
    counters = driver.open_counters(plan.id)
    before = await count(counters)
    await shell(driver, plan, "dd if=/dev/urandom of=/dev/vdb bs=1M count=8 2>/dev/null; sync")
    after = await count(counters)
    grown = {name: after[name] - before[name] for name in after if not name.startswith("memory.")}
    assert 8 * MIB <= grown["disk.data-0.written"] < 9 * MIB and grown["disk.data-1.written"] == 0
    assert 0 < grown["disk.data-0.writes"] and 0 < grown["disk.data-0.write_seconds"] < 60 and grown["cpu"] > 0
    for one in counters:
        one.close()


async def test_a_reboot_from_inside_is_a_new_boot_of_the_same_machine(driver: QemuDriver, plan: GuestPlan) -> None:
    before = await ready(driver, plan)
    session = await driver.exec(plan.id, ExecRequest(argv=["reboot"]))
    after = await until(driver, plan.id, lambda facts: facts.boot_id != before.boot_id)
    assert (after.state, after.pid) == ("running", before.pid)
    await session.close()
    assert await shell(driver, plan, "echo back") == "back"


async def test_an_agent_that_is_killed_comes_back(driver: QemuDriver, plan: GuestPlan) -> None:
    before = await ready(driver, plan)
    script = "kill -9 $(pidof weft-agent); sleep 60"
    session = await start_command(driver, plan.id, ExecRequest(argv=["sh", "-c", script]))
    with pytest.raises(Unavailable):
        async with asyncio.timeout(20):
            _ = [chunk async for chunk in session.output()]
    assert await shell(driver, plan, "echo back") == "back"
    assert (await driver.inspect(plan.id)).boot_id == before.boot_id


async def test_commands_end_with_the_host_that_started_them(driver: QemuDriver, lab: GuestLab, plan: GuestPlan) -> None:
    await ready(driver, plan)
    await start_command(driver, plan.id, ExecRequest(argv=["sleep", "4321"]))
    flood = await start_command(driver, plan.id, ExecRequest(argv=["cat", "/dev/zero"]))
    await anext(aiter(flood.output()))
    await driver.close()
    heir = lab.driver()
    await heir.recover()
    await ready(heir, plan)
    gone = "for n in $(seq 100); do ps | grep -q '[s]leep 4321\\|[c]at /dev/zero' || exit 0; sleep 0.1; done; exit 1"
    await shell(heir, plan, gone)


async def test_the_console_is_logged_and_takes_a_person(driver: QemuDriver, plan: GuestPlan) -> None:
    await ready(driver, plan)
    line = socket.socket(socket.AF_UNIX)
    line.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(line, driver.console_socket(plan.id))
    await loop.sock_sendall(line, b"\necho con''sole\n")
    seen = b""
    async with asyncio.timeout(20):
        while b"console\r\n" not in seen:
            seen += await loop.sock_recv(line, 4096)
    line.close()
    async with asyncio.timeout(20):
        while b"console\r\n" not in Path(driver.console_log(plan.id)).read_bytes():
            await asyncio.sleep(0.05)
        size = Path(driver.console_log(plan.id)).stat().st_size
        while not (times := driver.printed.times(plan.id)) or times[-1].printed < size:  # it is told when it said that
            await asyncio.sleep(0.1)


async def test_it_runs_inside_its_limits(driver: QemuDriver, lab: GuestLab, plan: GuestPlan) -> None:
    facts = await ready(driver, plan)
    if driver._cgroups.problem:
        pytest.skip(driver._cgroups.problem)
    groups = Path(f"/proc/{facts.pid}/cgroup").read_text()
    assert f"{lab.host.cgroup}/{plan.id}" in groups
    line = Path(f"/proc/{facts.pid}/cmdline").read_bytes().split(b"\0")
    assert line[0].endswith(b"qemu-system-x86_64") and line[1:3] == [b"-name", b"guest=guest"]


async def test_a_seed_disk_runs_once_per_instance_and_what_it_left_to_be_started_at_each_boot(
    driver: QemuDriver, lab: GuestLab
) -> None:
    seed = lab.folder / "seed.tar"
    script = b"""#!/bin/sh
echo seeded >> /root/seeded
mkdir -p /etc/weft/start.d
printf '#!/bin/sh\\necho started >> /root/started\\n' > /etc/weft/start.d/one
chmod +x /etc/weft/start.d/one
"""
    header = bytearray(512)
    for at, text in (
        (0, b"user-data"),
        (100, b"0000644"),
        (124, b"%011o" % len(script)),
        (156, b"0"),
        (257, b"ustar\00000"),
    ):
        header[at : at + len(text)] = text
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    seed.write_bytes((bytes(header) + script.ljust(512, b"\0")).ljust(MIB, b"\0"))
    plan = lab.plan("seeded", machine="microvm")
    plan = msgspec.structs.replace(plan, disks=[*plan.disks, GuestDisk(str(seed), "raw", "weft-seed", read_only=True)])
    for boot in (1, 2):
        await ready(driver, plan)
        started = f'[ "$(xargs < /root/started)" = "{" ".join(["started"] * boot)}" ]'
        await shell(driver, plan, f"for n in $(seq 200); do {started} && exit 0; sleep 0.1; done; exit 1")
        assert await shell(driver, plan, "sync; cat /root/seeded") == "seeded"
        if boot == 1:
            await driver.stop(plan.id, grace_seconds=20)
    await driver.stop(plan.id, grace_seconds=0)
    await driver.remove(plan.id)


@pytest.mark.long
async def test_data_survives_a_machine_that_is_killed(driver: QemuDriver, lab: GuestLab, plan: GuestPlan) -> None:
    facts = await ready(driver, plan)
    digest = await shell(
        driver, plan, "dd if=/dev/urandom of=/root/kept bs=64k count=46 2>/dev/null; sync; sha256sum < /root/kept"
    )
    lab.kill(driver, facts)
    await until(driver, plan.id, lambda facts: facts.state == "failed")
    await ready(driver, plan)
    assert await shell(driver, plan, "sha256sum < /root/kept") == digest


async def test_a_guest_whose_root_speaks_for_its_agent_hurts_only_itself(
    driver: QemuDriver, lab: GuestLab, plan: GuestPlan, hostile: bytes
) -> None:
    """Its node's agent, here this process, bears what hostile.c sends, and its neighbour is served meanwhile."""
    await ready(driver, plan)
    wild = lab.plan("wild")
    record = Path(lab.host.state_dir, "guests", wild.id, "guest.json")
    before = await ready(driver, wild)
    await run(driver, wild.id, "sh", "-c", "cat > /tmp/hostile; chmod +x /tmp/hostile", stdin=hostile)
    setsid = "setsid /tmp/hostile $(pidof weft-agent) >/dev/null 2>&1 &"
    await start_command(driver, wild.id, ExecRequest(argv=["sh", "-c", setsid]))
    await until(driver, wild.id, lambda facts: facts.boot_id == "aaaaaa")  # now that's who answers
    at_first = resident_bytes(os.getpid())
    try:
        for what in ("output", "credit", "process", "births", "random"):
            session = await start_command(driver, wild.id, ExecRequest(argv=[what, "0.6"]))  # nobody reads it
            for word in ("beside", "after"):
                assert await shell(driver, plan, f"echo {word} {what}") == f"{word} {what}"
                await asyncio.sleep(0.3)
            if what in ("output", "credit"):
                with pytest.raises(Unavailable, match="sent unrequested data"):
                    async with asyncio.timeout(20):
                        _ = [chunk async for chunk in session.output()]
            await session.close()
            grown = resident_bytes(os.getpid()) - at_first
            assert grown < 48 * MIB, f"{what}: {grown >> 20} MiB more"
        facts = await driver.inspect(wild.id)
        assert facts.process is None and len(facts.boot_id or "") <= 64 and record.stat().st_size < 8192
        async with asyncio.timeout(60):
            while facts.boot_id != before.boot_id:  # what it is sent may be lost with the rest of its noise
                await start_command(driver, wild.id, ExecRequest(argv=["leave"]))
                await asyncio.sleep(0.3)
                facts = await driver.inspect(wild.id)
        assert await shell(driver, wild, "echo back") == "back"
    finally:
        await driver.stop(wild.id, grace_seconds=0)
        await driver.remove(wild.id)


async def test_of_what_qemu_complains_of_the_end_is_kept(
    lab: GuestLab, plan: GuestPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest may make it complain without end. Its driver neither started it nor found it at its own start, as with one that
    came by a move."""
    monkeypatch.setattr(qemu, "CONSOLE_LOG_CHECK_SECONDS", 0.1)
    driver = lab.driver()
    await ready(driver, plan)
    driver._guests.notify()
    log = Path(lab.host.state_dir, "guests", plan.id, "qemu.log")
    with open(log, "ab") as file:
        file.write(b"qemu-system-x86_64: virtio: bogus descriptor\n" * 50_000)
        file.flush()
        async with asyncio.timeout(20):
            while log.stat().st_size > qemu.QEMU_LOG_KEPT_BYTES:
                await asyncio.sleep(0.05)
        file.write(b"and on\n")
    assert log.read_bytes().endswith(b"bogus descriptor\nand on\n")
    await driver.close()


@pytest.mark.long
def test_the_same_sources_give_the_same_image(tmp_path: Path, tiny: Path) -> None:
    cache = Path(os.environ.get("WEFT_CACHE", Path(__file__).parents[2] / ".weft" / "cache"))
    digests = set()
    for name in ("one.tar", "two.tar"):
        build_tiny(tmp_path / name, cache)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1
