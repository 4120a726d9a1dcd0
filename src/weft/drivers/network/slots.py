"""How a service's connections, or requests, are split: whose each of SLOTS numbers is. Pure."""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence

from weft.contracts.driver.network import ServiceTarget

SLOTS = 1000
_SEED = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


@functools.lru_cache(maxsize=256)
def choose_slots(targets: tuple[ServiceTarget, ...], *, sticky: bool) -> tuple[tuple[int, int, str], ...]:
    """Runs of the SLOTS numbers, first and last, with the target of each; weights are more than 0. Sticky: of a change of the
    targets only as many slots change hands as must, so a client keeps its target."""
    if sticky:
        return tuple(_find_runs([_find_owner(slot, targets) for slot in range(SLOTS)]))
    total, passed = sum(target.weight for target in targets), 0
    edges = [0]
    for target in targets:
        passed += target.weight
        edges.append(round(SLOTS * passed / total))
    runs = zip(targets, itertools.pairwise(edges), strict=True)
    return tuple((first, next_ - 1, target.address) for target, (first, next_) in runs if next_ > first)


def _find_owner(slot: int, targets: Sequence[ServiceTarget]) -> str:
    """The owner of a slot, by weighted rendezvous hashing."""
    return min(targets, key=lambda one: -math.log(_draw(slot, one.address)) / one.weight).address


def _draw(slot: int, address: str) -> float:
    """A number in (0, 1] that follows from both."""
    word = ((zlib.crc32(address.encode()) << 20 | slot) * _SEED) & _WORD
    word ^= word >> 31
    word = (word * 0xBF58476D1CE4E5B9) & _WORD
    word ^= word >> 29
    word = (word * 0x94D049BB133111EB) & _WORD
    return ((word >> 32) + 1) / (1 << 32)


def _find_runs(owners: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    at = 0
    for owner, run in itertools.groupby(owners):
        length = len(list(run))
        yield at, at + length - 1, owner
        at += length
