"""Endpoint: one NIC of one workload in one network, or the address of a service there. Its key holds network and address, so no
address is given twice."""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.fields.service.readiness import Readiness
from weft.kinds.record import Access, Column, Display, Index, Kind, Lifetime
from weft.objects.identity import Ref


class ServedPort(msgspec.Struct, kw_only=True, frozen=True):
    """A port of a service's address, and where it leads on each target."""

    port: int
    target: int
    protocol: Literal["tcp", "udp"]


class ServedTarget(msgspec.Struct, kw_only=True, frozen=True):
    """A workload's NIC in the network."""

    address: str
    weight: int  # per mille of new connections; 0: only those that are open
    leaves: bool = False  # nodes report that they send it no new connections any more: ``NodeReport.departed``
    departure: int = 0  # which of its departures they report; 0: of an older server, that doesn't tell them apart


class Served(msgspec.Struct, kw_only=True, frozen=True):
    """Target of a service's address."""

    ports: list[ServedPort]
    targets: list[ServedTarget]  # by address
    sticky: bool = False
    readiness: Readiness = msgspec.field(default_factory=Readiness)  # type and port are chosen
    http: bool = False  # each node's proxy leads requests to the targets, rather than its router connections
    certificate: str = ""  # which one it speaks TLS with: changes with it; "": it doesn't


class EndpointSpec(msgspec.Struct, kw_only=True):
    workload: Ref
    network: str  # as the workload names it: PROJECT/NAME is another project's
    network_uid: str  # part of the name, with the address
    index: int  # index of the NIC in the workload
    mac: str
    address: str
    served: Served | None = None  # of a service's address, which no NIC has
    hostname: str = ""  # what its network calls it; "": the workload's name


class EndpointStatus(msgspec.Struct, kw_only=True):
    node: str | None = None  # node where it is plugged in; None: nowhere
    node_address: str | None = None
    groups: list[str] = []  # uids of the workload's security groups


def is_egress(spec: EndpointSpec) -> bool:
    """Whether it is a node's own, by which functions and the proxies of services on the node reach the network."""
    return spec.workload.kind == "node"


def describe_holder(spec: EndpointSpec, project: str | None) -> str:
    """Describe the workload that has it, for people of ``project``: other projects' names are their own."""
    holder = spec.workload
    if holder.project in (None, project):
        return f"{holder.kind}/{holder.name}"
    return "another project's workload"


def describe_taken_mac(spec: EndpointSpec, project: str | None) -> str:
    """Why nothing may come to that network with the MAC that this endpoint has."""
    return (
        f"MAC {spec.mac} in network {spec.network} is taken here by {describe_holder(spec, project)} ({spec.address})"
    )


def endpoint_name(network_uid: str, address: str) -> str:
    """Network first, so that a node can watch one network's endpoints by prefix."""
    return f"{network_uid}.{address}"


ENDPOINTS_BY_WORKLOAD = Index("endpoints by workload")
ENDPOINTS_BY_NETWORK = Index("endpoints by network")

ENDPOINT = Kind(
    name="endpoint",
    plural="endpoints",
    title="endpoint",
    summary="A workload's NIC in a network",
    scope="fabric",
    spec=EndpointSpec,
    status=EndpointStatus,
    indexes={
        ENDPOINTS_BY_WORKLOAD: lambda item: (item.spec(EndpointSpec).workload.uid,),
        ENDPOINTS_BY_NETWORK: lambda item: (item.spec(EndpointSpec).network_uid,),
    },
    access=Access(
        readers="fabric",
        writer="fabric",
        status_writer="addresses",
        name_begins="network",
        node_reads="connected",
    ),
    display=Display(
        columns=(
            NAME,
            Column("WORKLOAD", text("spec.workload.name")),
            Column("NETWORK", text("spec.network")),
            Column("ADDRESS", text("spec.address"), keep=True),
            Column("MAC", text("spec.mac")),
            Column("NODE", text("status.node")),
            AGE,
        ),
    ),
    lifetime=Lifetime(goes_with_owner=True),
)
