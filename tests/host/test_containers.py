"""Real containers through crun and runc: they run, end, are limited and changed, and outlive whoever started them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from container_lab import BUSYBOX, MIB, ContainerLab
from container_labs import SHARING, open_lab
from containerd_lab import ContainerdLab
from image_lab import Made, entry, node, tar, write_layout

from weft.agent.workload.answer import CheckResult
from weft.agent.workload.health import run_check
from weft.contracts.driver.container import ContainerMount, ContainerPlan, ContainerProcess, User
from weft.contracts.driver.disk_lock import hold_disk
from weft.contracts.driver.runtime import ExecRequest
from weft.drivers.runtime.oci.conmon import shim
from weft.drivers.runtime.oci.conmon.shim import find_shim
from weft.drivers.runtime.oci.driver import OciDriver
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.rootfs import writable_layer
from weft.kinds.allocation import HealthCheck
from weft.objects.errors import DriverFailed, InvalidInput, NotFound, Unavailable

pytest.register_assert_rewrite("tests.conformance.container_contract")

from tests.conformance.container_contract import WAIT_SECONDS, bear, ended, output_of, printed, says

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", params=SHARING)
def lab(request: pytest.FixtureRequest) -> Iterator[ContainerLab]:
    with open_lab(request.param) as lab:
        yield lab


@pytest.fixture
async def driver(lab: ContainerLab) -> AsyncIterator[OciDriver]:
    async for driver in bear(lab):
        yield driver


async def test_a_fork_bomb_stays_in_its_limit_and_dies_with_its_container(lab: ContainerLab, driver: OciDriver) -> None:
    bomb = "echo up; f() { f | f & }; f; while :; do sleep 1; done"
    plan = lab.script("bomb", bomb, pids=40, cpu=0.2)
    await driver.start(plan)
    await says(driver, plan, "up")
    members = lab.processes()
    assert len(members) < 60
    await driver.stop(plan.id, grace_seconds=0)
    await driver.remove(plan.id)
    assert lab.leftovers() == []


async def test_limits_change_while_it_runs_and_the_rest_asks_for_a_restart(
    lab: ContainerLab, driver: OciDriver
) -> None:
    plan = lab.plan("grows", memory_bytes=48 * MIB)
    pid = (await driver.start(plan)).pid
    for memory, cpu in ((128 * MIB, 1.5), (40 * MIB, 0.5)):
        more = msgspec.structs.replace(plan, memory_bytes=memory, cpu=cpu)
        facts = await driver.adjust(more)
        assert facts.pid == pid and facts.shape is not None and facts.shape.memory_bytes == memory
        assert read_limits(lab, plan) == (memory, round(cpu * 100_000))
    with pytest.raises(InvalidInput) as refused:
        await driver.adjust(msgspec.structs.replace(more, read_only_root=True))
    assert refused.value.token == "restartNeeded"
    stats = await driver.stats(plan.id)
    assert stats.cpu_seconds > 0 and 0 < stats.resident_bytes < 128 * MIB
    (counters,) = driver.open_counters(plan.id)
    before = counters.read(1.0, often=False)
    await output_of(driver, plan, "sh", "-c", "n=0; while [ $n -lt 100000 ]; do n=$((n+1)); done")
    after = counters.read(2.0, often=False)
    assert before is not None and after is not None and after.values["cpu"] > before.values["cpu"]
    assert 0 < after.values["memory.used"] < 128 * MIB
    counters.close()
    await driver.stop(plan.id, grace_seconds=0)
    assert driver.open_counters(plan.id) == []


def read_limits(lab: ContainerLab, plan: ContainerPlan) -> tuple[int, int]:
    top = Path("/sys/fs/cgroup")
    if (top / "memory").exists():
        memory = (top / "memory" / lab.host.cgroup / plan.id / "memory.limit_in_bytes").read_text()
        quota = (top / "cpu" / lab.host.cgroup / plan.id / "cpu.cfs_quota_us").read_text()
        return int(memory), int(quota)
    group = top / lab.host.cgroup / plan.id
    return int((group / "memory.max").read_text()), int((group / "cpu.max").read_text().split()[0])


async def test_commands_run_beside_it(lab: ContainerLab, driver: OciDriver) -> None:
    plan = lab.plan("host", user=User(1000, 1000, home="/www"))
    await driver.start(plan)
    assert await output_of(driver, plan, "sh", "-c", "cat; id -u; pwd; exit 4", stdin=b"given\n") == (
        "given\n1000\n/\n",
        4,
    )
    out, code = await output_of(driver, plan, "no-such-program")
    assert code == 127 and "no-such-program" in out
    hung = await driver.exec(plan.id, ExecRequest(["sleep", "999"]))
    await until_true(lambda: count_members(lab, plan) == 2)
    await hung.close()
    await until_true(lambda: count_members(lab, plan) == 1)
    with pytest.raises(NotFound):
        await driver.exec("unknown", ExecRequest(["true"]))
    await driver.stop(plan.id, grace_seconds=0)
    with pytest.raises(Unavailable):
        await driver.exec(plan.id, ExecRequest(["true"]))


async def test_a_command_whose_caller_is_lost_is_hung_up_before_its_input_ends(
    lab: ContainerLab, driver: OciDriver
) -> None:
    """Otherwise it takes half a file for a whole one."""
    plan = lab.plan("half")
    await driver.start(plan)
    for number in range(4):
        lost = await driver.exec(plan.id, ExecRequest(["sh", "-c", f"cat >/part && mv /part /whole-{number}"]))
        await lost.write(b"half")
        if number % 2:
            await until_true(lambda: count_members(lab, plan) == 3)
        await lost.close()
    await until_true(lambda: count_members(lab, plan) == 1)
    assert await output_of(driver, plan, "sh", "-c", "ls -d /whole* 2>/dev/null") == ("", 1)


async def test_it_can_use_the_null_device_and_never_owns_the_node_s(lab: ContainerLab, driver: OciDriver) -> None:
    """crun gives standard streams to the container's user; the owner of the node's device could close it to the whole node."""
    plan = lab.script(
        "null", "cat; echo lost >/dev/null && echo $(stat -L -c %t,%T /proc/self/fd/0) up; exec sleep 999"
    )
    pid = (await driver.start(plan)).pid
    await says(driver, plan, "1,3 up")
    for tty in (False, True):
        command = "stat -L -c %t,%T /dev/null && echo lost >/dev/null && ! chmod 666 /dev/null 2>/dev/null && echo fine"
        out, code = await output_of(driver, plan, "sh", "-c", command, tty=tty)
        assert (out.split(), code) == (["1,3", "fine"], 0)
    (users,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid:")]
    root_inside = int(users.split()[1])
    assert root_inside != 0 and os.stat(os.devnull).st_uid != root_inside


async def test_a_runtime_that_fails_before_there_is_a_terminal_is_reported(
    lab: ContainerLab, driver: OciDriver
) -> None:
    if isinstance(lab, ContainerdLab):
        pytest.skip("containerd keeps its runtime's notes elsewhere")
    plan = lab.plan("noteless")
    await driver.start(plan)
    notes = Path(lab.host.run_dir, "containers", "runtime", plan.id)
    away = notes.rename(lab.folder / "away")
    try:
        out, code = await output_of(driver, plan, "true", tty=True)
    finally:
        away.rename(notes)
    assert code in (126, 127) and "the container has ended" in out and plan.id not in out
    out, code = await output_of(driver, plan, "echo", "fine", tty=True)
    # A program that prints before runc has set the container's terminal has two carriage returns: its terminal's and ours.
    assert (out.replace("\r\r", "\r"), code) == ("fine\r\n", 0)


async def test_a_user_beyond_its_own_is_refused_with_the_field(lab: ContainerLab, driver: OciDriver) -> None:
    for user in (User(65536, 0), User(0, 99_999_999)):
        with pytest.raises(InvalidInput, match="must be below 65536") as refused:
            await driver.start(lab.plan("far-user", user=user))
        assert refused.value.field == "spec.user"


async def test_commands_of_an_agent_that_is_gone_are_hung_up(lab: ContainerLab, driver: OciDriver) -> None:
    plan = lab.plan("left-behind")
    await driver.start(plan)
    for tty in (False, True):
        await driver.exec(plan.id, ExecRequest(["sleep", "999"], tty=tty))
    await until_true(lambda: count_members(lab, plan) == 3)
    await driver.close()  # which leaves commands as they are
    again = lab.driver()
    assert [facts.state for facts in await again.recover() if facts.id == plan.id] == ["running"]
    await until_true(lambda: count_members(lab, plan) == 1)
    folder = Path(lab.host.run_dir, "containers", plan.id)
    await until_true(lambda: not list(folder.glob("exec-*.json")))
    assert await output_of(again, plan, "echo", "on") == ("on\n", 0)


@pytest.mark.parametrize("tty", [False, True], ids=["without a terminal", "on a terminal"])
async def test_a_command_that_never_begins_has_plain_words_and_a_shell_s_exit_code(
    lab: ContainerLab, driver: OciDriver, tty: bool
) -> None:
    plan = lab.plan(f"refused-{int(tty)}")
    await driver.start(plan)
    refused = (
        (ExecRequest(["no-such-program"], tty=tty), 127, "not found"),
        (ExecRequest(["/no/such/program"], tty=tty), 127, "/no/such/program"),
        (ExecRequest(["/etc"], tty=tty), 126, ""),
        (ExecRequest(["pwd"], cwd="/no/such/folder", tty=tty), 126, "/no/such/folder"),
    )
    for request, expected, word in refused:
        session = await driver.exec(plan.id, request)
        chunks = [chunk async for chunk in session.output()]
        await session.close()
        said = b"".join(chunk.data for chunk in chunks).decode()
        assert chunks[-1].code == expected and word in said, said
        assert not any(noise in said for noise in ("\x1b", "level=", "ERRO", "T1", "T0", "T2")), said


async def test_a_terminal_gets_its_size_with_the_command(lab: ContainerLab, driver: OciDriver) -> None:
    """The runtimes of Debian 12 set it beside the command that they start, which may look a moment earlier: stty then calls
    the size unknown."""
    plan = lab.plan("sized")
    await driver.start(plan)
    text = "until stty size 2>/dev/null | grep .; do sleep 0.01; done"
    out, code = await output_of(driver, plan, "sh", "-c", text, tty=True, rows=33, columns=101)
    assert (out.strip(), code) == ("33 101", 0)


def count_members(lab: ContainerLab, plan: ContainerPlan) -> int:
    found = list(Path("/sys/fs/cgroup").glob(f"*/{lab.host.cgroup}/{plan.id}/cgroup.procs"))
    found += list(Path("/sys/fs/cgroup").glob(f"{lab.host.cgroup}/{plan.id}/cgroup.procs"))
    return max((len(path.read_text().split()) for path in found), default=0)


async def until_true(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not holds():
            await asyncio.sleep(0.05)


async def test_volumes_are_its_own_to_write_unless_read_only(lab: ContainerLab, driver: OciDriver) -> None:
    volume, other = lab.folder / "volume", lab.folder / "other"
    for folder in (volume, other):
        folder.mkdir(exist_ok=True)
        (folder / "there").write_text("there\n")
    mounts = [ContainerMount(str(volume), "/data"), ContainerMount(str(other), "/ro/deep", read_only=True)]
    text = "cat /data/there /ro/deep/there; "
    text += "echo new > /data/new && stat -c %u /data/new; (echo x > /ro/deep/x) 2>/dev/null || echo refused"
    plan = lab.script("mounts", text, mounts=mounts)
    await driver.start(plan)
    await ended(driver, plan)
    out = await printed(driver, plan)
    assert out.startswith("there\nthere\n0\n") and out.endswith("refused\n")
    assert (volume / "new").stat().st_uid == 0 and not (other / "x").exists()


async def test_a_check_that_takes_too_long_is_killed_with_all_its_deafness(
    lab: ContainerLab, driver: OciDriver
) -> None:
    plan = lab.plan("checked")
    await driver.start(plan)
    check = HealthCheck(command=["sh", "-c", "trap '' HUP TERM; echo waits; sleep 977; true"], timeout=1.0)
    assert await run_check(plan.id, check, driver) == CheckResult(False, "the check took longer than 1 s", silent=True)
    told = await run_check(plan.id, HealthCheck(command=["sh", "-c", "echo no >&2; exit 4"]), driver)
    assert told == CheckResult(False, "exit code 4: no")
    assert not (await run_check(plan.id, HealthCheck(command=["/no/such"]), driver)).well
    assert (await output_of(driver, plan, "sh", "-c", "ps | grep -c '[w]aits'"))[0] == "0\n"
    assert await run_check(plan.id, HealthCheck(command=["true"]), driver) == CheckResult(True)


# Who started it, and what holds it, may be killed at any moment.


async def test_one_whose_shim_is_killed_runs_on_and_its_end_is_noticed(lab: ContainerLab, driver: OciDriver) -> None:
    if isinstance(lab, ContainerdLab):
        pytest.skip("containerd ends what its shim held: see test_containerd")
    plan = lab.plan("orphan")
    started = await driver.start(plan)
    shim = find_shim(paths_of(lab, plan))
    assert shim is not None
    os.kill(shim.pid, signal.SIGKILL)
    assert (await output_of(driver, plan, "echo", "here"))[0] == "here\n"
    facts = await driver.inspect(plan.id)
    assert (facts.state, facts.pid) == ("running", started.pid)
    lab.kill(facts)
    facts = await ended(driver, plan)
    assert (facts.state, facts.reason, facts.exit_code) == ("failed", "shimLost", None)


def paths_of(lab: ContainerLab, plan: ContainerPlan) -> ContainerPaths:
    return ContainerPaths(
        Path(lab.host.run_dir, "containers", plan.id), Path(lab.host.state_dir, "containers", plan.id)
    )


@pytest.mark.parametrize("what", ["conmon", "create", "start"])
async def test_a_start_whose_helper_is_killed_fails_or_runs_and_leaves_nothing(
    lab: ContainerLab, driver: OciDriver, what: str
) -> None:
    plan = lab.plan(f"broken-{what}")
    starting = asyncio.create_task(driver.start(plan))
    folder = str(Path(lab.host.run_dir, "containers", plan.id))
    while not starting.done():
        for pid in search(folder, plan.id, what):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.001)
    try:
        facts = starting.result()
        assert facts.state == "running"
    except DriverFailed:
        assert (await driver.inspect(plan.id)).state == "absent"
        assert lab.processes() == []
    await driver.stop(plan.id, grace_seconds=0)
    await driver.start(plan)  # it isn't the worse for it
    assert (await driver.inspect(plan.id)).state == "running"


def search(folder: str, guest_id: str, what: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = Path(f"/proc/{name}/cmdline").read_text().split("\0")
            except OSError:
                continue
            about = folder in words or guest_id in words
            if about and (what in words or Path(words[0]).name == what):
                found.append(int(name))
    return found


async def test_what_a_killed_agent_left_of_a_start_is_cleared_by_the_next(lab: ContainerLab, driver: OciDriver) -> None:
    plan = lab.plan("cut-off")
    script = (
        "import asyncio, msgspec, os, sys\n"
        "from weft.contracts.driver.container import ContainerPlan\n"
        "from weft.contracts.driver.host import Host\n"
        "from weft.drivers.runtime.oci.conmon import holder as conmon\n"
        "from weft.drivers.runtime.oci.driver import OciDriver\n"
        "real = conmon.run_shim\n"
        "def die(*a):\n"
        "    real(*a)\n"
        "    os.kill(os.getpid(), 9)\n"
        "conmon.run_shim = die\n"
        "host = msgspec.json.decode(sys.argv[1], type=Host)\n"
        "plan = msgspec.json.decode(sys.argv[2], type=ContainerPlan)\n"
        "asyncio.run(OciDriver(host, runtime=sys.argv[3]).start(plan))\n"
    )
    words = [msgspec.json.encode(lab.host).decode(), msgspec.json.encode(plan).decode(), lab.runtime]
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, *words)
    assert await agent.wait() == -signal.SIGKILL
    assert lab.processes() != []
    [facts] = await driver.recover()
    assert (facts.state, facts.reason) == ("failed", "startInterrupted")
    assert lab.processes() == []
    assert (await driver.start(plan)).state == "running"


def list_loops(lab: ContainerLab) -> list[str]:
    said = subprocess.run(["losetup", "-l", "-n", "-O", "BACK-FILE"], capture_output=True, text=True, check=True)
    return [line for line in said.stdout.splitlines() if str(lab.folder) in line]


async def test_what_it_writes_into_its_root_is_bounded_stays_and_goes_with_it(
    lab: ContainerLab, driver: OciDriver
) -> None:
    plan = lab.plan("bounded", disk_bytes=32 << 20)
    await driver.start(plan)
    text = (
        "echo kept > /etc/kept; chown 1000 /etc/kept; cat /etc/issue; rm /etc/issue; "
        "dd if=/dev/zero of=/big bs=1M count=64 2>&1 | grep -o 'No space left on device'; df -k / | tail -1"
    )
    lines = (await output_of(driver, plan, "sh", "-c", text))[0].splitlines()
    assert lines[:2] == ["upper", "No space left on device"]
    size, used = map(int, lines[2].split()[1:3])
    assert 20_000 < size <= 32 << 10 and used > size * 0.9  # its own, not its node's
    disk = Path(lab.host.state_dir, "containers", plan.id, "root.ext4")
    assert disk.stat().st_blocks * 512 <= 33 << 20
    assert len(list_loops(lab)) == 1
    await driver.stop(plan.id, grace_seconds=0)
    await driver.start(plan)
    text = "stat -c %u /etc/kept; ls /etc/issue 2>/dev/null; ls /lost+found 2>/dev/null; rm /big && echo again > /again; cat /again"
    assert (await output_of(driver, plan, "sh", "-c", text))[0].split() == ["1000", "again"]
    await driver.stop(plan.id, grace_seconds=0)
    await driver.remove(plan.id)
    await driver.close()
    assert lab.leftovers() == [] and list_loops(lab) == []


async def test_what_it_wrote_outlives_a_node_that_lost_its_power(lab: ContainerLab, driver: OciDriver) -> None:
    for name in ("first", "second"):  # the second one's file system is written from what the first one's is known by
        plan = lab.plan(name, disk_bytes=32 << 20)
        await driver.start(plan)
        await output_of(driver, plan, "sh", "-c", "echo kept > /kept; sync; echo unsaid > /unsaid")
    disk = Path(lab.host.state_dir, "containers", plan.id, "root.ext4")
    cut = disk.read_bytes()  # as it lies there while it is in use
    await driver.stop(plan.id, grace_seconds=0)
    with disk.open("r+b") as file:
        async with asyncio.timeout(WAIT_SECONDS):
            while not hold_disk(file.fileno()):  # the run before writes into it until it has let go
                await asyncio.sleep(0.01)
        file.write(cut)
    await driver.start(plan)
    assert (await output_of(driver, plan, "cat", "/kept"))[0] == "kept\n"


async def test_one_that_cant_have_its_disk_leaves_nothing_and_says_why(
    lab: ContainerLab, driver: OciDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = lab.plan("unmade", disk_bytes=48 << 20)
    monkeypatch.setattr(writable_layer, "_known", {})
    (tmp_path / "mkfs.ext4").write_text("#!/bin/sh\necho it breaks >&2\nexit 1\n")
    (tmp_path / "mkfs.ext4").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(DriverFailed, match=r"mkfs\.ext4 failed: it breaks"):
        await driver.start(plan)
    monkeypatch.undo()
    assert not any(Path(lab.host.state_dir, "containers").iterdir()) and list_loops(lab) == []
    await driver.start(plan)


async def test_what_it_prints_while_no_agent_runs_is_bounded_by_who_holds_it(
    lab: ContainerLab, driver: OciDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shim, "LOG_LIMIT_BYTES", 1 << 20)
    plan = lab.script("loud", "head -c 5000000 /dev/zero | tr '\\0' x | fold -w 1000; echo; echo last; sleep 1000")
    if isinstance(lab, ContainerdLab):
        pytest.skip("its keeper turns the log over by itself: tests/host/test_containerd.py")
    await driver.start(plan)
    await driver.close()
    log = Path(lab.host.state_dir, "containers", plan.id, "log")
    async with asyncio.timeout(WAIT_SECONDS):
        while not log.read_bytes().endswith(b" F last\n"):
            await asyncio.sleep(0.05)
    assert log.stat().st_size <= 1 << 20


async def test_a_plan_that_cant_be_started_leaves_nothing(lab: ContainerLab, driver: OciDriver) -> None:
    for number, broken in enumerate(
        (
            lab.plan("broken-2", mounts=[ContainerMount("/no/such/folder", "/x")]),
            lab.plan("broken-3", layers=["/no/such/layer"]),
            lab.plan("broken-4", netns="/no/such/namespace"),
        )
    ):
        with pytest.raises(DriverFailed) as refused:
            await driver.start(broken)
        assert broken.name in refused.value.message, number
        assert (await driver.inspect(broken.id)).state == "absent"
        assert lab.processes() == []
    with pytest.raises(InvalidInput):
        await driver.start(lab.plan("broken-5", devices=["/etc/passwd"]))


async def test_a_command_that_cant_be_begun_is_a_run_that_has_ended(lab: ContainerLab, driver: OciDriver) -> None:
    for name, program, ending in (
        ("nowhere", "no-such-program", ("commandNotFound", 127, "'no-such-program' is not in the container's PATH")),
        ("no-file", "/no/such/program", ("commandNotFound", 127, "the container has no file '/no/such/program'")),
        ("no-folder", "/etc/issue/x", ("commandNotFound", 127, "the container has no file '/etc/issue/x'")),
        ("no-program", "/etc/issue", ("commandNotExecutable", 126, "'/etc/issue' can't be executed: ")),
        ("folder", "/etc", ("commandNotExecutable", 126, "'/etc' can't be executed: ")),
    ):
        plan = lab.plan(name, program)
        facts = await driver.start(plan)
        assert facts == await driver.inspect(plan.id)
        assert (facts.state, facts.reason, facts.exit_code) == ("failed", *ending[:2]), program
        assert (facts.message or "").startswith(ending[2])
        assert lab.processes() == []
        assert "executable" in (
            await printed(driver, plan) or "executable"
        )  # containerd lets the runtime print its words
        await driver.remove(plan.id)
        assert (await driver.inspect(plan.id)).state == "absent"
    mended = lab.plan("mended", "no-such-program")
    await driver.start(mended)
    again = lab.script("mended", "true")
    await driver.start(again)
    assert (await ended(driver, again)).exit_code == 0


async def test_an_image_of_the_nodes_store_runs(lab: ContainerLab, driver: OciDriver, tmp_path: Path) -> None:
    """What one driver keeps the other runs: what an upper layer takes away isn't there."""
    program = entry("bin/busybox")
    program.mode = 0o755
    lower = tar([(program, Path(BUSYBOX).read_bytes()), (entry("etc/gone"), b"x"), (entry("etc/kept"), b"kept\n")])
    upper = tar([(entry("etc/.wh.gone"), b"")])
    says = "echo $A; /bin/busybox cat /etc/kept; /bin/busybox ls /etc"
    made = Made([lower, upper], Entrypoint=["/bin/busybox"], Cmd=["sh", "-c", says], Env=["A=1"])
    store = node(tmp_path / "store")
    image = await store.pull(f"oci:{write_layout(lab.folder / 'layout', {'web': made})}:web")
    config, user = image.config, await store.find_user(image, image.config.user)
    process = ContainerProcess([*config.entrypoint, *config.cmd], env=config.env, user=user)
    plan = lab.plan("pulled", layers=store.root(image), process=process)
    await driver.start(plan)
    assert (await ended(driver, plan)).reason == "completed"
    said = (await printed(driver, plan)).split()
    assert said[:2] == ["1", "kept"] and "gone" not in said
