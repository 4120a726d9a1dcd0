"""Control groups: where they are, what is written, and what is read; for version 1 and 2, in trees of plain folders and files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.driver.runtime import GuestStats
from weft.drivers.cgroup.groups import FREEZER, ControlGroups
from weft.drivers.cgroup.limits import Limits, limit_guest, limit_instance, plan_agent_memory, plan_limits
from weft.drivers.cgroup.open_counters import count_group, count_io
from weft.drivers.cgroup.trees import CONTROLLERS, CgroupTree, Trees, find_trees
from weft.drivers.linux.mounts import parse_mounts
from weft.objects.errors import DriverFailed

MIB = 1 << 20
V1 = """\
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/pids rw,nosuid - cgroup cgroup rw,pids
35 30 0:31 / /sys/fs/cgroup/freezer rw,nosuid - cgroup cgroup rw,freezer
36 30 0:32 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,name=systemd
"""
V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
TOP = Path("/sys/fs/cgroup")


def find(mountinfo: str, controllers: str = "") -> Trees:
    return find_trees(parse_mounts(mountinfo), lambda _: controllers)


def test_version_1_has_a_tree_for_each_controller() -> None:
    trees = find(V1)
    assert (trees.version, trees.unified) == (1, TOP / "unified")
    assert {name: str(point.relative_to(TOP)) for name, point in trees.points.items()} == {
        "cpu": "cpu,cpuacct", "cpuacct": "cpu,cpuacct", "memory": "memory", "pids": "pids", "freezer": "freezer",
        "name=systemd": "systemd",
    }  # fmt: skip
    assert [tree.point.name for tree in trees.all] == ["unified", "cpu,cpuacct", "memory", "pids", "freezer", "systemd"]


def test_version_2_has_one_tree_with_the_controllers_it_names() -> None:
    trees = find(V2, "cpuset cpu io memory\n")
    assert (trees.version, trees.unified) == (2, TOP)
    assert trees.points == dict.fromkeys(("cpuset", "cpu", "io", "memory"), TOP)


def test_a_tree_that_is_mounted_twice_counts_once() -> None:
    again = V2.replace("/sys/fs/cgroup", "/run/cgroup")
    assert [tree.point for tree in find(V2 + again).all] == [TOP]


def test_nothing_mounted_is_nothing() -> None:
    trees = find("23 1 8:1 / / rw - ext4 /dev/sda rw\n")
    assert (trees.all, trees.points, trees.unified) == ((), {}, None)
    assert ControlGroups("weft", trees=trees).check(limit_guest(1, MIB)) == (
        "cgroup controllers cpu, memory, pids are not mounted"
    )


def test_mounts_with_blanks_foreign_letters_and_no_source_are_read() -> None:
    mounts = parse_mounts("40 23 0:40 / /clone/caf\\303\\251\\040é rw,relatime - tmpfs  rw\n")
    assert [(mount.point, mount.kind, mount.options) for mount in mounts] == [("/clone/café é", "tmpfs", ("rw",))]


def test_limits_of_guests_are_written_in_each_versions_words() -> None:
    limits = limit_guest(cpu=0.5, memory_bytes=1000)
    assert plan_limits(1, limits) == [
        ("cpu.shares", "512", True), ("cpu.cfs_period_us", "100000", True), ("cpu.cfs_quota_us", "50000", True),
        ("memory.limit_in_bytes", "1000", True), ("pids.max", "512", True),
    ]  # fmt: skip
    assert plan_limits(2, limits) == [
        ("cpu.weight", "50", True), ("cpu.max", "50000 100000", True), ("memory.max", "1000", True),
        ("pids.max", "512", True),
    ]  # fmt: skip
    assert ("cpu.cfs_quota_us", "1000", True) in plan_limits(1, Limits(cpu=0.0001))  # the kernel takes no less


def test_limits_of_instances_leave_no_swap_where_the_kernel_limits_it() -> None:
    limits = limit_instance(0.5, 64 * MIB, 32)
    assert plan_limits(1, limits)[2:] == [
        ("memory.limit_in_bytes", str(64 * MIB), True), ("memory.memsw.limit_in_bytes", str(64 * MIB), False),
        ("pids.max", "32", True),
    ]  # fmt: skip
    assert plan_limits(2, limits)[1:] == [
        ("memory.max", str(64 * MIB), True), ("memory.swap.max", "0", False), ("memory.oom.group", "1", False),
        ("pids.max", "32", True),
    ]  # fmt: skip


def test_an_agent_has_room_for_thousands_of_guests_and_never_most_of_its_machine() -> None:
    gib = 1 << 30
    assert [plan_agent_memory(size * gib) / gib for size in (1, 2, 8, 24, 64, 512)] == [0.5, 1, 1, 1, 2, 16]


# Trees of plain folders: what the kernel would make in a group is there before.


def version_1(folder: Path) -> Trees:
    names = ("cpu", "memory", "pids", "freezer", "cpuacct", "blkio", "name=systemd")
    trees = tuple(CgroupTree(folder / name, 1, frozenset({name})) for name in names)
    unified = CgroupTree(folder / "unified", 2, frozenset())
    return Trees((*trees, unified), 1, {name: folder / name for name in names}, unified.point)


def version_2(folder: Path, *groups: str) -> Trees:
    names = (*CONTROLLERS, "io")
    for group in ("", *groups):
        for above in (folder / group, *(folder / group).parents):
            if above.is_relative_to(folder):
                above.mkdir(parents=True, exist_ok=True)
                (above / "cgroup.subtree_control").write_text("memory\n")
                (above / "cpu.weight").write_text("100\n")
    return Trees((CgroupTree(folder, 2, frozenset(names)),), 2, dict.fromkeys(names, folder), folder)


def test_a_guests_group_in_version_1_is_made_where_limits_are(tmp_path: Path) -> None:
    for parent in ("weft", "weft/n1"):
        (tmp_path / "cpu" / parent).mkdir(parents=True)
        (tmp_path / "cpu" / parent / "cpu.shares").write_text("2\n")
    groups = ControlGroups("/weft/n1/", trees=version_1(tmp_path))
    procs = groups.create("g", limit_guest(2, 100 * MIB))
    assert procs == [tmp_path / name / "weft/n1/g/cgroup.procs" for name in CONTROLLERS]
    assert (tmp_path / "memory/weft/n1/g/memory.limit_in_bytes").read_text() == str(100 * MIB)
    assert (tmp_path / "cpu/weft/n1/g/cpu.shares").read_text() == "2048"
    assert int((tmp_path / "cpu/weft/n1/cpu.shares").read_text()) >= 1024  # and all guests count for all cores
    assert not (tmp_path / "freezer").exists() and not (tmp_path / "unified").exists()
    groups.change("g", limit_guest(2, 200 * MIB))
    assert (tmp_path / "memory/weft/n1/g/memory.limit_in_bytes").read_text() == str(200 * MIB)


def test_a_guests_group_in_version_2_gets_what_those_above_hand_down(tmp_path: Path) -> None:
    groups = ControlGroups("weft/n1", trees=version_2(tmp_path, "weft/n1"))
    assert groups.create("g", limit_guest(2, 100 * MIB)) == [tmp_path / "weft/n1/g/cgroup.procs"]
    for above in ("", "weft", "weft/n1"):
        assert (tmp_path / above / "cgroup.subtree_control").read_text() == "+cpu +pids"
    assert (tmp_path / "cpu.weight").read_text() == "100\n"  # the root's has no meaning
    assert int((tmp_path / "weft/cpu.weight").read_text()) >= 100
    assert (tmp_path / "weft/n1/g/cpu.max").read_text() == "200000 100000"


def test_an_instances_group_is_frozen_and_keeps_a_folder_from_its_runtime(tmp_path: Path) -> None:
    one = ControlGroups("weft/n1", controllers=(*CONTROLLERS, FREEZER), nested=True, trees=version_1(tmp_path / "1"))
    assert len(one.create("i", limit_instance(1, 64 * MIB, 8))) == 4
    assert all((tmp_path / "1" / name / "weft/n1/i/kept").is_dir() for name in (*CONTROLLERS, FREEZER))
    assert not (tmp_path / "1/memory/weft/n1/i/memory.memsw.limit_in_bytes").exists()  # this kernel doesn't limit swap
    one.freeze("i", True)
    assert (tmp_path / "1/freezer/weft/n1/i/freezer.state").read_text() == "FROZEN"
    two = ControlGroups("weft/n1", controllers=(*CONTROLLERS, FREEZER), trees=version_2(tmp_path / "2", "weft/n1"))
    assert len(two.create("i", limit_instance(1, 64 * MIB, 8))) == 1
    two.freeze("i", True)
    assert (tmp_path / "2/weft/n1/i/cgroup.freeze").read_text() == "1"
    assert two.names() == {"i"} == one.names("i") and one.names("x") == set()


def test_a_guest_runs_without_limits_where_an_instance_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weft").write_text("no folder can be made here")
    groups = ControlGroups("weft/n1", trees=version_2(tmp_path))
    with pytest.raises(DriverFailed, match=r"no control group for it: .*weft"):
        groups.create("i", limit_instance(1, 64 * MIB, 8))
    assert groups.problem is None
    assert groups.create_if_possible("g", limit_guest(1, 64 * MIB)) == []
    assert "no control group for it" in (groups.problem or "")


def test_an_agents_memory_counts_apart(tmp_path: Path) -> None:
    groups = ControlGroups("weft/n1", trees=version_1(tmp_path))
    assert groups.enclose_agent(100 * MIB) == ""
    assert (tmp_path / "memory/weft/n1/agent/memory.limit_in_bytes").read_text() == str(100 * MIB)
    assert int((tmp_path / "memory/weft/n1/agent/cgroup.procs").read_text()) > 0
    assert groups.leave_agent() == [tmp_path / "memory/weft/n1/beside/cgroup.procs"]
    assert not (tmp_path / "cpu").exists()
    bare = ControlGroups("weft/n1", trees=Trees((), 2, {}, None))
    assert (bare.enclose_agent(1), bare.leave_agent()) == ("the memory controller is not mounted", [])


def test_what_the_kernel_counted_is_read_in_each_version(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    for path, text in (
        ("memory/p/c/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        ("memory/p/c/memory.max_usage_in_bytes", "77\n"),
        ("memory/p/c/memory.usage_in_bytes", "33\n"),
        ("cpuacct/p/c/cpuacct.usage", "1500000000\n"),
        ("blkio/p/c/blkio.throttle.io_service_bytes", "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n"),
        ("memory/p/within/memory.oom_control", "oom_kill 0\n"),
        ("memory/p/within/memory.max_usage_in_bytes", "64\n"),
        ("memory/p/within/memory.limit_in_bytes", "64\n"),
    ):
        write(path, text)
    one = ControlGroups("p", trees=version_1(tmp_path))
    assert (one.out_of_memory_kills("c"), one.most_memory("c"), one.out_of_memory_kills("none")) == (2, 77, 0)
    assert one.stats("c", disks=True) == GuestStats(1.5, 33, 10, 20)
    assert one.out_of_memory_kills("within") == 0
    assert ControlGroups("p", nested=True, trees=version_1(tmp_path)).out_of_memory_kills("within") == 1
    for path, text in (
        ("2/p/c/memory.events", "low 0\noom 1\noom_kill 3\n"), ("2/p/c/memory.peak", "78\n"),
        ("2/p/c/memory.current", "34\n"), ("2/p/c/cpu.stat", "usage_usec 2500000\nuser_usec 1\n"),
        ("2/p/c/io.stat", "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n"),
    ):  # fmt: skip
        write(path, text)
    two = ControlGroups("p", trees=version_2(tmp_path / "2"))
    assert (two.out_of_memory_kills("c"), two.most_memory("c")) == (3, 78)
    assert two.stats("c", disks=True) == GuestStats(2.5, 34, 11, 22)
    assert two.stats("c", disks=False) == GuestStats(2.5, 34, 0, 0)
    assert (two.limits_swap(), one.limits_swap()) == (True, False)


async def test_version_2_kills_by_one_word_and_version_1_ends_each(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        one = ControlGroups("p", trees=version_1(tmp_path / "1"))
        for folder in ("memory/p/c/within", "freezer/p/c"):
            (tmp_path / "1" / folder).mkdir(parents=True)
        (tmp_path / "1/memory/p/c/within/cgroup.procs").write_text(f"{process.pid}\n")
        assert one.processes("c") == {process.pid}
        one.kill("c")
        assert process.wait() == -9
    assert (tmp_path / "1/freezer/p/c/freezer.state").read_text() == "THAWED"
    two = ControlGroups("p", trees=version_2(tmp_path / "2", "p/c"))
    two.kill("c")
    assert (tmp_path / "2/p/c/cgroup.kill").read_text() == "1"
    (tmp_path / "2/p/gone").mkdir()
    assert await two.clear("none", SystemClock()) and two.remove("gone")


def test_bytes_of_disks_add_up_in_both_versions() -> None:
    assert count_io("8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n", 2) == (11, 22)
    assert count_io("8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n", 1) == (10, 20)


def test_a_group_s_counters_have_the_same_names_in_both_versions() -> None:
    one = {
        "cpu": "2500000000\n",
        "throttled": "nr_periods 9\nnr_throttled 3\nthrottled_time 500000000\n",
        "memory": "4096\n",
        "bytes": "8:0 Read 10\n8:0 Write 20\nTotal 30\n",
        "operations": "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
    }
    two = {
        "cpu": "usage_usec 2500000\nuser_usec 1\nthrottled_usec 500000\n",
        "memory": "4096\n",
        "bytes": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
    }
    assert count_group(one, 1) == count_group(two, 2) == {
        "cpu": 2.5, "throttled": 0.5, "memory.used": 4096,
        "disk.read": 10, "disk.written": 20, "disk.reads": 1, "disk.writes": 2,
    }  # fmt: skip
    assert count_group({"memory": "4096\n"}, 2) == {"memory.used": 4096} and count_group({"cpu": "odd"}, 1) == {}


def test_counters_of_a_group_that_is_gone_say_that_it_has_ended(tmp_path: Path) -> None:
    with pytest.raises(ProcessLookupError):
        ControlGroups("p", trees=version_2(tmp_path, "p/c")).open("gone")
