"""The gateways of the fabric's other servers, as this one asks them to keep copies of its events, and for what they recorded: at
their address for callers of functions, with a ticket that a server of the fabric can sign."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from weft.client.answer import raise_problem
from weft.client.context import Context
from weft.client.server.others import ANSWER_SECONDS, OtherServers
from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.objects.errors import Forbidden, StoreUnavailable, Unavailable, WeftError
from weft.objects.identity import SERVER_NAME, ServerIdentity, kind_prefix, new_uid
from weft.protocol.function_counts import LEASE_PREFIX as GATEWAY_LEASES
from weft.protocol.function_counts import name_gateway, read_gateway
from weft.protocol.server.presence import LEASE_PREFIX, read_presence
from weft.trust.tickets import ANOTHER_GATEWAY, check_gateway_ticket, sign_gateway_ticket

log = logging.getLogger("weft.gateway")
KEEP, FIND_TAKEN, FORGET_TAKEN = "/v1/event-copies:keep", "/v1/event-copies:find-taken", "/v1/event-copies:forget-taken"
READ, LETTERS = "/v1/event-copies:read", "/v1/event-copies:dead-letters"
TICKET = "weft-ticket"  # header
ALL_SECONDS = 5.0
T = TypeVar("T")


def make_gateway_context(ca: Path) -> Callable[[str, ServerIdentity], Context]:
    """The context with which a gateway at a URL is asked, of the path of the fabric's CA."""
    return lambda url, _: Context(server=url, ca=ca.read_text(), server_name=SERVER_NAME)


class OtherGateways:
    """Those of the servers that have a lease, beside ``own``. ``make_context`` as of OtherServers."""

    def __init__(
        self,
        store: Store,
        own: ServerIdentity,
        ticket_key: bytes,
        make_context: Callable[[str, ServerIdentity], Context],
        clock: Clock,
    ) -> None:
        self._store, self._own, self._key, self._clock = store, own, ticket_key, clock
        self.name = name_gateway(own)
        self.live: dict[str, str] = {}  # their servers, by the gateways' names
        self.servers: set[str] = set()  # all others of the fabric
        self._urls: dict[str, str] = {}  # by the servers' names
        self._astray: dict[str, str] = {}  # URLs at which another one than the gateway answers, by its name
        self._asked = OtherServers(own, make_context, lambda _: self._urls, clock)

    async def refresh(self) -> None:
        """Read which servers there are, and which serve now. Raises StoreUnavailable."""
        live, urls = {}, {}
        for lease in await self._store.leases(LEASE_PREFIX, digests=True):
            found, name = read_presence(lease.digest), lease.name.removeprefix(LEASE_PREFIX)
            if found is not None and found.functions and found.uid != self._own.uid:
                gateway, urls[name] = name_gateway(ServerIdentity(name, found.uid)), f"https://{found.functions}"
                if self._astray.get(gateway) != urls[name]:
                    live[gateway] = name
        page = await self._store.list(kind_prefix("server"))
        self.servers = {entry.key.rpartition("/")[2] for entry in page.entries} - {self._own.name}
        self.live, self._urls = live, urls

    async def list_running(self) -> set[str]:
        """The gateways that run their events themselves. Raises StoreUnavailable."""
        return {lease.name.removeprefix(GATEWAY_LEASES) for lease in await self._store.leases(GATEWAY_LEASES)}

    def is_gone(self, gateway: str) -> bool:
        """Whether it is one of a server that was removed for good."""
        server = read_gateway(gateway)
        if server in self.live.values():
            return gateway not in self.live  # another one has its name
        return server not in self.servers

    async def ask_all(self, path: str, body: Callable[[str], Any], type: type[T]) -> tuple[dict[str, T], list[str]]:
        """See ``function.record.all_gateways.AsksGateways``."""
        with suppress(StoreUnavailable):  # those that served last are asked
            await self.refresh()
        found, _ = await self.ask_live(path, body, type, ALL_SECONDS)
        return found, sorted((self.servers | {*self.live.values()}) - found.keys())

    async def ask_live(
        self, path: str, body: Callable[[str], Any], type: type[T], seconds: float = ANSWER_SECONDS
    ) -> tuple[dict[str, T], list[str]]:
        """Ask the gateways that serve, each for ``body`` of its server's name; their answers, by these names, and the servers whose
        gateways gave none."""
        asked = dict(self.live)
        given = await asyncio.gather(
            *(self.ask(gateway, path, body(server), type, seconds) for gateway, server in asked.items()),
            return_exceptions=True,
        )
        found, away = dict[str, T](), list[str]()
        for server, one in zip(asked.values(), given, strict=True):
            if isinstance(one, Unavailable):
                away.append(server)
            elif isinstance(one, BaseException):
                raise one
            else:
                found[server] = one
        return found, sorted(away)

    async def ask(self, gateway: str, path: str, body: Any, type: type[T], seconds: float = ANSWER_SECONDS) -> T:
        """The answer of a gateway at one of the paths above. Raises Unavailable if there is none, or another than a ``type``."""
        server = self.live.get(gateway)
        if server is None:
            raise Unavailable(f"gateway {gateway} is away", reason="serverAway")
        ticket = sign_gateway_ticket(self._key, self.name, gateway, self._clock.now())
        headers = {TICKET: ticket, "Idempotency-Key": new_uid()}  # it may be sent again
        answer = await self._asked.ask(
            server, "POST", path, msgspec.msgpack.encode(body), headers=headers, seconds=seconds
        )
        try:
            raise_problem(answer)
            return msgspec.msgpack.decode(answer.body, type=type)
        except (WeftError, msgspec.MsgspecError, RecursionError) as problem:
            if isinstance(problem, Forbidden) and problem.token == ANOTHER_GATEWAY:
                self._astray[gateway] = url = self._urls[server]
                self.live.pop(gateway, None)
                log.warning(
                    "server %s isn't reached at %s, which leads elsewhere: give it --functions ADDRESS:PORT",
                    server,
                    url,
                )
            why = f": {problem}" if isinstance(problem, WeftError) else " that can be read"
            raise Unavailable(f"the gateway of server {server} gives no answer{why}", reason="serverAway") from None

    async def identify(self, ticket: str) -> str:
        """The gateway that asks this one, with a ticket. Raises NotAuthenticated, Forbidden, also for one of a server that was
        removed, and StoreUnavailable."""
        asker = check_gateway_ticket(self._key, ticket, self.name, self._clock.now())
        if self.is_gone(asker):
            await self.refresh()  # it may be new
            if self.is_gone(asker):
                raise Forbidden(
                    f"gateway {asker} is of a server that was removed from its fabric",
                    reason="serverRemoved",
                    hint="to let it join again: weft server join with a new token",
                )
        return asker

    def close(self) -> None:
        self._asked.close()
