"""The context of the API server's handlers: store, journal, CA, and the little that is kept in memory. Decides nothing."""

from __future__ import annotations

import asyncio
import functools
import hmac
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from weft.api.dashboard.boards import Boards
from weft.api.node.orders import NodeOrders
from weft.api.request.trace import RequestTraces
from weft.api.servers.addresses import ServerAddresses
from weft.api.servers.event_copies import EventCopies
from weft.api.servers.history_copies import HistoryCopies
from weft.api.state.address_ranges import AddressRanges
from weft.api.state.counted_objects import CountedObjects
from weft.api.state.history import History
from weft.api.state.latency_peers import LatencyPeers
from weft.api.state.list_turns import ListTurns
from weft.api.state.login_limits import LoginLimits
from weft.api.state.object_counts import ObjectCounts
from weft.api.state.oidc_provider import Provider
from weft.api.state.published_ports import NodePorts
from weft.api.state.request_counts import RequestCounts
from weft.api.state.request_rates import RequestRates, WriteRates
from weft.api.state.store_position import StorePosition
from weft.api.state.token_use import TokenUse
from weft.api.state.watch_lines import WatchLines
from weft.api.trace.node_spans import NodeSpans
from weft.client.server.files import ServerFiles
from weft.client.server.others import OtherServers, make_own_context
from weft.contracts.clock import Clock
from weft.contracts.journal import Event
from weft.contracts.store import Store
from weft.contracts.store_members import StoreMembers
from weft.informer.accounts import KINDS as ACCOUNTS
from weft.informer.accounts import Accounts
from weft.informer.enrolments import Enrolments
from weft.informer.prefix_cache import PrefixCache, of_envelope
from weft.kinds.quota import QUOTA
from weft.kinds.registry import BY_NAME
from weft.kinds.token import TokenMarks, TokenSpec, TokenStatus
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import Unavailable
from weft.objects.identity import Ref, ServerIdentity, kind_prefix
from weft.protocol.server.join import ServerKeys
from weft.telemetry.audit.log import AuditLog
from weft.telemetry.journal import SqliteJournal
from weft.telemetry.logs.server import ServerLog
from weft.telemetry.traces.store import TraceStore
from weft.trust.ca import Authority
from weft.trust.credentials import Actor, StoredToken
from weft.trust.seal import SealKeys

SOURCE = "api"


@dataclass(frozen=True)
class TokenFacts:
    """A stored token as the API server checks it; ``key`` is its key in the store."""

    envelope: Envelope
    spec: TokenSpec
    marks: TokenMarks
    used_at: float | None
    key: str

    @property
    def stored(self) -> StoredToken:
        return StoredToken(self.envelope.name, self.spec, self.envelope.owner, self.marks)


class KnownBearer(NamedTuple):
    """The actor of a bearer that was checked; valid until its token changes, and unless it is fixed until rights change."""

    facts: TokenFacts
    actor: Actor
    version: object  # of the accounts
    quiet_until: float  # unix seconds: before then the token doesn't expire, and its use need not be noted


@dataclass(frozen=True)
class Settings:
    blobs: Path  # folder of contents of images, by digest
    ticket_key: bytes
    gateways: tuple[str, ...]  # where streams connect, HOST:PORT
    server_name: str
    publish_address: str | None = None  # a port that another program holds here can't be published
    seal_keys: SealKeys = field(default_factory=SealKeys.of)
    functions: tuple[str, ...] = ()  # where callers of functions connect
    listen: tuple[str, ...] = ()  # where clients of the API connect
    most_objects: int = 5_000  # of a kind in a project; ten times as many of some kinds
    user_token_seconds: float = 90 * 86_400.0  # how long a token is valid at most that a login has made

    def gateway_for(self, host: str) -> str:
        """The gateway's address for a client that reached the API server at ``host``: the same host, if it listens there."""
        return _seen_from(host, self.gateways)

    def functions_for(self, host: str) -> str:
        """The address for callers of functions, likewise; "" if there is none."""
        return _seen_from(host, self.functions) if self.functions else ""


def refuse_servers() -> ServerKeys:
    """Raises Unavailable."""
    raise Unavailable("this server takes in no others")


@dataclass
class ApiContext:
    store: Store
    journal: SqliteJournal
    clock: Clock
    authority: Authority
    settings: Settings
    audit: AuditLog
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    lines: WatchLines = field(default_factory=WatchLines)
    streams: dict[asyncio.Event, Actor] = field(
        default_factory=dict
    )  # set, each has a stream check whether it must end
    busy: int = 0
    uploads: int = 0
    made_images: int = 0  # that nodes are sending now
    bearers: dict[str, KnownBearer] = field(default_factory=dict)  # by the Authorization header
    device_keys: dict[str, str] = field(
        default_factory=dict
    )  # in the store, by uid, of devices that gateways reported on
    # By uid of a node: project and name of the models that devices behind its gateway name, as it last asked; "" for none.
    needed_models: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    # Topics that invoke functions, by project and the function's name, and when they were read, in elapsed seconds.
    topics: dict[str, tuple[float, dict[str, list[str]]]] = field(default_factory=dict)
    # When people were told last that messages for a function were dropped, by its uid (api/node/invocations.py).
    told_dropped: dict[str, float] = field(default_factory=dict)
    read_keys: Callable[[], ServerKeys] = (
        refuse_servers  # what another server of the fabric needs; may raise Unavailable
    )
    members: StoreMembers | None = None  # of the store, of which each server keeps one
    provider: Provider | None = None  # of OIDC
    traces: RequestTraces | None = None  # of requests; None: none are traced
    spans: TraceStore | None = None  # of all processes and nodes, likewise
    server_log: ServerLog | None = None  # of its own processes; None: the server keeps none
    history: History | None = None  # of metrics; None: the server keeps none
    own: ServerIdentity | None = None  # which server this is; None: it knows no others
    arranging: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while the server's sealing keys change
    logins: LoginLimits = field(default_factory=LoginLimits)
    requests: RequestCounts = field(default_factory=RequestCounts)
    counted: CountedObjects = field(default_factory=CountedObjects)
    lists: ListTurns = field(default_factory=ListTurns)
    objects: ObjectCounts = field(default_factory=ObjectCounts)
    writes: WriteRates = field(default_factory=WriteRates)
    boards: Boards = field(init=False)  # of dashboards
    node_spans: NodeSpans = field(init=False)
    servers: ServerAddresses = field(init=False)
    others: OtherServers = field(init=False)  # of the fabric
    files: ServerFiles = field(init=False)
    event_copies: EventCopies = field(init=False)  # in the journal
    history_copies: HistoryCopies = field(init=False)  # in the database for metrics
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.boards = Boards(self.store, self.clock)
        self.node_spans = NodeSpans(self.clock)
        self.servers = ServerAddresses(self.store, self.clock)
        self.others = OtherServers(
            self.own,
            lambda url, own: make_own_context(self.authority, url, own),
            self.servers.list_others,
            self.clock,
        )
        self.files = ServerFiles(self.settings.blobs, self.others)
        self.event_copies = EventCopies(self.journal, self.others, self.clock)
        self.history_copies = HistoryCopies(self.history, self.others, self.clock)

    @functools.cached_property
    def tokens(self) -> PrefixCache[TokenFacts]:
        return PrefixCache(self.store, kind_prefix("token"), of_envelope(_token_facts), self.clock, self._token_changed)

    @functools.cached_property
    def accounts(self) -> Accounts:
        return Accounts(self.store, self.clock, self._accounts_changed)

    @functools.cached_property
    def token_use(self) -> TokenUse:
        return TokenUse(self.store, self.clock)

    @functools.cached_property
    def enrolments(self) -> Enrolments:
        return Enrolments(self.store, self.clock)

    @functools.cached_property
    def orders(self) -> NodeOrders:
        return NodeOrders(self.store, self.clock)

    @functools.cached_property
    def ranges(self) -> AddressRanges:
        return AddressRanges(self.store, self.clock)

    @functools.cached_property
    def peers(self) -> LatencyPeers:
        return LatencyPeers(self.store, hmac.digest(self.settings.ticket_key, b"echo", "sha256"), self.clock)

    @functools.cached_property
    def node_ports(self) -> NodePorts:
        return NodePorts(self.store, self.clock)

    @functools.cached_property
    def rates(self) -> RequestRates:
        return RequestRates(self.store, self.clock)

    @functools.cached_property
    def pulse(self) -> StorePosition:
        return StorePosition(self.store, self.clock)

    @property
    def rights_version(self) -> object:
        """Changes whenever a token's, user's, role binding's or role's change may concern someone."""
        return self.tokens.changes, self.accounts.version

    def start(self) -> None:
        """Begin to follow the store; call it in the loop."""
        works: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = (
            self.tokens.run,
            self.accounts.run,
            self.token_use.run,
            self.enrolments.run,
            self.orders.run,
            self.ranges.run,
            self.peers.run,
            self.rates.run,
            self.pulse.run,
            self.servers.run,
            self.event_copies.run,
            self.history_copies.run,
            self.boards.run,
            self.audit.keep,
        )
        self._tasks = [asyncio.create_task(work()) for work in works]

    async def stop(self) -> None:
        """End the tasks of ``start``, and every stream."""
        self.stopping.set()
        for woken in self.streams:
            woken.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.others.close()

    @functools.cached_property
    def notes(self) -> Mapping[str, Callable[[Envelope], None]]:
        """Functions by kind to call for an object that this process has committed, so that it counts from now on."""
        return {QUOTA.name: self.rates.note, **dict.fromkeys(ACCOUNTS, self.accounts.note)}

    def _token_changed(self, key: str) -> None:
        name = key.rpartition("/")[2]
        for woken, actor in self.streams.items():
            if actor.id == name:
                woken.set()

    def _accounts_changed(self) -> None:
        for woken, actor in self.streams.items():
            if not actor.is_fixed:
                woken.set()

    def add_event(self, about: Ref, reason: str, message: str, type_: Literal["Normal", "Warning"] = "Normal") -> None:
        """Write an event; none of a question, which changes nothing and is soon gone."""
        if BY_NAME[about.kind].lifetime.ephemeral:
            return
        self.journal.append(Event(type=type_, reason=reason, message=message, object=about, source=SOURCE))


def _seen_from(host: str, places: tuple[str, ...]) -> str:
    for place in places:
        at, _, port = place.rpartition(":")
        if at == host:
            return place
        if at in ("0.0.0.0", "[::]"):  # noqa: S104 (compared, not bound)
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return places[0]


def _token_facts(envelope: Envelope) -> TokenFacts:
    spec, marks = decode_part(envelope.spec, TokenSpec), decode_part(envelope.marks, TokenMarks)
    return TokenFacts(envelope, spec, marks, decode_part(envelope.status, TokenStatus).used_at, envelope.key)
