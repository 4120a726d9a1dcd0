"""The proxy driver contract: one process of a node that takes the HTTP requests of services in one network, and leads each to an
endpoint.

``ensure`` makes the process match a value and may be repeated; a process outlives the agent, and an agent that starts finds it
again. Ids are 10-character short ids.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from weft.contracts.driver.network import ServiceTarget


class Listener(msgspec.Struct, frozen=True):
    """A port of a service's address."""

    service: str  # its uid
    name: str  # for people: NAME of project PROJECT
    address: str
    port: int
    target_port: int
    backends: tuple[ServiceTarget, ...]  # by address
    sticky: bool = False  # requests of one client address go to the same endpoint
    certificate: str = ""  # PEM of a certificate with its chain and key: it speaks TLS; "": it doesn't


class Proxy(msgspec.Struct, frozen=True):
    id: str
    namespace: str  # path of the network namespace from which it reaches endpoints
    router: str  # name of the network namespace that has the services' addresses
    listeners: tuple[Listener, ...]  # by service and port


class EndpointCount(msgspec.Struct, frozen=True):
    """The number of an endpoint's answers since some moment; counts may begin again at any time."""

    service: str  # uid
    address: str
    answers: dict[str, int]  # by class, like "2xx"; "none" where no answer came
    seconds: float | None = None  # mean time until an answer, of those since the last reading; None: there were none


class ProxyDriver(Protocol):
    async def ensure(self, proxy: Proxy) -> None:
        """Run it so: endpoints and weights change in the process that runs, without a lost request; what else changes, by a reload
        that loses none either. Raises DriverFailed."""

    async def remove(self, id: str) -> None:
        """End it, and remove its files; absent is fine. Raises DriverFailed."""

    def find_all(self) -> list[str]:
        """The ids of those that have files here."""

    def find_ended(self) -> list[str]:
        """Those that ``ensure`` has made run, and that run no more."""

    async def read(self, id: str) -> list[EndpointCount]:
        """Its counts. Raises DriverFailed."""
