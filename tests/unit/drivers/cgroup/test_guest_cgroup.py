"""Control groups: where they are, and what is written."""

from __future__ import annotations

from pathlib import Path

from weft.drivers.cgroup.guest import CgroupMounts, Limits, find_mounts, plan_agent_memory, plan_limits

V1 = """\
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/pids rw,nosuid - cgroup cgroup rw,pids
"""
V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_version_1_has_a_tree_for_each_controller() -> None:
    mounts = find_mounts(V1, {"/sys/fs/cgroup/unified": ""})
    folders = {name: Path("/sys/fs/cgroup") / folder for name, folder in
               [("cpu", "cpu,cpuacct"), ("memory", "memory"), ("pids", "pids")]}  # fmt: skip
    assert mounts == CgroupMounts(1, folders)


def test_version_2_has_one_tree_with_the_controllers_it_names() -> None:
    top = Path("/sys/fs/cgroup")
    mounts = find_mounts(V2, {"/sys/fs/cgroup": "cpuset cpu io memory"})
    assert mounts == CgroupMounts(2, {"cpu": top, "memory": top})


def test_nothing_mounted_is_nothing() -> None:
    assert find_mounts("23 1 8:1 / / rw - ext4 /dev/sda rw\n", {}).folders == {}


def test_limits_are_written_in_each_version_words() -> None:
    limits = Limits(cpu=0.5, memory_bytes=1000)
    assert plan_limits(1, limits)["cpu.cfs_quota_us"] == "50000"
    assert plan_limits(2, limits)["cpu.max"] == "50000 100000"
    assert plan_limits(2, limits)["memory.max"] == "1000"
    assert (plan_limits(1, limits)["cpu.shares"], plan_limits(2, limits)["cpu.weight"]) == ("512", "50")
    assert plan_limits(1, Limits(0.0001, 1))["cpu.cfs_quota_us"] == "1000"  # the kernel takes no less


def test_an_agent_has_room_for_thousands_of_guests_and_never_most_of_its_machine() -> None:
    gib = 1 << 30
    assert [plan_agent_memory(size * gib) / gib for size in (1, 2, 8, 24, 64, 512)] == [0.5, 1, 1, 1, 2, 16]
