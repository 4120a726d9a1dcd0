"""The gateway's functions, wired: follows the store, keeps channels to agents, dispatches and prepares. The HTTP API and the
streams of tickets use ``catalogue``, ``dispatcher`` and ``record``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weft.contracts.clock import Clock
from weft.contracts.driver.function import LATEST
from weft.contracts.function_placement import FunctionPlacement
from weft.contracts.store import Store
from weft.gateway.function.definition import catalogue
from weft.gateway.function.definition.catalogue import Catalogue
from weft.gateway.function.dispatcher import Dispatcher
from weft.gateway.function.instance import local_functions, snapshots
from weft.gateway.function.instance.agents import Agents
from weft.gateway.function.instance.keep_alive import CHECK_SECONDS, KeepAliveController
from weft.gateway.function.instance.local_functions import LocalFunctions
from weft.gateway.function.instance.snapshots import SnapshotSpreader
from weft.gateway.function.invocation.late_results import LateResults
from weft.gateway.function.invocation.tracker import InvocationTracker
from weft.gateway.function.lease import GatewayLease
from weft.gateway.function.links import Dial, Links
from weft.gateway.function.readiness import FunctionReadiness
from weft.gateway.function.record.counts_file import CountsFile
from weft.gateway.function.record.output_log import PrintedLog
from weft.gateway.function.record.recorder import InvocationRecorder
from weft.informer.cache import Cache
from weft.informer.view import Changed, Item, View
from weft.kinds.function import FunctionSpec, FunctionStatus, keep_alive_of, ready_of
from weft.kinds.function_version import FunctionVersionStatus
from weft.kinds.node import NodeReport, NodeStatus
from weft.kinds.record import Index
from weft.objects.errors import NotFound, StoreUnavailable, Unavailable
from weft.protocol.function_counts import write_counts
from weft.protocol.invocations import Drop

log = logging.getLogger("weft.gateway.functions")
SWEEP_SECONDS = 10.0
WRITE_SECONDS = 5.0
REPORT_SECONDS = 5.0


class FunctionService:
    """``cache`` follows ``store`` in a view of the kinds of ``catalogue.KINDS`` and nodes; ``placing`` decides where, and follows
    the store by itself. ``folder`` is the gateway's own in the server's state folder. ``name``: no other gateway has it."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        placing: FunctionPlacement,
        clock: Clock,
        *,
        ticket_key: bytes,
        folder: Path,
        name: str = "gateway",
    ) -> None:
        self.cache, self._clock = cache, clock
        self.store = store
        self.lease = GatewayLease(store, name, self._write_digest, clock)
        self._names: dict[str, str] = {}  # of nodes, by uid
        catalogue = self.catalogue = Catalogue(cache.view)
        self.printed = PrintedLog(folder / "logs")
        self.counts = CountsFile(folder / "counts")
        self._keep_alive = KeepAliveController(clock)
        agents = self.agents = Agents(catalogue, placing, clock, ticket_key, self._name_of, self._keep_alive.keep_of)
        tracker = InvocationTracker(agents.fleet, catalogue.function_of)
        late = LateResults(clock, agents.fleet, tracker.is_stray, self._name_of, self._find_serving)
        self.record = InvocationRecorder(catalogue, agents, tracker, self._keep_alive, self.printed, self.counts, clock)
        self.readiness = FunctionReadiness(catalogue, cache, store, agents, clock)
        self._local = LocalFunctions(catalogue, agents, clock, ticket_key)
        self._spreading = SnapshotSpreader(catalogue, agents, clock)
        self.dispatcher = Dispatcher(
            catalogue,
            agents,
            tracker,
            late,
            self.record,
            (self.readiness, self._spreading),
            lambda: bool(cache.epoch),
            clock,
        )
        self._links: Links | None = None
        self._unused: dict[str, int] = {}  # digests that nothing names, and for how many sweeps

    async def run(self, dial: Dial, is_there: Any) -> None:
        """Serve for ever; ``dial`` and ``is_there`` as of Links."""
        self.cache.subscribe(self._notice, ("node", *catalogue.KINDS))
        self._links = Links(dial, is_there, self.dispatcher, self._clock)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.cache.run())
                group.create_task(self.dispatcher.watch())
                group.create_task(self.readiness.run())
                group.create_task(self._sweep())
                group.create_task(self._keep())
                group.create_task(self._spread())
                group.create_task(self._list_local())
                group.create_task(self._write_counts())
                group.create_task(self._report_counts())
        finally:
            await self._links.close()
            self.printed.close()
            self.counts.write(self.counts.take())

    def on_agent(self, node_uid: str) -> None:
        """The agent of a node that runs functions has connected."""
        if self._links is not None:
            self._links.on_agent(node_uid)

    def _notice(self, changes: Sequence[Changed]) -> None:
        for change in changes:
            if change.kind == "node":
                if change.new is None:
                    self._names.pop(change.item.uid, None)
                else:
                    self._names[change.new.uid] = change.new.envelope.name
            elif change.kind == "function" and change.new is None:
                self.record.forget(change.item.uid)
        self.catalogue.notice(changes)
        self.readiness.notice(changes)
        self._local.notice(changes)
        for change in changes:
            if change.kind == "function" and change.new is not None:
                self._expect(change.new)
            elif change.kind in ("function", "functionversion") and change.new is None:
                self._let_go(change.item)

    def _expect(self, item: Item) -> None:
        """A spec with its own keep-alive counts before the first invocation."""
        spec = item.spec(FunctionSpec)
        if item.deleting or (not ready_of(spec) and keep_alive_of(spec) is None):
            return
        try:
            function = self.catalogue.find(item.envelope.project or "", item.envelope.name)
            self._keep_alive.expect(self.catalogue.resolve(function, LATEST).recipe, spec)
        except (NotFound, Unavailable):
            pass  # not ready yet

    def _let_go(self, item: Item) -> None:
        """Drop the function's recipes, which no other has: nodes end their idle instances before the next sweep."""
        is_version = item.envelope.kind == "functionversion"
        digest = item.status(FunctionVersionStatus).digest if is_version else item.status(FunctionStatus).digest
        if digest and digest not in self.readiness.preparing:
            self._drop(digest)

    def _find_serving(self) -> set[str]:
        """The connected nodes that run functions, by their last reports."""
        nodes = self.cache.view.of_kind("node").values()
        return {n.uid for n in nodes if n.status(NodeStatus).phase == "Ready" and n.report(NodeReport).functions}

    def _name_of(self, node_uid: str) -> str:
        return self._names.get(node_uid, node_uid)

    async def _keep(self) -> None:
        while True:
            await self._clock.sleep(CHECK_SECONDS)
            self._keep_alive.update(self.agents)

    async def _spread(self) -> None:
        while True:
            await self._clock.sleep(snapshots.CHECK_SECONDS)
            self._spreading.spread(self._keep_alive.find_demands())

    async def _list_local(self) -> None:
        while True:
            await self._clock.sleep(local_functions.CHECK_SECONDS)
            if self.cache.epoch:
                self._local.send()

    async def _write_counts(self) -> None:
        while True:
            await self._clock.sleep(WRITE_SECONDS)
            if taken := self.counts.take():
                await asyncio.to_thread(self.counts.write, taken)

    async def _report_counts(self) -> None:
        """Report the counts for the history of metrics, which the controllers record. While the store is away there is no news."""
        while True:
            await self._clock.sleep(REPORT_SECONDS)
            if self.lease.is_wanted or self.cache.view.of_kind("function"):
                with contextlib.suppress(StoreUnavailable):
                    await self.lease.renew()

    def _write_digest(self) -> bytes:
        return write_counts(
            self.record.list_counts([item.uid for item in self.cache.view.of_kind("function").values()])
        )

    async def _sweep(self) -> None:
        """Have nodes drop recipes that nothing names any more, and delete the output of functions that are gone."""
        while True:
            await self._clock.sleep(SWEEP_SECONDS)
            if not self.cache.epoch:
                continue
            used = self._list_used()
            there = {digest for serving in self.agents.fleet.nodes.values() for digest in serving.standing.recipes}
            there |= {digest for channel in self.agents.channels.values() for digest in channel.defined}
            self._unused = {digest: self._unused.get(digest, 0) + 1 for digest in there - used}
            for digest in [digest for digest, sweeps in self._unused.items() if sweeps > 1]:
                self._drop(digest)
            uids = {item.uid for item in self.cache.view.of_kind("function").values()}
            await asyncio.to_thread(self.printed.keep_only, uids)
            await asyncio.to_thread(self.counts.keep_only, uids)

    def _list_used(self) -> set[str]:
        """The digests of recipes that something names."""
        view = self.cache.view
        used = set(self.readiness.preparing)
        used |= {item.status(FunctionStatus).digest for item in view.of_kind("function").values()}
        used |= {item.status(FunctionVersionStatus).digest for item in view.of_kind("functionversion").values()}
        return used

    def _drop(self, digest: str) -> None:
        for node, channel in self.agents.channels.items():
            serving = self.agents.fleet.nodes[node]
            if serving.asked[digest] or (digest not in channel.defined and digest not in serving.standing.recipes):
                continue
            channel.defined.pop(digest, None)
            channel.send(Drop(digest))
        self.agents.forget(digest)
        self._keep_alive.forget([digest])


def make_view(*kinds: str, indexes: Sequence[Index] = (), later: Sequence[str] = ()) -> View:
    """An empty view of the kinds that functions need, and of ``kinds``; of ``later`` once there is a function."""
    return View(dict.fromkeys(("node", *catalogue.KINDS, *kinds)), indexes, once="function", later=later)
