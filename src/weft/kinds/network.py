"""Network: a tenant's own Ethernet, with DHCP, DNS and a way out."""

from __future__ import annotations

import ipaddress
from typing import Annotated

import msgspec

from weft.kinds.cells import AGE, NAME, text
from weft.kinds.record import Column, Kind
from weft.objects.errors import InvalidInput
from weft.objects.schema import field, words


class NetworkSpec(msgspec.Struct, kw_only=True):
    cidr: Annotated[str, field("Address range, like 10.20.0.0/24; the first address is the gateway's", change="never")]
    nat: Annotated[bool, field("Guests may reach the outside through their node", change="live")] = True
    mtu: Annotated[int, field("MTU inside", change="never", ge=576, le=8950)] = 1450
    domain: Annotated[str, field("DNS domain inside", change="never", name=True)] = "weft"


class NetworkStatus(msgspec.Struct, kw_only=True):
    phase: Annotated[str, words("Pending", "Ready")] = "Pending"
    vni: int = 0
    gateway: str = ""
    used: int = 0
    size: int = 0


def read_cidr(cidr: str, field_: str = "spec.cidr") -> ipaddress.IPv4Network:
    """The network, checked: IPv4, no host bits, /8 to /29. Raises InvalidInput."""
    hint = "write it like 10.20.0.0/24"
    try:
        network = ipaddress.ip_network(cidr)
    except ValueError as error:
        raise InvalidInput(f"{field_}: {error}", field=field_, hint=hint) from None
    if not isinstance(network, ipaddress.IPv4Network):
        raise InvalidInput(f"{field_}: {cidr} is IPv6; only IPv4 networks can be made", field=field_, hint=hint)
    if not 8 <= network.prefixlen <= 29:
        raise InvalidInput(f"{field_}: /{network.prefixlen} is not between /8 and /29", field=field_, hint=hint)
    if network.is_multicast or network.is_loopback or network.is_link_local or network.is_unspecified:
        raise InvalidInput(f"{field_}: {cidr} can't be used for guests", field=field_, hint=hint)
    return network


def check_network(spec: NetworkSpec) -> None:
    read_cidr(spec.cidr)


def gateway_of(cidr: str) -> str:
    return str(read_cidr(cidr).network_address + 1)


NETWORK = Kind(
    name="network",
    plural="networks",
    title="network",
    summary="A tenant network",
    spec=NetworkSpec,
    status=NetworkStatus,
    made="Ready",
    check=check_network,
    status_writer="networks",
    columns=(
        NAME,
        Column("CIDR", text("spec.cidr"), keep=True),
        Column("GATEWAY", text("status.gateway")),
        Column("VNI", text("status.vni"), align="right"),
        Column("USED", lambda o: f"{(o.get('status') or {}).get('used', 0)}/{(o.get('status') or {}).get('size', 0)}"),
        AGE,
    ),
)
