"""How much each storage pool may still promise: a part of the snapshot.

A storage has a bound, its capacity times its overcommit, and all that is promised of it is counted once (``Claims``), whichever
node it is used from. What is promised of a node's own pool is disk of that node: the snapshot counts it there. Sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
import numpy as np

from weft.contracts.policy import PoolBound, Texts, Whole
from weft.informer.pool.claims import Claim, Claims

UNBOUND = 2**62  # what a storage may promise whose capacity isn't known


class Bound(msgspec.Struct, frozen=True):
    """Bound on what a storage may promise. ``name`` is its Pool's, as people call it."""

    name: str
    most: int


class Pools:
    def __init__(self) -> None:
        self._claims = Claims()
        self._bounds: dict[str, Bound] = {}  # by id of the storage
        self._places: dict[str, int] = {}  # id → where in ``_free``
        self._free = np.full(16, UNBOUND, dtype=np.int64)
        self._by_code: dict[str, tuple[list[str], Whole]] = {}  # by name of a pool: its words, and the place of each

    def put_bound(self, storage: str, bound: Bound) -> bool:
        """Set what a storage may promise; returns whether that is more than before."""
        old = self._bounds.get(storage)
        self._bounds[storage] = bound
        self._renew(storage)
        return old is None or bound.most > old.most

    def drop_bound(self, storage: str) -> None:
        """No node offers it any more."""
        self._bounds.pop(storage, None)
        self._renew(storage)

    def hold(self, claims: Iterable[Claim]) -> dict[str, int]:
        """Count claims; returns by how much each pool's sum has grown."""
        return self._count(claims, self._claims.hold)

    def release(self, claims: Iterable[Claim]) -> dict[str, int]:
        """Stop counting claims that were held; returns the growth, which is below zero."""
        return self._count(claims, self._claims.release)

    def given(self, pool: str) -> int:
        """How much of a pool is promised; it is counted by ``pool_key``."""
        return self._claims.given.get(pool, 0)

    def has(self, pool: str, disk: str) -> int:
        """How much of it is promised to this disk."""
        return self._claims.size(pool, disk)

    def find(self, storage: str) -> PoolBound:
        """Find the bound of one storage."""
        bound = self._bounds.get(storage)
        return (
            PoolBound(storage, UNBOUND, 0) if bound is None else PoolBound(bound.name, bound.most, self.given(storage))
        )

    def left(self, pool: str, ids: Texts) -> Whole:
        """How much the storage of each node may still promise that the node has as ``pool``, with ``ids`` as its column; 0 where
        a node has none. Below zero where more is promised than may be."""
        if not ids.words:
            return np.zeros(len(ids.codes), dtype=np.int64)
        words, places = self._by_code.get(pool, (ids.words, np.zeros(0, dtype=np.int64)))
        if words is not ids.words:
            places = np.zeros(0, dtype=np.int64)
        if len(places) < len(ids.words):
            more = [self._place(id_) for id_ in ids.words[len(places) :]]
            places = np.concatenate([places, np.asarray(more, dtype=np.int64)])
            self._by_code[pool] = ids.words, places
        left: Whole = np.where(ids.codes >= 0, self._free[places[ids.codes]], 0)
        return left

    def _count(self, claims: Iterable[Claim], count: Callable[[Iterable[Claim]], None]) -> dict[str, int]:
        claims = tuple(claims)
        before = {claim[0]: self.given(claim[0]) for claim in claims}
        count(claims)
        grown = {pool: self.given(pool) - former for pool, former in before.items()}
        for pool, growth in grown.items():
            if growth and pool in self._places:
                self._renew(pool)
        return grown

    def _place(self, storage: str) -> int:
        place = self._places.setdefault(storage, len(self._places))
        if place == self._free.size:
            self._free = np.concatenate([self._free, np.full_like(self._free, UNBOUND)])
        self._renew(storage)
        return place

    def _renew(self, storage: str) -> None:
        if (place := self._places.get(storage)) is not None:
            bound = self._bounds.get(storage)
            self._free[place] = UNBOUND if bound is None else bound.most - self.given(storage)
