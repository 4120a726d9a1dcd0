"""Which way a running guest's memory goes to another node, and what that will cost. Pure: measured facts in, a plan out.

The rule and its thresholds were found by measuring 40 moves of one guest over links of 20 and 100 Mbit/s and an
unlimited one, with six loads (QEMU 10.0, emulated, 256 MiB): the study of migration modes, section 3.3. The
thresholds were fitted on those moves, so ``reconsider`` looks again when the move itself tells more.

In formulas: M memory that is not zero, d bytes written anew per second, W the memory that is written to, w the share of
words that change in a page that does, z how well it compresses, b what the path carries, P the longest pause allowed.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.contracts.migration import MoveMode, MoveSettings
from weft.objects.quantity import format_bytes

USABLE_SHARE = 0.92  # of a link; the rest is headers and whoever else is on it
CONVERGES = 0.6  # d/b up to which plain passes shrink: all did up to here
FEW_WORDS = 0.05  # w up to which sending differences pays
COMPRESSED_CONVERGES = 0.9  # d/(z b) up to which compressed passes shrink
STALLS = 0.8  # what is left at the third look, to what was left at the second: none converged from 0.85 on
LONG_SECONDS = 5.0  # from here on compressing is worth its CPU also where plain would do
LAST_BYTES = 1_000_000  # device state and last pages, while the guest stands still
POST_COPY_SHARE = 0.7  # of b: what comes after the switch, with the guest's own requests going first
DIFFERENCE_OVERHEAD = 0.02  # of a page, beside the words that changed
MOST_PASSES = 30
_LEAST_CACHE = 64 << 20

Action = Literal["go on", "begin post-copy", "finish standing still", "call off"]


class Load(msgspec.Struct, frozen=True):
    """What a guest does to its memory, sampled before the move. ``spread``: the standard deviation of the dirty rate over
    the samples, as a share of it."""

    memory_bytes: int
    dirty_bytes_per_second: float
    written_bytes: int
    changed_share: float
    compression: float
    samples: int = 1
    spread: float = 0.5


class Leeway(msgspec.Struct, frozen=True):
    """What the path carries and what is allowed: the longest pause, the modes that both runtimes have, and whether there are
    cores to compress with."""

    bytes_per_second: float
    pause_seconds: float = 0.3
    modes: tuple[MoveMode, ...] = ("plain", "xbzrle", "multifd-zstd", "stop-and-copy")
    spare_cores: bool = True


class MovePlan(msgspec.Struct, frozen=True):
    """``confidence`` 0 to 1: how far duration, pause and bytes are to be believed. ``keeps_pause``: whether the pause that
    is foreseen is one that is allowed."""

    settings: MoveSettings
    reason: str
    duration_seconds: float
    pause_seconds: float
    bytes: int
    passes: int
    confidence: float
    keeps_pause: bool


class Change(msgspec.Struct, frozen=True):
    """What to do with a move under way; ``pause_seconds`` is what finishing it now would cost."""

    action: Action
    reason: str
    pause_seconds: float = 0.0


class Forecast(msgspec.Struct, frozen=True):
    duration_seconds: float
    pause_seconds: float
    bytes: int
    passes: int
    converges: bool = True


def choose_mode(load: Load, leeway: Leeway) -> MovePlan:
    """How this guest is best moved over this path."""
    mode, reason = _choose(load, leeway)
    foreseen = forecast(mode, load, leeway)
    settings = MoveSettings(
        mode=mode,
        bytes_per_second=int(leeway.bytes_per_second * USABLE_SHARE),
        pause_ms=max(1, round(leeway.pause_seconds * 1000)),
        streams=4 if leeway.spare_cores else 2,
        cache_bytes=_next_power(max(_LEAST_CACHE, load.written_bytes)),
    )
    keeps = foreseen.pause_seconds <= leeway.pause_seconds and foreseen.converges
    if not keeps:
        reason += f"; it will stand still for {foreseen.pause_seconds:.1f} s, longer than asked"
    return MovePlan(
        settings=settings,
        reason=reason,
        duration_seconds=foreseen.duration_seconds,
        pause_seconds=foreseen.pause_seconds,
        bytes=foreseen.bytes,
        passes=foreseen.passes,
        confidence=_believe(mode, load, leeway),
        keeps_pause=keeps,
    )


def _choose(load: Load, leeway: Leeway) -> tuple[MoveMode, str]:
    usable = leeway.bytes_per_second * USABLE_SHARE
    once = load.memory_bytes / usable
    rate = f"it writes {format_bytes(int(load.dirty_bytes_per_second))}/s and the path carries {format_bytes(int(usable))}/s"
    pressure = load.dirty_bytes_per_second / usable
    if set(leeway.modes) == {"stop-and-copy"}:
        return "stop-and-copy", "nothing else can move this guest"
    if "plain" in leeway.modes and once <= leeway.pause_seconds:
        return "plain", f"all its memory goes over within {once:.2f} s"
    if pressure <= CONVERGES:
        if "multifd-zstd" in leeway.modes and once > LONG_SECONDS and leeway.spare_cores and load.compression > 1.2:
            return "multifd-zstd", f"{rate}; compressed {load.compression:.1f} times it is there sooner"
        if "plain" in leeway.modes:
            return "plain", f"{rate}: each pass leaves less"
    if "xbzrle" in leeway.modes and load.changed_share <= FEW_WORDS:
        return "xbzrle", f"{rate}, but of a page only {load.changed_share:.1%} changes: differences go over"
    if "multifd-zstd" in leeway.modes and leeway.spare_cores and pressure / load.compression <= COMPRESSED_CONVERGES:
        return "multifd-zstd", f"{rate}; compressed {load.compression:.1f} times, each pass leaves less"
    if "post-copy" in leeway.modes:
        return "post-copy", f"{rate}: no pass would leave less, so the rest follows the guest"
    if "stop-and-copy" in leeway.modes:
        return "stop-and-copy", f"{rate}: no pass would leave less, so it stands still meanwhile"
    return leeway.modes[0], f"{rate}: no mode that is allowed is sure to end"


def forecast(mode: MoveMode, load: Load, leeway: Leeway) -> Forecast:
    """Duration, pause, bytes and passes of a move in ``mode``: passes over what was written in the one before, until what is
    left goes over in the pause allowed."""
    usable = leeway.bytes_per_second * USABLE_SHARE
    last = LAST_BYTES / leeway.bytes_per_second
    if mode == "stop-and-copy":
        seconds = load.memory_bytes / usable + last
        return Forecast(seconds, seconds, load.memory_bytes + LAST_BYTES, 1)
    if mode == "post-copy":
        first = load.memory_bytes / usable
        rest = min(load.written_bytes, load.dirty_bytes_per_second * first)
        seconds = first + rest / (usable * POST_COPY_SHARE) + last
        return Forecast(seconds, last, int(load.memory_bytes + rest + LAST_BYTES), 2)
    compression = max(1.0, load.compression) if mode == "multifd-zstd" else 1.0
    left, seconds, sent, passes = float(load.memory_bytes), 0.0, 0.0, 0
    while True:
        passes += 1
        # Differences need something to differ from: the cache fills in the second pass, and what it has helps the third.
        differs = mode == "xbzrle" and passes > 2
        carried = left * min(1.0, load.changed_share + DIFFERENCE_OVERHEAD) if differs else left / compression
        if passes > 1 and carried / usable <= leeway.pause_seconds:
            return Forecast(
                seconds + carried / usable + last, carried / usable + last, int(sent + carried + LAST_BYTES), passes
            )
        if passes > MOST_PASSES:
            return Forecast(seconds, carried / usable + last, int(sent), passes, converges=False)
        seconds, sent = seconds + carried / usable, sent + carried
        left = min(float(load.written_bytes), load.dirty_bytes_per_second * carried / usable)


def reconsider(mode: MoveMode, remaining_bytes: list[int], leeway: Leeway) -> Change:
    """What to do at a look of the source at what was written meanwhile; ``remaining_bytes``: what was left at each look, the
    first one (all the memory) included. Before the third look nothing can be told."""
    if mode in ("post-copy", "stop-and-copy") or len(remaining_bytes) < 3:
        return Change(
            "go on", "nothing can be told yet" if mode not in ("post-copy", "stop-and-copy") else "it will end"
        )
    before, now = remaining_bytes[-2], remaining_bytes[-1]
    usable = leeway.bytes_per_second * USABLE_SHARE
    pause = now / usable + LAST_BYTES / leeway.bytes_per_second
    if now <= STALLS * before or now / usable <= leeway.pause_seconds:
        return Change("go on", f"{format_bytes(now)} left after {format_bytes(before)}", pause)
    stalled = f"{format_bytes(now)} are left after {format_bytes(before)}: it writes as fast as the path carries"
    if "post-copy" in leeway.modes and mode != "multifd-zstd":  # the two can't be armed together
        return Change("begin post-copy", stalled, LAST_BYTES / leeway.bytes_per_second)
    if "stop-and-copy" in leeway.modes:
        return Change("finish standing still", f"{stalled}; the rest takes {pause:.1f} s", pause)
    return Change("call off", f"{stalled}, and it may not stand still", pause)


def _believe(mode: MoveMode, load: Load, leeway: Leeway) -> float:
    """Nothing measured is believed wholly; less where there are few samples, where they differ, and, if the guest runs
    meanwhile, the nearer what it writes is to what the path carries."""
    few = load.samples / (load.samples + 1)
    alike = 1 / (1 + load.spread)
    if mode in ("stop-and-copy", "post-copy"):
        return round(0.95 * (0.5 + 0.5 * few), 2)
    compression = max(1.0, load.compression) if mode == "multifd-zstd" else 1.0
    carried = min(1.0, load.changed_share + DIFFERENCE_OVERHEAD) if mode == "xbzrle" else 1.0
    pressure = load.dirty_bytes_per_second * carried / compression / (leeway.bytes_per_second * USABLE_SHARE)
    return round(0.95 * (1 - min(1.0, pressure) * (1 - few * alike)), 2)


def _next_power(size: int) -> int:
    return 1 << (size - 1).bit_length()
