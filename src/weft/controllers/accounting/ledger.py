"""Sums over time of what allocations hold and what guests use, by project and user, hour by hour. Pure.

A change costs one addition: each account has a rate, and the time since its last change is added up when the rate changes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

import msgspec

from weft.kinds.accounting_record import (
    AMOUNTS,
    DAY,
    HOUR,
    KEPT_HOURLY_DAYS,
    MOST_USERS,
    AccountingEntry,
    AccountingStatus,
    start_of_day,
)

FURTHEST_AHEAD_SECONDS = float(DAY)  # a time counted up to that is further ahead was of a clock that was wrong
_GIB = float(1 << 30)
_SCALES = (1e-3, 1 / _GIB, 1 / _GIB, 1e-3)  # from a rate to cores, GiB, GiB and GPUs
Rate = tuple[int, int, int, int]  # thousandths of cores, bytes of memory and of disk, thousandths of GPUs
NOTHING: Rate = (0, 0, 0, 0)


class Account(msgspec.Struct, frozen=True, order=True):
    project: str
    user: str


class _Meter:
    """The sum of what an account's allocations hold, counted up to ``at``."""

    __slots__ = ("at", "rate")

    def __init__(self, at: float) -> None:
        self.at = at
        self.rate = list(NOTHING)


class _Held(msgspec.Struct):
    account: Account
    workload: str  # its uid
    rate: Rate
    begins: float  # unix seconds
    begun: bool = False  # it is in its account's rate


class Day:
    """One project's day: what its record has, and what has come since."""

    __slots__ = ("changed", "sent", "sums")

    def __init__(self, status: AccountingStatus | None) -> None:
        self.sums: dict[tuple[float, str], list[float]] = {}  # by start of the hour, and user; amounts as in AMOUNTS
        self.changed = False  # since it was sent
        self.sent: float | None = None  # up to when the record that was sent counts; None: that one is stored
        for entry in status.entries if status is not None else ():
            self.sums[entry.start, entry.user] = [getattr(entry, amount) for amount in AMOUNTS]

    def add(self, hour: float, user: str, amounts: list[float], first: int = 0) -> None:
        """Add ``amounts`` to those from number ``first`` on."""
        key = (hour, user)
        if key not in self.sums and len({of for _, of in self.sums} | {user, ""}) > MOST_USERS:
            key = (hour, "")
        sums = self.sums.setdefault(key, [0.0] * len(AMOUNTS))
        for index, amount in enumerate(amounts, first):
            sums[index] += amount
        self.changed = True

    @property
    def is_stored(self) -> bool:
        return not self.changed and self.sent is None

    def list_entries(self) -> list[AccountingEntry]:
        return [
            AccountingEntry(start=hour, user=user, **dict(zip(AMOUNTS, sums, strict=True)))
            for (hour, user), sums in sorted(self.sums.items())
        ]


class Ledger:
    """``read_day`` is asked for what is stored of a project and a day, None if nothing is, before the ledger adds to that day."""

    def __init__(self, read_day: Callable[[str, float], AccountingStatus | None]) -> None:
        self.days: dict[tuple[str, float], Day] = {}  # by project and start
        self.released: set[str] = set()  # projects whose allocations gave something back
        self._read_day = read_day
        self._through: dict[str, float] = {}  # by project: up to when an earlier leader has counted
        self._meters: dict[Account, _Meter] = {}
        self._held: dict[str, _Held] = {}
        self._accounts: dict[str, Account] = {}  # by the workload's uid
        self._places: dict[str, set[str]] = {}  # its allocations
        self._ahead: list[tuple[float, str]] = []  # allocations that begin later

    def skip(self, project: str, through: float, now: float) -> None:
        """An earlier leader has counted the allocations of ``project`` up to ``through``."""
        if through <= now + FURTHEST_AHEAD_SECONDS:
            self._through[project] = max(self._through.get(project, 0.0), through)

    def hold(self, key: str, account: Account, workload: str, rate: Rate, begins: float, now: float) -> None:
        """The allocation ``key`` holds ``rate`` from now on; if it is new, since ``begins`` (unix seconds), which may be ahead."""
        self.settle(now)
        held = self._held.get(key)
        if held is not None and held.begun:
            if (held.rate, held.account) != (rate, account):
                self._take_back(held, now)
                self._begin(held.account, held, rate, now)
            return
        begins = max(begins, self._through.get(account.project, 0.0), now - KEPT_HOURLY_DAYS * DAY)
        held = self._held[key] = _Held(account, workload, rate, begins)
        self._accounts[workload] = account
        self._places.setdefault(workload, set()).add(key)
        if begins > now:
            heapq.heappush(self._ahead, (begins, key))
            return
        self._spread(account, rate, begins, now)
        self._begin(account, held, rate, now)

    def release(self, key: str, now: float) -> None:
        """The allocation ``key`` is gone."""
        self.settle(now)
        held = self._held.pop(key, None)
        if held is None:
            return
        if held.begun:
            self._take_back(held, now)
        places = self._places[held.workload]
        places.discard(key)
        if not places:
            del self._places[held.workload], self._accounts[held.workload]

    def use(self, guests: Mapping[str, tuple[float, float, float]], seconds: float, now: float) -> None:
        """Workloads, by uid, have used so many cores and so much memory and disk (bytes) for ``seconds`` up to ``now``."""
        for uid, (cpu, memory, disk) in guests.items():
            account = self._accounts.get(uid)
            if account is not None:
                self._add(account, [cpu, memory / _GIB, disk / _GIB], now - seconds, now, first=4)

    def settle(self, now: float) -> None:
        """Begin what was to begin by ``now``, each at its own moment."""
        while self._ahead and self._ahead[0][0] <= now:
            begins, key = heapq.heappop(self._ahead)
            held = self._held.get(key)
            if held is not None and not held.begun and held.begins <= begins:
                self._begin(held.account, held, held.rate, begins)

    def close(self, now: float) -> None:
        """Count all accounts up to ``now``."""
        self.settle(now)
        for account, meter in list(self._meters.items()):
            self._advance(account, meter, now)
            if not any(meter.rate):
                del self._meters[account]

    def forget(self, before: float) -> None:
        """Drop the days before ``before`` that are stored."""
        for key in [key for key, day in self.days.items() if key[1] < before and day.is_stored]:
            del self.days[key]

    def _begin(self, account: Account, held: _Held, rate: Rate, at: float) -> None:
        held.rate, held.begun = rate, True
        self._change(account, rate, 1, at)

    def _take_back(self, held: _Held, now: float) -> None:
        self._change(held.account, held.rate, -1, now)
        self.released.add(held.account.project)

    def _change(self, account: Account, rate: Rate, sign: int, at: float) -> None:
        meter = self._meters.get(account)
        if meter is None:
            meter = self._meters[account] = _Meter(at)
        self._advance(account, meter, at)
        for index, amount in enumerate(rate):
            meter.rate[index] += sign * amount

    def _advance(self, account: Account, meter: _Meter, now: float) -> None:
        """Nothing is counted twice where the clock was set back: time goes on once it is past ``at`` again."""
        if meter.at > now + FURTHEST_AHEAD_SECONDS:
            meter.at = now
        if now <= meter.at:
            return
        self._spread(account, meter.rate, max(meter.at, now - KEPT_HOURLY_DAYS * DAY), now)
        meter.at = now

    def _spread(self, account: Account, rate: Rate | list[int], begin: float, end: float) -> None:
        if any(rate):
            self._add(account, [amount * scale for amount, scale in zip(rate, _SCALES, strict=True)], begin, end)

    def _add(self, account: Account, amounts: list[float], begin: float, end: float, first: int = 0) -> None:
        """Count ``amounts`` for each second from ``begin`` to ``end``, in the hours that they fall into."""
        while begin < end:
            hour = begin // HOUR * HOUR
            until = min(end, hour + HOUR)
            day = self._find_day(account.project, start_of_day(begin))
            day.add(hour, account.user, [amount * (until - begin) for amount in amounts], first)
            begin = until

    def _find_day(self, project: str, start: float) -> Day:
        day = self.days.get((project, start))
        if day is None:
            day = self.days[project, start] = Day(self._read_day(project, start))
        return day
