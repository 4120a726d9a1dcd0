"""The gateway's part in functions, on a server: its store over the API server's socket, and placement by the serverless score."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weft.contracts.clock import Clock
from weft.contracts.function_placement import KINDS, PlacementQuery, Ranking
from weft.gateway.event_copies.all_dead_letters import AllDeadLetters
from weft.gateway.event_copies.copying import Copying
from weft.gateway.event_copies.other_gateways import OtherGateways, make_gateway_context
from weft.gateway.event_copies.record import CopyRecords
from weft.gateway.function.record.all_gateways import FunctionRecords
from weft.gateway.function.service import FunctionService, make_view
from weft.gateway.function.streams import FunctionStreams
from weft.gateway.function_events.dead_letters import DeadLetters
from weft.gateway.function_events.delivery import Deliveries
from weft.gateway.function_events.file import EventFile
from weft.gateway.function_events.queue import EventQueue
from weft.gateway.function_events.schedule_state import ScheduleState
from weft.gateway.lambda_api.other_gateways import OtherGatewayApi
from weft.informer.accounts import KINDS as ACCOUNTS
from weft.informer.accounts import make_directory
from weft.informer.cache import Cache, whole
from weft.informer.view import Changed, View
from weft.kinds.token import TOKENS_BY_KEY
from weft.launch.server.membership.identity import keep_identity
from weft.protocol.function_counts import name_gateway
from weft.store.remote import RemoteStore

if TYPE_CHECKING:
    from weft.scheduler.function.placing import FunctionPlacing


class PlacesOnceWanted:
    """Placement, loaded with the first function: numpy, the engine and its rows are a third of a gateway's memory, and many
    fabrics have no functions."""

    def __init__(self, view: View) -> None:
        self.epoch = 0
        self._view = view
        self._used: dict[str, float] = {}
        self._held: dict[str, frozenset[str]] = {}
        self._places: FunctionPlacing | None = None

    def notice(self, changes: Sequence[Changed]) -> None:
        """Changes of KINDS and of functions."""
        if self._places is not None:
            self._places.notice([change for change in changes if change.kind in KINDS])
            self.epoch = self._places.epoch
        elif any(change.kind == "function" for change in changes):
            self._make()

    def rank(self, wanted: PlacementQuery) -> Ranking:
        return self._make().rank(wanted)

    def use(self, node: str, cpu: float) -> None:
        self._used[node] = cpu
        if self._places is not None:
            self._places.use(node, cpu)
            self.epoch = self._places.epoch

    def hold(self, node: str, data: frozenset[str]) -> None:
        self._held[node] = data
        if self._places is not None:
            self._places.hold(node, data)
            self.epoch = self._places.epoch

    def _make(self) -> FunctionPlacing:
        if self._places is None:
            places: FunctionPlacing = importlib.import_module("weft.scheduler.function.placing").FunctionPlacing(
                self._view
            )
            places.notice(whole(self._view, KINDS))
            for node, data in self._held.items():
                places.hold(node, data)
            for node, cpu in self._used.items():
                places.use(node, cpu)
            self._places, self.epoch = places, self.epoch + places.epoch + 1
            places.epoch = self.epoch
        return self._places


class GatewayFunctions:
    """``service`` with the queue of events and the streams on it. The HTTP API opens the file of events in ``folder``;
    ``directory`` knows what users may do. ``others``: gateways that have copies of events, and records of their own; None: no other
    server can come."""

    def __init__(
        self,
        service: FunctionService,
        folder: Path,
        clock: Clock,
        others: OtherGateways | None = None,
    ) -> None:
        self.service = service
        self.directory = make_directory(service.cache, service.cache.view)
        self.events = EventFile(folder / "events.db")
        self.fired = ScheduleState(service.store, self.events, service.lease.name)
        queue, copying = EventQueue(self.events), None
        if others is not None:
            copying = Copying(self.events, queue, others, service.lease, CopyRecords(service.store), clock)
        self.deliveries = Deliveries(
            queue,
            DeadLetters(self.events),
            service.cache.view,
            service.dispatcher,
            clock,
            self.fired,
            copying=copying,
        )
        self.letters = AllDeadLetters(self.deliveries, others)
        records, self.gateways = FunctionRecords(service.record, service.printed, others, clock), None
        if others is not None and copying is not None:
            self.gateways = OtherGatewayApi(others, copying.copies, self.letters, records)
        self.streams = FunctionStreams(service, self.deliveries, records, clock)


def make_functions(state: Path, store: RemoteStore, clock: Clock, ticket_key: bytes) -> GatewayFunctions:
    """Make the functions' part of the gateway for the server whose state folder is ``state``; run the service beside the
    gateway."""
    cache = Cache(store, make_view("token", *ACCOUNTS, indexes=(TOKENS_BY_KEY,), later=KINDS), clock)
    places = PlacesOnceWanted(cache.view)
    cache.subscribe(places.notice, (*KINDS, "function"))
    folder, own = state / "gateway", keep_identity(state, None)
    name = name_gateway(own)
    service = FunctionService(store, cache, places, clock, ticket_key=ticket_key, folder=folder, name=name)

    context = make_gateway_context(state / "ca.crt")
    others = OtherGateways(store, own, ticket_key, context, clock)
    return GatewayFunctions(service, folder, clock, others)
