"""Asks at other clusters whether replicas that get no points for a while were promoted or are gone, and reports only that.

Reads the link's address and token from the server for each round.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import random
from collections.abc import Callable, Sequence

from weft.agent.replication.failure import make_failure
from weft.agent.server.client import Server
from weft.contracts.clock import Clock
from weft.kinds.fields.replication.work import AskOrder, SendReport
from weft.objects.errors import Unavailable, WeftError

ASK_EVERY_SECONDS = 30.0  # on average: half as long at least, so that what gets its next point soon isn't asked after
FOUND_OUT = ("staleGeneration", "replicaGone")  # what is asked; all else is asked again

log = logging.getLogger("weft.agent")


class Watching:
    """One task for each cluster and project there, which asks over one connection. ``changed`` is called when there is something to
    report."""

    is_asking = False  # its orders stand for long

    def __init__(
        self,
        node: str,
        server: Server,
        clock: Clock,
        changed: Callable[[], None],
        seed: str | None = None,
    ) -> None:
        self._node, self._server, self._clock, self._changed = node, server, clock, changed
        self._reports: list[SendReport] = []
        self._draw = random.Random(seed)  # noqa: S311 (spreads load)
        self._orders: dict[tuple[str, str], dict[tuple[str, int], AskOrder]] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def put_orders(self, orders: Sequence[AskOrder]) -> None:
        """All that this node shall ask after; what was found out is not asked again."""
        self._orders = {}
        self._reports = [one for one in self._reports if one.key in {order.key for order in orders}]
        for order in orders:
            self._orders.setdefault((order.cluster, order.project), {})[order.key] = order
        for place in self._tasks.keys() - self._orders.keys():
            self._tasks.pop(place).cancel()
        for place in self._orders.keys() - self._tasks.keys():
            self._tasks[place] = asyncio.ensure_future(self._watch(*place))

    def report(self) -> list[SendReport]:
        return list(self._reports)

    async def keep(self) -> None:
        """Go on with what ``put_orders`` began until cancelled."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _watch(self, cluster: str, project: str) -> None:
        done = set[tuple[str, int]]()
        while True:
            waiting = set(self._list_open(cluster, project, done))
            await self._clock.sleep(ASK_EVERY_SECONDS * self._draw.uniform(0.5, 1.5))
            orders = [one for one in self._list_open(cluster, project, done) if one in waiting]
            self._draw.shuffle(orders)  # one that can't be asked keeps no other from its turn
            try:
                if orders:
                    await self._ask(orders, done)
            except (WeftError, OSError) as problem:
                log.debug("replicas at %s can't be asked after: %s", cluster, problem)
            except Exception:  # whatever another cluster makes of an answer: a task that ended would ask no more
                log.exception("replicas at %s can't be asked after", cluster)

    def _list_open(self, cluster: str, project: str, done: set[tuple[str, int]]) -> list[AskOrder]:
        orders = self._orders.get((cluster, project), {})
        done &= orders.keys()
        return [order for key, order in orders.items() if key not in done]

    async def _ask(self, orders: Sequence[AskOrder], done: set[tuple[str, int]]) -> None:
        """Raises WeftError, OSError, at the first one that gets no answer."""
        link = await asyncio.to_thread(self._server.read_link, self._node, orders[0].cluster)
        late = importlib.import_module("weft.agent.replication.peer")  # few nodes replicate
        peer = late.Peer(late.make_context(link), orders[0].project, orders[0].own_project)
        try:
            for order in orders:
                try:
                    await asyncio.to_thread(peer.check_standby, order.replica, order.uid)
                except Unavailable:
                    raise
                except WeftError as problem:
                    if problem.token in FOUND_OUT:
                        done.add(order.key)
                        self._reports.append(make_failure(order, problem))
                        self._changed()
        finally:
            peer.close()
