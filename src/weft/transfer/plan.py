"""The mode in which a running guest's memory migrates, and its cost. Pure: measured facts in, a plan out.

The rule and its thresholds were found by measuring 40 migrations of one guest over links of 20 and 100 Mbit/s and an
unlimited one, with six loads (QEMU 10.0, emulated, 256 MiB): the study of migration modes, section 3.3. The
thresholds were fitted on those migrations, so ``reconsider`` checks the plan again when the migration has run for a while.

In formulas: M memory that is not zero, d bytes written anew per second, W the memory that is written to, w the share of
words that change in a page that does, z how well it compresses, b what the path carries, P the longest pause allowed.

How much a guest must be slowed down for its passes to shrink is computed from d and b, so one step is enough: QEMU's own way,
20 % more every second pass, took 58 s where 15 s were needed.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from weft.contracts.driver.migration import Load, MigrationMode, MigrationSettings
from weft.kinds.fields.allocated_migration import PlannedMigration
from weft.objects.quantity import format_bytes

USABLE_SHARE = 0.92  # of a link; the rest is headers and other traffic
PAGE_BYTES, PACKET_BYTES = 4 << 10, 512 << 10  # QEMU sends pages one by one, or by 128 over several streams
FAST_BYTES = 125_000_000  # from here on no queue on the path makes the guest wait at the end
CONVERGES = 0.6  # d/b up to which plain passes shrink: all did up to here
FEW_WORDS = 0.05  # w up to which sending differences pays
COMPRESSED_CONVERGES = 0.9  # d/(z b) up to which compressed passes shrink
SLOWED = 0.4  # d/b of a guest that is slowed down: well within what converges, for its rate is only sampled
MOST_SLOWED = 0.95  # more than that is standing still
AIMED_SECONDS = 0.02  # a longer pause, though allowed, ends a migration hardly sooner (measured: twice the pause)
STALLS = 0.8  # what is left at the third check, to what was left at the second: none converged from 0.85 on
LONG_SECONDS = 1.0  # from here on compressing may be worth its CPU also where plain would do,
SOONER = 0.8  # if it takes no longer than this share of the time
LAST_BYTES = (
    500_000  # devices' state (300 kB, most of it virtio's queues) and what QEMU's sockets hold, beside the last pages
)
LAST_SECONDS = 0.02  # until the target's machine is started: its devices loaded, its disks opened, the record on disk
POST_COPY_SHARE = 0.7  # of b: what comes after the switch, with the guest's own requests going first
SLOWED_SHARE, SLOWED_STALLS = (
    0.5,
    2,
)  # QEMU slows a guest down that in so many passes wrote more than this of what went over
SLOWED_LOOKS = 12  # QEMU takes two checks, of a second at least, for each step; after these it makes no more
DIFFERENCE_OVERHEAD = 0.02  # of a page, beside the words that changed
ENDLESS = 0.95  # of the memory; a guest that writes to so much of it may write to less
MOST_PASSES = 30
_LEAST_CACHE, _MOST_CACHE = 64 << 20, 512 << 20  # QEMU takes it beside the guest's memory

Action = Literal["go on", "slow down", "begin post-copy", "finish standing still", "call off"]


class Leeway(msgspec.Struct, frozen=True):
    """The rate of the path, and what is allowed."""

    bytes_per_second: float
    pause_seconds: float = 0.3  # the longest
    modes: tuple[MigrationMode, ...] = ("plain", "xbzrle", "multifd-zstd", "auto-converge", "stop-and-copy")
    spare_cores: bool = True  # to compress with
    live_bar: str = ""  # why only stop-and-copy is in ``modes``
    copied_disks: tuple[str, ...] = ()  # by serial; they are copied before the memory
    limit: int = 0  # bytes a second; 0: as many as the path carries


class MigrationPlan(msgspec.Struct, frozen=True):
    settings: MigrationSettings
    keeps_pause: bool  # whether the planned pause is allowed
    planned: PlannedMigration  # for the Migration's status


class Change(msgspec.Struct, frozen=True):
    """A change of a migration under way."""

    action: Action
    reason: str
    pause_seconds: float = 0.0  # if it is finished now
    slowdown: float = 0.0  # the share of its CPUs that the guest loses


class Forecast(msgspec.Struct, frozen=True):
    duration_seconds: float
    pause_seconds: float
    bytes: int
    passes: int
    converges: bool = True
    ratio: float = 1.0


def choose_mode(load: Load, leeway: Leeway) -> MigrationPlan:
    """The best plan for this guest over this path."""
    mode, reason = _choose(load, leeway)
    foreseen = forecast(mode, load, leeway)
    settings = MigrationSettings(
        mode=mode,
        bytes_per_second=int(leeway.limit * USABLE_SHARE),
        pause_ms=max(1, round(min(AIMED_SECONDS, leeway.pause_seconds) * 1000)),
        streams=4
        if leeway.spare_cores and leeway.bytes_per_second >= FAST_BYTES
        else 2,  # the guest waits at the end for what each stream holds
        slowdown=find_slowdown(load.dirty_bytes_per_second, leeway) if mode == "auto-converge" else 0.0,
        cache_bytes=min(_MOST_CACHE, _find_cache(load)),
    )
    keeps = foreseen.pause_seconds <= leeway.pause_seconds and foreseen.converges
    if not keeps:
        reason += f"; the guest will pause for {foreseen.pause_seconds:.1f} s, longer than allowed"
    planned = PlannedMigration(
        mode=mode,
        reason=reason,
        duration_seconds=foreseen.duration_seconds,
        pause_seconds=foreseen.pause_seconds,
        bytes=foreseen.bytes,
        passes=foreseen.passes,
        streams=settings.streams if mode == "multifd-zstd" else 1,
        chunk_bytes=PACKET_BYTES if mode == "multifd-zstd" else PAGE_BYTES,
        ratio=round(foreseen.ratio, 2),
        confidence=_believe(mode, load, leeway),
    )
    return MigrationPlan(settings, keeps, planned)


def _choose(load: Load, leeway: Leeway) -> tuple[MigrationMode, str]:
    usable = leeway.bytes_per_second * USABLE_SHARE
    once = load.memory_bytes / usable
    rate = f"dirty rate {format_bytes(int(load.dirty_bytes_per_second))}/s, link {format_bytes(int(usable))}/s"
    pressure = load.dirty_bytes_per_second / usable
    if set(leeway.modes) == {"stop-and-copy"}:
        return "stop-and-copy", leeway.live_bar or "this guest can migrate in no other mode"
    if "plain" in leeway.modes and once <= leeway.pause_seconds:
        return "plain", f"all of its memory is sent within {once:.2f} s"
    if pressure <= CONVERGES:
        if "multifd-zstd" in leeway.modes and once > LONG_SECONDS and leeway.spare_cores:
            bare, squeezed = (
                _forecast_memory(mode, load, leeway).duration_seconds for mode in ("plain", "multifd-zstd")
            )
            if squeezed < SOONER * bare:
                return "multifd-zstd", f"{rate}, compression {load.still_compression:.1f}x: the migration is shorter"
        if "plain" in leeway.modes:
            return "plain", f"{rate}: each pass leaves less"
    small = _find_cache(load) <= _MOST_CACHE
    if "xbzrle" in leeway.modes and load.changed_share <= FEW_WORDS and small:
        return "xbzrle", f"{rate}, but only {load.changed_share:.1%} of a page changes: differences are sent"
    if "multifd-zstd" in leeway.modes and leeway.spare_cores and pressure / load.compression <= COMPRESSED_CONVERGES:
        return "multifd-zstd", f"{rate}, compression {load.compression:.1f}x: each pass leaves less"
    if "post-copy" in leeway.modes:
        return "post-copy", f"{rate}: no pass would leave less, so the rest is copied after the switch"
    slowdown = find_slowdown(load.dirty_bytes_per_second, leeway)
    if "auto-converge" in leeway.modes and slowdown <= MOST_SLOWED:
        return (
            "auto-converge",
            f"{rate}: no pass would leave less, so the guest is slowed down by {slowdown:.0%} until it arrives",
        )
    if "stop-and-copy" in leeway.modes:
        return "stop-and-copy", f"{rate}: no pass would leave less, so the guest is paused while the rest is sent"
    return leeway.modes[0], f"{rate}: no allowed mode is sure to finish"


def find_slowdown(dirty_bytes_per_second: float, leeway: Leeway) -> float:
    """The share of its CPUs that a guest must lose, so that each pass leaves much less than the one before."""
    usable = leeway.bytes_per_second * USABLE_SHARE
    return round(max(0.0, 1 - SLOWED * usable / max(1.0, dirty_bytes_per_second)), 2)


def forecast(mode: MigrationMode, load: Load, leeway: Leeway) -> Forecast:
    """Duration, pause, bytes and passes of a migration in ``mode``."""
    memory = _forecast_memory(mode, load, leeway)
    disks = sum(load.disk_bytes.get(serial, 0) for serial in leeway.copied_disks)
    seconds = disks / (leeway.bytes_per_second * USABLE_SHARE)
    return msgspec.structs.replace(
        memory, duration_seconds=memory.duration_seconds + seconds, bytes=memory.bytes + disks
    )


def _forecast_memory(mode: MigrationMode, load: Load, leeway: Leeway) -> Forecast:
    """Passes over what was written during the one before, until the rest fits into the allowed pause."""
    usable = leeway.bytes_per_second * USABLE_SHARE
    last = _find_last(leeway)
    if mode == "stop-and-copy":
        seconds = load.memory_bytes / usable + last
        return Forecast(seconds, seconds, load.memory_bytes + LAST_BYTES, 1)
    if mode == "post-copy":
        first = load.memory_bytes / usable
        rest = min(load.written_bytes, load.dirty_bytes_per_second * first)
        seconds = first + rest / (usable * POST_COPY_SHARE) + last
        return Forecast(seconds, last, int(load.memory_bytes + rest + LAST_BYTES), 2)
    compressed = mode == "multifd-zstd"
    slowdown = find_slowdown(load.dirty_bytes_per_second, leeway) if mode == "auto-converge" else 0.0
    left, seconds, sent, passes, stalls, stalled = float(load.memory_bytes), 0.0, 0.0, 0, 0, False
    whole = 0.0  # bytes without compression
    written = find_likely_set(load)
    aimed = min(AIMED_SECONDS, leeway.pause_seconds)
    while True:
        passes += 1
        compression = max(1.0, load.still_compression if passes == 1 else load.compression) if compressed else 1.0
        # Differences need something to differ from: the cache fills in the second pass, and what it has helps the third.
        differs = mode == "xbzrle" and passes > 2
        carried = left * min(1.0, load.changed_share + DIFFERENCE_OVERHEAD) if differs else left / compression
        # QEMU counts what is left as it is, also where it gets smaller on its way.
        if passes > 1 and (
            left / usable <= aimed or (passes > 3 and stalled and carried / usable <= leeway.pause_seconds)
        ):
            pause, ratio = carried / usable + last, (whole + left) / max(1.0, sent + carried)
            return Forecast(seconds + pause, pause, int(sent + carried + LAST_BYTES), passes, ratio=ratio)
        if passes > MOST_PASSES:
            return Forecast(seconds, carried / usable + last, int(sent), passes, converges=False)
        seconds, sent, whole = seconds + carried / usable, sent + carried, whole + left
        rate = load.dirty_bytes_per_second * (1 - slowdown if stalls >= SLOWED_STALLS else 1.0)
        before, left = left, min(written, rate * carried / usable)
        stalls += left > SLOWED_SHARE * carried
        stalled = left > STALLS * before


def find_likely_set(load: Load) -> float:
    """Bytes that the guest writes to again and again. Where a second's sample was too short to see all of them (then
    ``written_bytes`` is all its memory), the geometric mean of what was seen and all memory."""
    seen = min(load.dirty_bytes_per_second, float(load.memory_bytes))
    unknown = load.written_bytes >= ENDLESS * load.memory_bytes
    return math.sqrt(seen * load.memory_bytes) if unknown else float(load.written_bytes)


def reconsider(mode: MigrationMode, remaining_bytes: list[int], leeway: Leeway, *, slowdown: float = 0.0) -> Change:
    """Choose what to do after a check of the source; ``remaining_bytes``: what was left at each check, the first one (all the
    memory) included. Before the third check nothing is known. ``slowdown``: that of an earlier answer."""
    if mode in ("post-copy", "stop-and-copy") or len(remaining_bytes) < 3:
        return Change("go on", "too early to tell" if mode not in ("post-copy", "stop-and-copy") else "it will end")
    before, now = remaining_bytes[-2], remaining_bytes[-1]
    usable = leeway.bytes_per_second * USABLE_SHARE
    pause = now / usable + _find_last(leeway)
    if now <= STALLS * before:
        return Change("go on", f"{format_bytes(now)} left after {format_bytes(before)}", pause)
    if now / usable <= leeway.pause_seconds:
        return Change("finish standing still", f"{format_bytes(now)} left, which fits into the allowed pause", pause)
    stalled = f"{format_bytes(now)} left after {format_bytes(before)}: the guest writes as fast as the link transfers"
    if "post-copy" in leeway.modes and mode != "multifd-zstd":  # QEMU has no combination of the two
        return Change("begin post-copy", stalled, _find_last(leeway))
    if "auto-converge" in leeway.modes and mode != "auto-converge" and slowdown == 0:
        needed = find_slowdown(now / max(1e-3, before / usable), leeway)
        if needed <= MOST_SLOWED:
            return Change("slow down", f"{stalled}; slowed down by {needed:.0%} it would finish", pause, needed)
    if (mode == "auto-converge" or slowdown) and len(remaining_bytes) < SLOWED_LOOKS:
        return Change("go on", f"{stalled}; the guest has only just been slowed down", pause)
    if "stop-and-copy" in leeway.modes:
        return Change("finish standing still", f"{stalled}; the rest takes {pause:.1f} s", pause)
    return Change("call off", f"{stalled}, and the guest may not be paused", pause)


def _believe(mode: MigrationMode, load: Load, leeway: Leeway) -> float:
    """The confidence in measured facts: never full, less with few samples, where they differ, and, if the guest runs meanwhile,
    the nearer its writes are to the rate of the path."""
    few = load.samples / (load.samples + 1)
    alike = 1 / (1 + load.spread)
    if mode in ("stop-and-copy", "post-copy"):
        return round(0.95 * (0.5 + 0.5 * few), 2)
    compression = max(1.0, load.compression) if mode == "multifd-zstd" else 1.0
    carried = min(1.0, load.changed_share + DIFFERENCE_OVERHEAD) if mode == "xbzrle" else 1.0
    pressure = load.dirty_bytes_per_second * carried / compression / (leeway.bytes_per_second * USABLE_SHARE)
    return round(0.95 * (1 - min(1.0, pressure) * (1 - few * alike)), 2)


def _find_last(leeway: Leeway) -> float:
    """Seconds that any guest pauses, without the transfer of its last pages."""
    return LAST_BYTES / leeway.bytes_per_second + LAST_SECONDS


def _find_cache(load: Load) -> int:
    """The size of a cache that holds all that the guest writes to: differences need the former page."""
    return 1 << (max(_LEAST_CACHE, load.written_bytes) - 1).bit_length()
