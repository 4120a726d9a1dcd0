"""Space in etcd: history is forgotten and files are made smaller before the quota is reached, and the quota's alarm is ended.

Etcd compares its quota with the size of its file. Only defragmentation makes that smaller, and it stops the member meanwhile:
so the server whose member leads lets one after the other do so, followers first, and gives the lead away before its own turn.
A member writes a second file beside the first, and dies at its next write where the disk had no space for that: those whose disk
is known to have too little are left out.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import msgspec

from weft.contracts.clock import Clock
from weft.kinds.server import StoreUse
from weft.objects.errors import StoreUnavailable, WeftError
from weft.objects.quantity import format_bytes
from weft.store.etcd import wire
from weft.store.etcd.connection import EtcdConnection, EtcdRefused

LOOK_SECONDS, HURRY_SECONDS = 2.0, 0.2
KEPT_REVISIONS = 1_000  # once half of the quota is used
COMPACT_SECONDS = 60.0  # between two compactions of one kind
NEARLY_FULL = 0.8  # of the quota
ENOUGH = 0.9
LEAST_FREE_BYTES = 128 << 20  # of a member's disk: two of the files of 64 MB that its log is written to
PAUSE_SECONDS = 60.0  # after a defragmentation that failed: each costs a start of its member
_ASK_SECONDS, _DEFRAGMENT_SECONDS = 3.0, 600.0
_NO_SPACE = "NOSPACE"
_REMEDY = "restart weft server with a larger --store-quota, one server after the other"

_log = logging.getLogger(__name__)
Note = Callable[[str, str], Awaitable[None]]  # gets the reason of an event, and its message


class MemberUse(NamedTuple):
    """A member's answer about itself: the size of its file, what of it is in use, and whether it lets nobody write."""

    endpoint: str
    id: int
    leader: int
    size_bytes: int
    used_bytes: int
    is_full: bool
    revision: int = 0


class Compact(NamedTuple):
    keep_revisions: int


class Defragment(NamedTuple):
    endpoint: str


class HandOver(NamedTuple):
    """Let another member lead."""

    member: int


class EndAlarm(NamedTuple):
    pass


Step = Compact | Defragment | HandOver | EndAlarm


def plan_step(
    own: MemberUse,
    others: Sequence[MemberUse | None],
    quota_bytes: int,
    recent: int | None = None,
    tried: Collection[str] = (),
    free: Mapping[str, int] | None = None,
) -> Step | None:
    """The next step of the server whose member leads; ``others`` has None for one that is away. ``recent``: how many revisions a
    recent compaction kept; ``tried``: endpoints of those that were defragmented since; ``free``: bytes free on the members' disks,
    by their endpoints, as far as that is known. While one is away nobody else is stopped, unless nothing can be written anyway."""
    there = [one for one in others if one is not None]
    is_full = any(one.is_full for one in (own, *there))
    keep = 0 if is_full else KEPT_REVISIONS
    is_needed = is_full or max(one.used_bytes for one in (own, *there)) >= quota_bytes / 2
    if is_needed and (recent is None or recent > keep):
        return Compact(keep)

    def is_due(one: MemberUse) -> bool:
        if free is not None and free.get(one.endpoint, _needs_free(one)) < _needs_free(one):
            return False
        # where nothing is written, a member's own figure for what it uses stands still
        is_worth_a_try = is_full and one.size_bytes >= ENOUGH * quota_bytes and one.endpoint not in tried
        return is_worth_a_try or _is_worth_it(one, quota_bytes)

    if is_full or len(there) == len(others):
        for one in there:
            if is_due(one):
                return Defragment(one.endpoint)
        if is_due(own):
            return HandOver(there[0].id) if there else Defragment(own.endpoint)
    if is_full and all(one.size_bytes < ENOUGH * quota_bytes for one in (own, *there)):
        return EndAlarm()
    return None


def _needs_free(one: MemberUse) -> int:
    """The bytes that its disk must have free for a defragmentation: its pages are written 90 % full."""
    return one.used_bytes + one.used_bytes // 4 + (16 << 20)


def _is_worth_it(one: MemberUse, quota_bytes: int) -> bool:
    if one.size_bytes >= NEARLY_FULL * quota_bytes:
        return one.size_bytes - one.used_bytes >= quota_bytes / 10
    return one.size_bytes >= quota_bytes / 4 and one.size_bytes > 2 * one.used_bytes


async def end_alarms(connection: EtcdConnection) -> None:
    """Let etcd take writes again. Raises StoreUnavailable."""
    listed = await connection.maintain("Alarm", wire.AlarmRequest(action=wire.LIST_ALARMS))
    for one in listed.alarms:
        ended = wire.AlarmRequest(action=wire.END_ALARM, member_id=one.member_id, alarm=one.alarm)
        await connection.maintain("Alarm", ended)


def describe_use(one: MemberUse, quota_bytes: int, free_bytes: int | None = None) -> StoreUse:
    """``quota_bytes``: 0 of an etcd of the user's own, which says nothing of it; ``free_bytes``: on its disk, None if unknown.
    Sizes are rounded: each new one is written."""
    use = StoreUse(size=_round(one.size_bytes), used=_round(one.used_bytes), quota=quota_bytes)
    if not quota_bytes:
        use.problem = "etcd has used up its quota, and takes no writes: see its alarm" if one.is_full else ""
    elif one.is_full:
        use.problem = "the store has used up its quota, and takes no writes"
    elif free_bytes is not None and free_bytes < (needed := max(LEAST_FREE_BYTES, _needs_free(one))):
        use.problem = _describe_disk(free_bytes, needed)
    elif one.used_bytes >= NEARLY_FULL * quota_bytes:
        use.problem = f"more than {NEARLY_FULL:.0%} of the store's quota is in use: {_REMEDY}"
    return use


def _describe_disk(free_bytes: int, needed_bytes: int) -> str:
    free, needed = format_bytes(free_bytes >> 20 << 20), format_bytes(_round(needed_bytes))
    return f"its disk has only {free} free, and its member of the store needs {needed}: free disk space"


def _round(size_bytes: int) -> int:
    unit = max(1 << 20, 1 << max(0, size_bytes.bit_length() - 4))
    return -(-size_bytes // unit) * unit


class EtcdSpace:
    """``use`` is what this server's member uses, None while that isn't known; ``free_bytes``: on its disk. ``compact`` forgets all
    but so many revisions."""

    def __init__(self, connection: EtcdConnection, compact: Callable[[int], Awaitable[None]], clock: Clock) -> None:
        self._connection, self._compact, self._clock = connection, compact, clock
        self._recent: tuple[Compact, int, float] | None = None  # and the revision, and when
        self._tried: set[str] = set()
        self._is_noted = False  # that it is full
        self._pauses_until = 0.0
        self.use: StoreUse | None = None
        self.free_bytes: int | None = None
        self.silences = 0  # of this server's member, one after the other

    async def watch(self) -> NoReturn:
        """Follow for ever how full an etcd of the user's own is, at any member."""
        while True:
            await self._try(self._inspect)
            await self._clock.sleep(LOOK_SECONDS)

    async def keep(
        self,
        own: str,
        quota_bytes: int,
        note: Note,
        folder: Path,
        find_others: Callable[[], Awaitable[Mapping[str, int]]],
    ) -> NoReturn:
        """Keep space in the store for ever; ``own`` is the endpoint of this server's member, ``folder`` on the disk that it writes
        to; ``find_others`` gives the bytes free on the others' disks, by their endpoints."""
        self._connection.full_hint = f"weft makes space in seconds where history is what fills it; otherwise {_REMEDY}"
        while True:
            with suppress(OSError):
                self.free_bytes = shutil.disk_usage(folder).free
            hurries = await self._try(lambda: self._keep(own, quota_bytes, note, find_others))
            self._judge_silence(own, quota_bytes)
            await self._clock.sleep(HURRY_SECONDS if hurries else LOOK_SECONDS)

    def _judge_silence(self, own: str, quota_bytes: int) -> None:
        """Note a disk that is too full for this server's member to run: etcd ends then, and at each start."""
        self._connection.away_hint = ""
        if self.silences and self.free_bytes is not None and self.free_bytes < LEAST_FREE_BYTES:
            problem = _describe_disk(self.free_bytes, LEAST_FREE_BYTES)
            self.use = msgspec.structs.replace(self.use or StoreUse(quota=quota_bytes), problem=problem)
            self._connection.away_hint = f"the member at {own} doesn't answer; {problem}"

    async def _try(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await call()
        except (WeftError, EtcdRefused) as problem:
            _log.info("space in the store: %s", problem)
            return None

    async def _inspect(self) -> None:
        self.use = describe_use(await _ask_use(self._connection, ""), 0)

    async def _keep(
        self, own: str, quota_bytes: int, note: Note, find_others: Callable[[], Awaitable[Mapping[str, int]]]
    ) -> bool:
        """Do the next step; whether another one may be near."""
        self.silences += 1
        async with self._at(own) as connection:
            found = await _ask_use(connection, own)
        self.silences = 0
        self.use = describe_use(found, quota_bytes, self.free_bytes)
        if found.leader != found.id:
            self._is_noted = False
            return found.is_full
        others = await asyncio.gather(*(self._find_use(one) for one in self._connection.endpoints if one != own))
        free = {**await find_others(), own: self.free_bytes or 0}
        step = plan_step(found, others, quota_bytes, self._find_recent(found.revision), self._tried, free)
        if isinstance(step, Defragment | HandOver) and self._clock.elapsed() < self._pauses_until:
            step = None
        if found.is_full and not self._is_noted:
            self._is_noted = True
            await note("StoreFull", f"the store has used up its quota of {format_bytes(quota_bytes)}")
        if step is not None:
            _log.info("space in the store: %s", step)
            await self._perform(step, found)
        if isinstance(step, EndAlarm):
            self._is_noted = False
            await note(
                "StoreHasSpace", f"the store takes writes again: {format_bytes(found.size_bytes)} of its quota are used"
            )
        return step is not None or found.is_full

    async def _perform(self, step: Step, own: MemberUse) -> None:
        match step:
            case Compact(revisions):
                self._recent = (step, own.revision, self._clock.elapsed())
                self._tried.clear()
                await self._compact(revisions)
            case Defragment(endpoint):
                self._tried.add(endpoint)
                self._pauses_until = self._clock.elapsed() + PAUSE_SECONDS
                async with self._at(endpoint, _DEFRAGMENT_SECONDS) as connection:
                    await connection.maintain("Defragment", wire.DefragmentRequest())
                self._pauses_until = 0.0
            case HandOver(member):
                self._tried.add(own.endpoint)
                async with self._at(own.endpoint) as connection:
                    await connection.maintain(wire.HAND_OVER, wire.HandOverRequest(target_id=member))
            case EndAlarm():
                await end_alarms(self._connection)

    def _find_recent(self, revision: int) -> int | None:
        if self._recent is None:
            return None
        step, at_revision, at = self._recent
        is_old = revision > at_revision and self._clock.elapsed() - at >= COMPACT_SECONDS
        return None if is_old else step.keep_revisions

    async def _find_use(self, endpoint: str) -> MemberUse | None:
        try:
            async with self._at(endpoint) as connection:
                return await _ask_use(connection, endpoint)
        except StoreUnavailable:
            return None

    @asynccontextmanager
    async def _at(self, endpoint: str, timeout_seconds: float = _ASK_SECONDS) -> AsyncIterator[EtcdConnection]:
        """A connection to one member only."""
        connection = self._connection.at(endpoint, timeout_seconds)
        await connection.open()
        try:
            yield connection
        finally:
            await connection.close()


async def _ask_use(connection: EtcdConnection, endpoint: str) -> MemberUse:
    said = await connection.maintain("Status", wire.StatusRequest())
    is_full, header = any(_NO_SPACE in error for error in said.errors), said.header
    return MemberUse(endpoint, header.member_id, said.leader, said.size, said.used, is_full, header.revision)
