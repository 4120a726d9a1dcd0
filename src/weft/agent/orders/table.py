"""The workers of this node, one for each kind of order: passes the server's orders on to them, and collects their reports."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from weft.kinds.orders import OrderReports, Orders


class OrderWorker(Protocol):
    """Worker for the orders of one kind: an ``Executor``, unless they need more than being done one after the other."""

    @property
    def is_asking(self) -> bool:
        """Whether the server's next answer may end what it does: then the node reports often."""

    def put_orders(self, orders: Sequence[Any]) -> None:
        """All that this node shall do."""

    def report(self) -> Sequence[Any]:
        """Reports on the present orders."""

    async def keep(self) -> None:
        """Work for ever."""


class OrderTable:
    """``workers``: by the name of the kind of order."""

    def __init__(self, workers: Mapping[str, OrderWorker]) -> None:
        self._workers = workers

    @property
    def is_asking(self) -> bool:
        return any(worker.is_asking for worker in self._workers.values())

    def put(self, orders: Orders) -> None:
        for name, worker in self._workers.items():
            worker.put_orders(getattr(orders, name))

    def report(self) -> OrderReports:
        return OrderReports(**{name: list(worker.report()) for name, worker in self._workers.items()})

    async def keep(self) -> None:
        """Have all of them work. Raises the error of one that failed."""
        await asyncio.gather(*(worker.keep() for worker in self._workers.values()))
