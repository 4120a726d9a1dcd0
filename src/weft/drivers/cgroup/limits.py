"""Limits of a group, and the files from which the kernel reads them, for both versions. Pure."""

from __future__ import annotations

import msgspec

PERIOD_MICROSECONDS = 100_000
MOST_GUEST_PROCESSES = 512  # QEMU and its threads
LEAST_AGENT_BYTES, AGENT_SHARE = 1 << 30, 32


class Limits(msgspec.Struct, frozen=True):
    """Limits of a group: what isn't set isn't limited."""

    cpu: float | None = None  # cores
    weight: float | None = (
        None  # counts as so many busy processes where CPUs are short; the groups above count for all cores
    )
    memory_bytes: int | None = None  # page cache included, which the kernel drops first
    swap_bytes: int | None = None  # beside memory_bytes; not limited by kernels that can't
    oom_group: bool = False  # all end when one ran out of memory; version 2 only
    pids: int | None = None  # processes and threads


def plan_limits(version: int, limits: Limits) -> list[tuple[str, str, bool]]:
    """Pure. In order: the file, its new text, and whether a kernel without that file fails."""
    found: list[tuple[str, str, bool]] = []
    one, memory = version == 1, limits.memory_bytes
    if limits.weight is not None:
        found.append(("cpu.shares" if one else "cpu.weight", plan_weight(version, limits.weight), True))
    if limits.cpu is not None:
        quota = max(1000, int(limits.cpu * PERIOD_MICROSECONDS))  # the kernel takes no less
        if one:
            found.append(("cpu.cfs_period_us", str(PERIOD_MICROSECONDS), True))
            found.append(("cpu.cfs_quota_us", str(quota), True))
        else:
            found.append(("cpu.max", f"{quota} {PERIOD_MICROSECONDS}", True))
    if memory is not None:
        found.append(("memory.limit_in_bytes" if one else "memory.max", str(memory), True))
    if limits.swap_bytes is not None and one:  # version 1 limits memory and swap together
        found.append(("memory.memsw.limit_in_bytes", str((memory or 0) + limits.swap_bytes), False))
    elif limits.swap_bytes is not None:
        found.append(("memory.swap.max", str(limits.swap_bytes), False))
    if limits.oom_group and not one:
        found.append(("memory.oom.group", "1", False))
    if limits.pids is not None:
        found.append(("pids.max", str(limits.pids), True))
    return found


def plan_weight(version: int, cpu: float) -> str:
    """Pure. How much a group counts where CPUs are short: as much as a busy process for each of its cores."""
    if version == 2:
        return str(min(10_000, max(1, round(100 * cpu))))
    return str(min(262_144, max(2, round(1024 * cpu))))


def plan_agent_memory(total_bytes: int) -> int:
    """Pure. How much memory an agent may use on a machine with so much: 1 GiB, which is far more than thousands of guests need,
    more on a large machine; never more than half of it."""
    return min(total_bytes // 2, max(LEAST_AGENT_BYTES, total_bytes // AGENT_SHARE))


def limit_guest(cpu: float, memory_bytes: int) -> Limits:
    """Pure. Of QEMU, which swaps as everything on the node does."""
    return Limits(cpu=cpu, weight=cpu, memory_bytes=memory_bytes, pids=MOST_GUEST_PROCESSES)


def limit_instance(cpu: float, memory_bytes: int, pids: int) -> Limits:
    """Pure. Of a function's instance: all of it ends at once, and nothing of it is swapped."""
    return Limits(cpu=cpu, memory_bytes=memory_bytes, swap_bytes=0, oom_group=True, pids=pids)
