"""The store as one request sees it: each object read once, and the request's own planned writes on top."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping

from weft.api.state.counted_objects import Sum
from weft.api.state.object_counts import ObjectCounts
from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.kinds.quota import FIELDS, PROJECT
from weft.kinds.record import Kind
from weft.objects.envelope import Envelope, decode_envelope
from weft.objects.identity import object_key

_Amounts = dict[str, dict[str, float]]  # by account and field


class QuotaUsage:
    """Growth by one request of what the objects of a project count in its quota. ``sum`` is what they counted before, once that is
    needed."""

    def __init__(self) -> None:
        self.sum: Sum | None = None
        self.new: dict[
            str, tuple[str, Mapping[str, float]]
        ] = {}  # objects that the request makes, by key: user, amounts
        self._planned: _Amounts = {}
        self._more: _Amounts = {}  # only what it adds

    def find_total(self, account: str) -> Mapping[str, float]:
        """Total that the objects of an account count once all of the request is carried out."""
        return self._beside_sum(account, self._planned.get(account, {}))

    @property
    def bound(self) -> Mapping[str, Mapping[str, float]]:
        """Lower bound of what the objects count, by account, whatever of the request is carried out."""
        there = self.sum.total if self.sum is not None else {}
        return {**there, **{account: self._beside_sum(account, more) for account, more in self._more.items()}}

    def add(self, user: str, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        """An object that ``user`` created, and that counted ``before``, counts ``after`` from now on."""
        for account in {PROJECT, user}:
            planned = self._planned.setdefault(account, dict.fromkeys(FIELDS, 0))
            added = self._more.setdefault(account, dict.fromkeys(FIELDS, 0))
            for name in FIELDS:
                change = after.get(name, 0) - before.get(name, 0)
                planned[name] += change
                added[name] += max(0, change)

    def _beside_sum(self, account: str, amounts: Mapping[str, float]) -> Mapping[str, float]:
        there = self.sum.total.get(account, {}) if self.sum is not None else {}
        return {name: there.get(name, 0) + amounts.get(name, 0) for name in FIELDS}


class View:
    """Enter it for a plan that is committed within."""

    began_at = 0.0  # when it first waited for its turn, in seconds of the monotonic clock
    _turn: asyncio.Lock | None = None
    _counts: ObjectCounts | None = None

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self._read: dict[str, Envelope | None] = {}
        self._planned: dict[str, Envelope] = {}
        self.usages: dict[str, QuotaUsage] = {}  # by the quota's key
        self._clock = clock
        self._held: dict[str, int] = {}  # objects that it will make, by what they count with

    def get(self, kind: Kind, project: str | None, name: str) -> Coroutine[None, None, Envelope | None]:
        """The object as planned, else as stored; None if there is neither."""
        return self.get_key(object_key(kind.name, project if kind.scope == "project" else None, name))

    async def get_key(self, key: str) -> Envelope | None:
        if key in self._planned:
            return self._planned[key]
        if key not in self._read:
            entry = await self.store.get(key)
            self._read[key] = None if entry is None else decode_envelope(entry.value, entry.revision)
        return self._read[key]

    def plan(self, key: str, envelope: Envelope) -> None:
        """Put ``envelope`` on top of what is stored at ``key``: later objects of this request may refer to it."""
        self._planned[key] = envelope

    async def read_again(self, key: str) -> Envelope | None:
        """The object as planned, else as it is stored now."""
        self._read.pop(key, None)
        return await self.get_key(key)

    async def take_turn(self, turn: asyncio.Lock) -> None:
        """Wait for others who have this turn, and have it until ``end``. One view has one at most, so none waits for another
        in a circle."""
        if self._turn is None:
            self.began_at = self._clock.elapsed()
            await turn.acquire()
            self._turn = turn

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def hold(self, counts: ObjectCounts, key: str) -> None:
        """One more object will be made; it counts until ``end``."""
        self._counts = counts
        self._held[key] = self._held.get(key, 0) + 1
        counts.hold(key)

    def end(self) -> None:
        """Let the next one have the turn; what was held counts no more."""
        if self._counts is not None:
            self._counts.release(self._held)
            self._held, self._counts = {}, None
        if self._turn is not None:
            self._turn.release()
            self._turn = None

    def is_planned(self, key: str) -> bool:
        return key in self._planned
