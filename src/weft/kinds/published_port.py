"""Published port: a host port that leads to a port of a workload or a service, on every node. Its name is the port, so it is
unique."""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, text
from weft.kinds.record import Access, Claim, Column, Display, Index, Kind, Lifetime
from weft.objects.envelope import Envelope
from weft.objects.identity import Ref


class PublishedPortSpec(msgspec.Struct, kw_only=True):
    port: int
    protocol: Literal["tcp", "udp"]
    target_port: int
    workload: Ref


class PublishedNode(msgspec.Struct, kw_only=True, frozen=True):
    """A node with endpoints of a service."""

    address: str
    weight: int  # per mille of new connections


class PublishedPortStatus(msgspec.Struct, kw_only=True):
    """Target of the port now; None while the workload has no allocation. Of a service: its address, and the nodes with its
    endpoints."""

    node: str | None = None
    node_address: str | None = None
    network_uid: str | None = None
    address: str | None = None
    nodes: list[PublishedNode] = []


def claim_published_port(
    owner: Envelope, index: int, port: int, target: int, protocol: Literal["tcp", "udp"], force: bool | None = None
) -> Claim:
    """Claim for the entry ``index`` of the owner's ``spec.publish``. ``force``: whether it insists on a port that a program outside
    weft has; None: it can't."""
    return Claim(
        kind="publishedport",
        name=f"{protocol}-{port}",
        spec=PublishedPortSpec(port=port, protocol=protocol, target_port=target, workload=owner.ref),
        field=f"spec.publish[{index}]",
        reason="portInUse",
        taken=f"port {port}/{protocol} is published already",
        hint="choose another port; administrators of the fabric see them all: weft get ports",
        forced=bool(force),
        forcible=force is not None,
    )


PUBLISHED_PORTS_BY_WORKLOAD = Index("published ports by workload")

PUBLISHED_PORT = Kind(
    name="publishedport",
    plural="publishedports",
    title="published port",
    summary="A port of every node that leads to a workload or a service",
    scope="fabric",
    spec=PublishedPortSpec,
    status=PublishedPortStatus,
    indexes={PUBLISHED_PORTS_BY_WORKLOAD: lambda item: (item.spec(PublishedPortSpec).workload.uid,)},
    access=Access(readers="fabric", writer="fabric", status_writer="addresses", node_reads="all"),
    display=Display(
        aliases=("port", "ports"),
        columns=(
            NAME,
            Column("WORKLOAD", text("spec.workload.name")),
            Column("TARGET", text("spec.target_port"), align="right"),
            Column("NODE", text("status.node")),
            Column("ADDRESS", text("status.address"), keep=True),
            AGE,
        ),
    ),
    lifetime=Lifetime(goes_with_owner=True),
)
