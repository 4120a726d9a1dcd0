"""Which proxies a node needs: one for each project with HTTP services in a network that guests or functions here are in. Pure."""

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


def plan_proxies(services: Mapping[str, Mapping[str, ServedAddress]], networks: Iterable[str]) -> list[WantedProxy]:
    """Of the ``services``, by network uid and address, those in ``networks``."""
    found: dict[tuple[str, str], list[ServedAddress]] = {}
    for uid in sorted(set(networks)):
        for one in services.get(uid, {}).values():
            if one.service.proxied:
                found.setdefault((uid, one.project), []).append(one)
    return [
        WantedProxy(
            name_proxy(uid, project),
            uid,
            of[0].network_project,
            tuple(
                sorted((listener for one in of for listener in list_listeners(one)), key=lambda e: (e.service, e.port))
            ),
        )
        for (uid, project), of in sorted(found.items())
    ]


def list_listeners(served: ServedAddress) -> list[Listener]:
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
        )
        for port in service.ports
    ]


def name_proxy(network_uid: str, project: str) -> str:
    """A short id that no other network and project have."""
    return hashlib.sha256(f"{network_uid}/{project}".encode()).hexdigest()[:10]
