"""Plan the proxies that a node needs: one for each project with HTTP services in a network that guests or functions here are in.
Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from weft.agent.state.service import ServedAddress
from weft.contracts.proxy import Listener


class WantedProxy(msgspec.Struct, frozen=True):
    id: str
    network_uid: str
    network_project: str
    listeners: tuple[Listener, ...]


def plan_proxies(
    services: Mapping[str, Mapping[str, ServedAddress]], networks: Iterable[str], pems: Mapping[str, str]
) -> list[WantedProxy]:
    """Plan the proxies of those ``services``, by network uid and address, that are in ``networks``. ``pems``: certificates by
    service uid; a service that lacks its own is left out."""
    found: dict[tuple[str, str], list[ServedAddress]] = {}
    for uid, one in list_proxied(services, networks):
        if not one.certificate or pems.get(one.uid):
            found.setdefault((uid, one.project), []).append(one)
    return [
        WantedProxy(name_proxy(uid, project), uid, of[0].network_project, _sort(of, pems))
        for (uid, project), of in sorted(found.items())
    ]


def _sort(served: Iterable[ServedAddress], pems: Mapping[str, str]) -> tuple[Listener, ...]:
    every = [listener for one in served for listener in list_listeners(one, pems.get(one.uid, ""))]
    return tuple(sorted(every, key=lambda one: (one.service, one.port)))


def list_listeners(served: ServedAddress, pem: str = "") -> list[Listener]:
    service = served.service
    return [
        Listener(
            service=served.uid,
            name=f"{served.project}/{served.name}",
            address=service.address,
            port=port.port,
            target_port=port.target_port,
            backends=service.targets,
            sticky=service.sticky,
            certificate=pem,
        )
        for port in service.ports
    ]


def name_proxy(network_uid: str, project: str) -> str:
    """A short id that no other network and project have."""
    return hashlib.sha256(f"{network_uid}/{project}".encode()).hexdigest()[:10]


def list_proxied(
    services: Mapping[str, Mapping[str, ServedAddress]], networks: Iterable[str]
) -> list[tuple[str, ServedAddress]]:
    """The HTTP services in ``networks``, each with the uid of its network."""
    return [
        (uid, one) for uid in sorted(set(networks)) for one in services.get(uid, {}).values() if one.service.proxied
    ]
