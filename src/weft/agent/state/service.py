"""The addresses of services in this node's networks, as the server has them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec

from weft.contracts.driver.network import Service, ServicePort, ServiceTarget
from weft.kinds.endpoint import EndpointSpec
from weft.kinds.fields.service.readiness import Readiness
from weft.kinds.node import MOST_DEPARTED, name_departure
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import split_named


class Leaving(NamedTuple):
    address: str
    departure: int = 0  # which one; 0: of an older server


class ServedAddress(msgspec.Struct, frozen=True):
    """A service's address in a network."""

    uid: str  # of the service
    service: Service
    readiness: Readiness  # when a target is ready; type and port are chosen
    name: str = ""
    project: str = ""
    network_project: str = ""  # whose network it is in
    certificate: str = ""  # which one it speaks TLS with; "": none
    leaving: tuple[Leaving, ...] = ()  # targets that leave: this node reports when it sends them nothing new

    @property
    def departures(self) -> list[str]:
        return [name_departure(self.uid, *target) for target in self.leaving]


class ServiceAddresses:
    """``by_network``: by network uid and address. ``watchers`` are called when one changes."""

    def __init__(self, known: Mapping[str, list[ServedAddress]], watchers: list[Callable[[], None]]) -> None:
        self.by_network = {uid: {one.service.address: one for one in found} for uid, found in known.items()}
        self.watchers = watchers

    def put(self, network_uid: str, address: str, served: ServedAddress | None) -> None:
        """The server's state of one address; None: it is gone, or is a NIC's."""
        known = self.by_network.setdefault(network_uid, {})
        if known.get(address) == served:
            return
        if served is None:
            del known[address]
        else:
            known[address] = served
        for watcher in self.watchers:
            watcher()

    def fade(self, network_uid: str, listed: Collection[str]) -> None:
        """The server lists only these addresses of the network."""
        for address in [one for one in self.by_network.get(network_uid, {}) if one not in listed]:
            self.put(network_uid, address, None)

    def list_of(self, networks: Collection[str]) -> dict[str, list[ServedAddress]]:
        """Those of these networks, to be saved."""
        known = {uid: found for uid, found in self.by_network.items() if uid in networks and found}
        return {uid: [found[address] for address in sorted(found)] for uid, found in known.items()}


def read_service(envelope: Envelope) -> ServedAddress | None:
    """A service's endpoint; None for a NIC's."""
    spec = decode_part(envelope.spec, EndpointSpec)
    served = spec.served
    if served is None:
        return None
    service = Service(
        address=spec.address,
        names=name_service(spec),
        ports=tuple(ServicePort(port.protocol, port.port, port.target) for port in served.ports),
        targets=tuple(ServiceTarget(target.address, target.weight) for target in served.targets),
        sticky=served.sticky,
        proxied=served.http,
    )
    of, project = spec.workload, spec.workload.project or ""
    owner = split_named(project, spec.network)[0] or ""
    leaving = tuple(Leaving(target.address, target.departure) for target in served.targets if target.leaves)
    return ServedAddress(of.uid, service, served.readiness, of.name, project, owner, served.certificate, leaving)


def report_departures(departed: Iterable[ServedAddress]) -> list[str]:
    """Report those of ``departed`` that go into the node's report: MOST_DEPARTED at most, always the same ones."""
    return sorted(name for one in departed for name in one.departures)[:MOST_DEPARTED]


def name_service(spec: EndpointSpec) -> tuple[str, ...]:
    """Its names in the network's domain: NAME, NAME.NETWORK and NAME.PROJECT; only NAME.PROJECT.NETWORK in one of another
    project."""
    name, project, network = spec.workload.name, spec.workload.project, split_named(None, spec.network)[1]
    if "/" in spec.network:
        return (f"{name}.{project}.{network}",)
    return tuple(dict.fromkeys((name, f"{name}.{network}", f"{name}.{project}")))
