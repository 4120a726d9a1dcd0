"""A container in a machine of its own: what the machine is told, how it is built, what is read back, what its end is called."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import msgspec
import pytest

from weft.contracts.driver.container import (
    ContainerMount,
    ContainerNic,
    ContainerPlan,
    ContainerProcess,
    LogLine,
    LogPiece,
    User,
)
from weft.contracts.driver.host import Capacity
from weft.contracts.driver.runtime import BootKernel, ExecRequest, GuestFacts, GuestState
from weft.drivers.runtime.qemu.image_disk import name_root
from weft.drivers.runtime.qemu.microvm import exchange_disk
from weft.drivers.runtime.qemu.microvm.exchange_disk import (
    Head,
    Ring,
    make_exchange_disk,
    parse_line,
    read_after,
    read_head,
    write_config,
)
from weft.drivers.runtime.qemu.microvm.record import MicrovmPaths, MicrovmRecord, describe_container
from weft.drivers.runtime.qemu.microvm.translate import (
    check_plan,
    describe_run,
    plan_machine,
    read_rights,
    translate_exec,
)
from weft.objects.errors import InvalidInput, TooLarge

MIB = 1 << 20
PLAN = ContainerPlan(
    id="aaaaaaaaaa",
    uid="00000000-0000-4000-8000-000000000001",
    name="web",
    incarnation=2,
    layers=["/l/2", "/l/1"],
    process=ContainerProcess(
        ["/bin/serve", "--port", "80"], ["PATH=/bin", "A=b c"], "/srv", User(33, 34, [7, 8]), "SIGQUIT"
    ),
    cpu=1.5,
    memory_bytes=129 * MIB + 5,
    capabilities=["CAP_CHOWN", "CAP_NET_RAW"],
    nics=[
        ContainerNic("tap0", "52:54:00:00:00:01", 1450, "10.0.0.5", 24, "10.0.0.1"),
        ContainerNic("tap1", "52:54:00:00:00:02", 1400, "10.1.0.5", 16),
    ],
    mounts=[ContainerMount("/d.raw", "/data", True, file_system="ext4"), ContainerMount("", "/tmp", size_bytes=4096)],
    name_servers=["10.0.0.1"],
    search=["weft"],
)
PATHS = MicrovmPaths(Path("/state/x"))


def change(**more: object) -> ContainerPlan:
    return msgspec.structs.replace(PLAN, **more)


def test_the_machine_is_as_large_as_the_container_and_has_its_disks_and_links() -> None:
    machine = plan_machine(PLAN, PATHS, "/base.ext4", 9 << 30, "/k", "/i", Capacity(8, 1 << 34, 1 << 40))
    assert (machine.cpu, machine.vcpus, machine.memory_bytes, machine.machine) == (1.5, 2, 129 * MIB, "microvm")
    assert [(disk.serial, disk.path, disk.read_only) for disk in machine.disks] == [
        *(
            ("root", "/state/x/root.qcow2", False),
            ("exchange", "/state/x/exchange-disk", False),
            ("volume0", "/d.raw", False),
        ),
    ]
    assert (machine.disks[0].base, machine.disks[0].base_format, machine.disks[0].size_bytes) == (
        *("/base.ext4", "raw"),
        9 << 30,
    )
    assert [(nic.ifname, nic.mac, nic.mtu) for nic in machine.nics] == [
        *(("tap0", "52:54:00:00:00:01", 1450), ("tap1", "52:54:00:00:00:02", 1400)),
    ]
    assert isinstance(machine.boot, BootKernel) and (machine.boot.kernel, machine.boot.initrd) == ("/k", "/i")
    assert "b c" not in machine.boot.cmdline
    unlimited = plan_machine(change(cpu=0.0), PATHS, "/b", 1, "/k", "/i", Capacity(3, 1, 1))
    assert (unlimited.cpu, unlimited.vcpus) == (3, 3)


def test_it_is_told_all_that_a_container_is_by_records() -> None:
    records = describe_run(PLAN, "run1")
    told = dict(records)
    assert (told["run"], told["hostname"], told["cwd"], told["uid"], told["gid"]) == ("run1", "web", "/srv", "33", "34")
    assert [value for word, value in records if word == "group"] == ["7", "8"]
    assert (told["stop"], told["pids"], told["rights"]) == ("3", "4096", f"{1 | 1 << 13:x}")
    assert [value for word, value in records if word == "nic"] == [
        *("52:54:00:00:00:01 10.0.0.5 24 10.0.0.1 1450", "52:54:00:00:00:02 10.1.0.5 16 - 1400"),
    ]
    assert [value for word, value in records if word == "arg"] == ["/bin/serve", "--port", "80"]
    assert [value for word, value in records if word == "env"] == ["PATH=/bin", "A=b c"]
    assert told["volume"] == "volume0 ro /data" and told["tmpfs"] == "4096 1777 rw /tmp"
    files = [value for word, value in records if word == "file"]
    assert "/etc/resolv.conf nameserver 10.0.0.1\nsearch weft\n" in files
    assert any(value.startswith("/etc/hosts ") and "10.0.0.5 web\n" in value for value in files)
    assert "readonly" not in told


def test_a_read_only_root_has_folders_to_write_in_unless_something_is_mounted_there() -> None:
    records = describe_run(change(read_only_root=True), "r")
    assert ("readonly", "1") in records
    assert [value for word, value in records if word == "tmpfs"] == [f"{64 * MIB} 755 rw /run", "4096 1777 rw /tmp"]


def test_a_command_runs_as_the_container_would() -> None:
    request = translate_exec(PLAN, ExecRequest(["id", "-u"], {"A": "other"}, tty=True, rows=33, columns=101))
    assert request.argv == ["/bin/enter", "/srv", "id", "-u"]
    assert request.env == {"PATH": "/bin", "A": "other", "TERM": "xterm"}
    assert (request.cwd, request.tty, request.rows, request.columns) == ("/", True, 33, 101)
    assert translate_exec(PLAN, ExecRequest(["id"], cwd="/etc")).argv[1] == "/etc"
    with pytest.raises(InvalidInput):
        translate_exec(PLAN, ExecRequest([]))


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"memory_bytes": 95 * MIB}, "memory"),
        ({"mounts": [ContainerMount("/folder", "/data")]}, "mounts"),
        ({"mounts": [ContainerMount(f"/{n}", f"/d{n}", file_system="ext4") for n in range(7)]}, "mounts"),
        ({"netns": "/run/netns/x"}, "netns"),
        ({"devices": ["/dev/fuse"]}, "devices"),
        ({"terminal": True}, "terminal"),
        ({"process": ContainerProcess([])}, "command"),
        ({"process": ContainerProcess(["a\0b"])}, "command"),
    ],
)
def test_what_a_machine_cant_have_is_refused_by_its_field(changed: dict[str, object], field: str) -> None:
    check_plan(PLAN)
    with pytest.raises(InvalidInput) as refused:
        check_plan(change(**changed))
    assert refused.value.field == field


def test_rights_are_the_kernels_bits() -> None:
    assert read_rights(["CAP_SYS_ADMIN", "setfcap", "CAP_CHECKPOINT_RESTORE"]) == 1 << 21 | 1 << 31 | 1 << 40
    with pytest.raises(InvalidInput):
        read_rights(["CAP_FLY"])


def test_equal_layers_are_one_image_whichever_container_has_them() -> None:
    assert name_root(["/a", "/b"]) == name_root(["/a", "/b"])
    assert len({name_root(layers) for layers in (["/a", "/b"], ["/b", "/a"], ["/a"], ["/a\0/b"[:2]])}) == 3


# What is read back was written by the machine.


def write_head(
    path: Path, first: int, end: int, *, run: str = "r", state: int = 2, how: int = 0, code: int = 0
) -> None:
    data = struct.pack("<8s32sIIIIQQ", b"weftbox1", run.encode(), state, how, code, 0, first, end)
    with open(path, "r+b") as file:
        file.write(data)


def write_ring(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        for offset, piece in (
            (at % exchange_disk.RING_BYTES, data[: exchange_disk.RING_BYTES - at % exchange_disk.RING_BYTES]),
        ):
            file.seek(exchange_disk.RING_AT + offset)
            file.write(piece)
            file.seek(exchange_disk.RING_AT)
            file.write(data[len(piece) :])


def test_a_box_is_kept_from_run_to_run_and_holds_what_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "exchange-disk"
    make_exchange_disk(path)
    assert read_head(path) is None
    write_head(path, 0, 5)
    make_exchange_disk(path)
    assert read_head(path) == Head("r", 2, 0, 0, 0, 5)
    write_config(path, [("arg", "one"), ("arg", "two words")])
    with open(path, "rb") as file:
        file.seek(exchange_disk.CONFIG_AT)
        assert file.read(24) == b"arg one\0arg two words\0\0\0"
    assert read_head(path) is not None
    with pytest.raises(TooLarge):
        write_config(path, [("env", "x" * exchange_disk.CONFIG_BYTES)])
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("first, end", [(10, 5), (0, exchange_disk.RING_BYTES + 1), (0, 1 << 63)])
def test_a_head_that_cant_be_is_none(tmp_path: Path, first: int, end: int) -> None:
    path = tmp_path / "exchange-disk"
    make_exchange_disk(path)
    write_head(path, first, end)
    assert read_head(path) is None
    ring = Ring(path)
    assert ring.read() is None
    ring.close()


def test_lines_are_read_as_they_come_and_across_the_ends_of_the_ring(tmp_path: Path) -> None:
    path = tmp_path / "exchange-disk"
    make_exchange_disk(path)
    ring = Ring(path)
    assert ring.read() is None
    at = 3 * exchange_disk.RING_BYTES - 20
    first, half = b"1.5 stdout F one\n", b"2.000000001 stderr P tw"
    write_ring(path, at, first + half)
    write_head(path, at, at + len(first + half))
    assert ring.read() == [LogLine(1.5, "stdout", b"one\n")]
    assert ring.read() is None
    write_ring(path, at + len(first + half), b"o\nnonsense\n3 stdout F \n")
    write_head(path, at, at + len(first + half) + 23)
    assert ring.read() == [LogLine(2.000000001, "stderr", b"two"), LogLine(3.0, "stdout", b"\n")]
    gone = at + 5 * exchange_disk.RING_BYTES  # it went round and round; what is left begins in the middle of a line
    write_ring(path, gone, b"rest of a line\n4 stdout F four\n")
    write_head(path, gone, gone + 31)
    assert ring.read() == [LogLine(4.0, "stdout", b"four\n")]
    ring.close()


def test_a_machine_s_lines_are_read_on_from_a_position_and_what_was_written_over_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "exchange-disk"
    make_exchange_disk(path)
    assert read_after(path, "7") == LogPiece([], "7")
    first, half = b"1.5 stdout F one\n", b"2 stderr F tw"
    write_ring(path, 0, first + half)
    write_head(path, 0, len(first + half))
    piece = read_after(path, "")
    assert piece == LogPiece([LogLine(1.5, "stdout", b"one\n")], str(len(first)))
    write_ring(path, len(first + half), b"o\n")
    write_head(path, 0, len(first + half) + 2, run="another")
    piece = read_after(path, piece.position)
    assert piece.lines == [LogLine(2.0, "stderr", b"two\n")] and not piece.missed
    gone = 5 * exchange_disk.RING_BYTES
    write_ring(path, gone, b"rest of a line\n4 stdout F four\n")
    write_head(path, gone, gone + 31)
    piece = read_after(path, piece.position)
    assert piece == LogPiece([LogLine(4.0, "stdout", b"four\n")], str(gone + 31), missed=True)
    write_head(path, 0, 0)  # another disk
    assert read_after(path, piece.position) == LogPiece([], "0")


class Endless:
    """A clock by which a machine writes on whenever nobody looks."""

    def __init__(self, path: Path) -> None:
        self.path, self.end, self.pauses = path, 0, 0

    async def sleep(self, seconds: float) -> None:
        self.pauses += 1
        self.end += exchange_disk.READ_BYTES
        write_head(self.path, max(0, self.end - exchange_disk.RING_BYTES), self.end)
        await asyncio.sleep(0)


async def test_a_machine_that_writes_without_end_keeps_nobody_who_wants_what_there_was(tmp_path: Path) -> None:
    path = tmp_path / "exchange-disk"
    make_exchange_disk(path)
    write_ring(path, 0, b"1 stdout F one\n" + b"x" * 1000)
    write_head(path, 0, 1015)
    clock = Endless(path)
    clock.end = 1015

    async def has_ended() -> bool:
        return False

    lines = [line async for line in exchange_disk.read_lines(path, clock, tail=-1, follow=False, has_ended=has_ended)]  # type: ignore[arg-type]
    assert lines == [LogLine(1.0, "stdout", b"one\n")] and clock.pauses == 1
    following = exchange_disk.read_lines(path, clock, tail=0, follow=True, has_ended=has_ended)  # type: ignore[arg-type]
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    while clock.pauses < 200:  # others have their turn meanwhile, and nothing piles up
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


@pytest.mark.parametrize("line", [b"", b"x", b"1 stdout F", b"1 stdin F x", b"x stdout F y", b"1 stdout Q x"])
def test_what_is_no_line_is_none(line: bytes) -> None:
    assert parse_line(line) is None


# How it ended.


def end_of(
    state: GuestState, reason: str | None, head: Head | None, message: str | None = None
) -> tuple[str, str | None, int | None]:
    guest = GuestFacts(PLAN.id, PLAN.uid, PLAN.name, 2, state, reason=reason, message=message)
    facts = describe_container(MicrovmRecord(PLAN, "run1", "/base"), guest, head)
    return facts.state, facts.reason, facts.exit_code


def head(how: int = 0, code: int = 0, *, run: str = "run1", state: int = exchange_disk.ENDED) -> Head:
    return Head(run, state, how, code, 0, 0)


def test_one_that_runs_has_what_it_was_given_and_cant_grow() -> None:
    guest = GuestFacts(PLAN.id, PLAN.uid, PLAN.name, 2, "running", ready=True, boot_id="b", pid=7)
    facts = describe_container(MicrovmRecord(PLAN, "run1", "/base"), guest, None)
    assert (facts.state, facts.ready, facts.boot_id, facts.pid) == ("running", True, "b", 7)
    assert facts.shape is not None
    assert (facts.shape.memory_bytes, facts.shape.most_memory_bytes) == (PLAN.memory_bytes, PLAN.memory_bytes)


def test_one_whose_machine_has_written_nothing_yet_starts() -> None:
    guest = GuestFacts(PLAN.id, PLAN.uid, PLAN.name, 2, "running", ready=False, pid=7)
    assert describe_container(MicrovmRecord(PLAN, "run1", "/base"), guest, None).state == "starting"


@pytest.mark.parametrize(
    ("begun", "state"),
    [
        (head(state=exchange_disk.BOOTING), "starting"),
        (head(run="before"), "starting"),
        (head(state=exchange_disk.RUNNING), "running"),
        (head(state=exchange_disk.ENDED), "running"),
        (head(exchange_disk.NO_PROGRAM, 127), "starting"),
        (None, "running"),
    ],
)
def test_one_whose_machine_answers_runs_once_its_program_does(begun: Head | None, state: str) -> None:
    guest = GuestFacts(PLAN.id, PLAN.uid, PLAN.name, 2, "running", ready=True, boot_id="b", pid=7)
    facts = describe_container(MicrovmRecord(PLAN, "run1", "/base"), guest, begun)
    assert (facts.state, facts.ready) == (state, state == "running")


@pytest.mark.parametrize(
    ("state", "reason", "told", "expected"),
    [
        ("stopped", "guestPoweredOff", head(), ("stopped", "completed", 0)),
        ("stopped", "guestPoweredOff", head(code=3), ("failed", "exited", 3)),
        ("stopped", "guestPoweredOff", head(code=300), ("failed", "exited", 44)),  # no more than a process can say
        ("stopped", "guestPoweredOff", head(exchange_disk.SIGNALLED, 15), ("failed", "killed", 143)),
        (
            "stopped",
            "guestPoweredOff",
            head(exchange_disk.SIGNALLED | exchange_disk.OUT_OF_MEMORY, 9),
            ("failed", "outOfMemory", 137),
        ),
        ("stopped", "guestPoweredOff", head(exchange_disk.OUT_OF_MEMORY, 1), ("failed", "exited", 1)),
        ("stopped", "guestPoweredOff", head(exchange_disk.AGAIN), ("failed", "guestPanicked", None)),
        ("stopped", "guestPoweredOff", head(exchange_disk.UNSTARTED), ("failed", "guestPanicked", None)),
        ("stopped", "guestPoweredOff", head(run="before"), ("failed", "lost", None)),
        ("stopped", "guestPoweredOff", None, ("failed", "lost", None)),
        ("stopped", "stopRequested", head(code=7), ("stopped", "stopRequested", 7)),
        ("stopped", "stopRequested", head(state=exchange_disk.RUNNING), ("stopped", "stopRequested", 137)),
        ("failed", "killed", head(state=exchange_disk.RUNNING), ("failed", "killed", None)),
        ("failed", "nodeRestarted", head(state=exchange_disk.RUNNING), ("failed", "nodeRestarted", None)),
        ("failed", "nodeRestarted", head(code=0), ("stopped", "completed", 0)),  # it had ended before
        ("absent", None, head(), ("failed", "startInterrupted", None)),
        # Nobody had found its process yet:
        ("failed", "startInterrupted", head(code=3), ("failed", "exited", 3)),
        ("failed", "startInterrupted", head(state=exchange_disk.RUNNING), ("failed", "lost", None)),
        ("failed", "startInterrupted", head(run="before"), ("failed", "startInterrupted", None)),
    ],
)
def test_its_end_is_what_its_machine_said_last_else_the_machines_own(
    state: GuestState, reason: str | None, told: Head | None, expected: tuple[str, str, int | None]
) -> None:
    assert end_of(state, reason, told) == expected
