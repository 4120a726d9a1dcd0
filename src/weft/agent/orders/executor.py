"""Does the orders of one kind: those of one lane one after the other, so many at one time as the kind allows.

Orders come with the answers to the node's reports; what became of them is reported until the order is in no answer any more. Of a
durable kind that is in ``<state>/<kind>-work.json`` before it is reported, so that nothing is done twice; a piece of work that is
cut off begins again, and every piece may be repeated.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Generic

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.durable_file import write_durably
from weft.contracts.wakeup import wait_for_event
from weft.kinds.orders import O, OrderKind, R
from weft.objects.errors import WeftError

log = logging.getLogger("weft.agent")


class Handler(ABC, Generic[O, R]):
    """How the orders of one kind are done."""

    def lane(self, order: O) -> Hashable:
        """Orders of one lane are done one after the other."""
        return order.key

    def lasts(self, order: O) -> bool:
        """Whether it goes on for as long as the order stands, beside all others."""
        return False

    @abstractmethod
    def begin(self, order: O, former: R | None) -> R:
        """The first report. ``former``: the last one, of an order that is tried again."""

    @abstractmethod
    async def do(self, order: O, show: Callable[[R], None]) -> R:
        """The last report; ``show`` gets those before. Raises WeftError, OSError."""

    @abstractmethod
    def fail(self, order: O, problem: Exception) -> tuple[R, float | None]:
        """The report on an order whose work raised ``problem``, and after how many seconds it is tried again; None: never."""


class Executor(Generic[O, R]):
    """``changed`` is called when there is something to report."""

    def __init__(
        self, kind: OrderKind[O, R], handler: Handler[O, R], state_dir: str, clock: Clock, changed: Callable[[], None]
    ) -> None:
        self._kind, self._handler, self._clock, self._changed = kind, handler, clock, changed
        self._file = Path(state_dir) / f"{kind.name}-work.json"
        self._orders: dict[Hashable, O] = {}
        self._has_heard = False  # which orders there are
        self._over: dict[Hashable, R] = self._load()
        self._open: dict[Hashable, R] = {}  # the last report on each that isn't over
        self._due: dict[Hashable, float] = {}  # elapsed seconds at which one that failed is tried again
        self._tasks: dict[asyncio.Task[None], O] = {}
        self._woken = asyncio.Event()

    @property
    def is_asking(self) -> bool:
        return bool(self._orders)

    @property
    def under_way(self) -> list[O]:
        """The orders that are being done."""
        return list(self._tasks.values())

    def report(self) -> list[R]:
        if not self._has_heard and not self._kind.remembered:  # what a restarted agent has said before still holds
            return list(self._over.values())
        found = (self._over.get(key) or self._open.get(key) for key in self._orders)
        return [report for report in found if report is not None]

    def put_orders(self, orders: Sequence[O]) -> None:
        """All that this node shall do."""
        now = {order.key: order for order in orders}
        if now == self._orders and self._has_heard:
            return
        self._orders, self._has_heard = now, True
        self._open = {key: report for key, report in self._open.items() if key in now}
        self._due = {key: at for key, at in self._due.items() if key in now}
        self._forget()
        if self._kind.cancels:
            for task, order in self._tasks.items():
                if now.get(order.key) != order:
                    task.cancel()
        self._woken.set()

    async def keep(self) -> None:
        """Do what is ordered, for ever."""
        try:
            while True:
                self._woken.clear()
                self._begin()
                now = self._clock.elapsed()
                pause = min((max(0.05, at - now) for at in self._due.values()), default=None)
                await wait_for_event(self._clock, self._woken, pause)
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self) -> None:
        running = list(self._tasks.values())
        keys = {order.key for order in running}
        lanes = {self._handler.lane(order) for order in running if not self._handler.lasts(order)}
        count = sum(not self._handler.lasts(order) for order in running)
        for key, order in self._orders.items():
            if key in keys or key in self._over or self._due.get(key, 0.0) > self._clock.elapsed():
                continue
            if not self._handler.lasts(order):
                lane = self._handler.lane(order)
                if count >= self._kind.at_once or lane in lanes:
                    continue
                count, lanes = count + 1, lanes | {lane}
            self._due.pop(key, None)
            task = asyncio.ensure_future(self._do(order))
            self._tasks[task] = order
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._woken.set()

    async def _do(self, order: O) -> None:
        former = self._open.get(order.key)
        if (first := self._handler.begin(order, former)) != former:
            self._note(order, first)
        try:
            report = await self._handler.do(order, lambda report: self._note(order, report))
        except Exception as problem:  # whatever it is: an order that is never reported on would never end
            if not isinstance(problem, WeftError | OSError):
                log.exception("%s order %s", self._kind.name, order.key)
            report, again_after = self._handler.fail(order, problem)
            if again_after is not None:
                self._due[order.key] = self._clock.elapsed() + again_after
                return self._note(order, report)
        self._note(order, report, is_over=True)

    def _note(self, order: O, report: R, *, is_over: bool = False) -> None:
        """Keep ``report``, unless its order has changed or gone and the kind's work is cut off by that."""
        if self._orders.get(order.key) != order and self._kind.cancels:
            return
        self._open.pop(order.key, None)
        if is_over:
            self._over.pop(order.key, None)
            self._over[order.key] = report
            self._forget()
            self._save()
        else:
            self._open[order.key] = report
        self._changed()

    def _forget(self) -> None:
        """Drop the reports on orders that are gone, except the newest that are remembered."""
        gone = [key for key in self._over if key not in self._orders]
        for key in gone[: max(0, len(gone) - self._kind.remembered)]:
            del self._over[key]

    def _load(self) -> dict[Hashable, R]:
        if not self._kind.durable:
            return {}
        try:
            parts = msgspec.json.decode(self._file.read_bytes(), type=list[msgspec.Raw])
            found = [msgspec.json.decode(part, type=self._kind.report) for part in parts]
        except (OSError, msgspec.DecodeError):
            return {}
        return {report.key: report for report in found}

    def _save(self) -> None:
        if not self._kind.durable:
            return
        try:
            write_durably(self._file, msgspec.json.encode(list(self._over.values())))
        except OSError as problem:
            log.warning("can't write %s: %s", self._file, problem)
