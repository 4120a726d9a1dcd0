"""A NIC as a VM's spec writes it: ``blue``, or ``blue:10.20.0.15`` for a chosen address; ``physics/blue`` is
one that another project shares. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from weft.kinds.allocation import AllocatedNic
from weft.kinds.endpoint import EndpointSpec, endpoint_name
from weft.kinds.network import NetworkSpec, NetworkStatus, gateway_of, read_cidr
from weft.kinds.record import Claim, ClaimWithin, Stored
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_shared_name

S = TypeVar("S", bound=Stored)


class Nic(msgspec.Struct, frozen=True):
    """The network to join, and the address in it if that was chosen."""

    network: str
    address: str | None = None


def read_nic(text: str, field: str = "spec.networks") -> Nic:
    """``NETWORK`` or ``NETWORK:ADDRESS``, with ``PROJECT/`` before another project's. Raises InvalidInput."""
    network, sign, address = text.partition(":")
    check_shared_name(network, field)
    if not sign:
        return Nic(network)
    try:
        return Nic(network, str(ipaddress.IPv4Address(address)))
    except ValueError:
        raise InvalidInput(
            f"{field}: {address[:60]!r} is not an IPv4 address",
            field=field,
            hint=f"write {network}:ADDRESS, like {network}:10.20.0.15, or {network} alone for any free one",
        ) from None


def networks_of(written: Sequence[str]) -> list[str]:
    """The names of the networks to join, in the order of the NICs."""
    return [text.partition(":")[0] for text in written]


def are_plugged(nics: Sequence[Any], written: Sequence[str]) -> bool:
    """Whether a place's ``nics`` (each with network and address) are what the spec requests."""
    wanted = [read_nic(text) for text in written]
    return len(nics) == len(wanted) and all(
        has.network == wants.network and wants.address in (None, has.address)
        for has, wants in zip(nics, wanted, strict=True)
    )


def choose_endpoint(endpoints: Iterable[S], network_uid: str, nic: Nic) -> S | None:
    """The endpoint of a workload's NIC: the one with the requested address, else the lowest."""
    found = [item for item in endpoints if item.spec(EndpointSpec).network_uid == network_uid]
    fitting = [item for item in found if nic.address in (None, item.spec(EndpointSpec).address)]
    return min(fitting, key=lambda item: item.key, default=None)


def claim_address(envelope: Envelope, index: int, written: str) -> ClaimWithin | None:
    """The claim of a chosen address in its network; None where any will do."""
    field = f"spec.networks[{index}]"
    nic = read_nic(written, field)
    if nic.address is None:
        return None
    address = nic.address

    def make(network: Envelope) -> Claim:
        check_address(address, network, field)
        return Claim(
            kind="endpoint",
            name=endpoint_name(network.uid, address),
            spec=EndpointSpec(
                workload=envelope.ref,
                network=nic.network,
                network_uid=network.uid,
                index=index,
                mac=mac_of(address),
                address=address,
            ),
            field=field,
            reason="addressInUse",
            taken=f"{address} in network {nic.network} is taken",
            hint=f"choose another address, or write {nic.network} alone for any free one",
            keeps=True,  # a running guest keeps it until its NIC is gone: the addresses controller deletes it
        )

    return ClaimWithin("network", nic.network, make)


def check_address(address: str, network: Envelope, field: str) -> None:
    """Raise InvalidInput unless guests may have ``address`` in ``network``."""
    cidr = decode_part(network.spec, NetworkSpec).cidr
    range_ = read_cidr(cidr)
    first, last = range_.network_address + 2, range_.broadcast_address - 1
    hint = f"choose one from {first} to {last}"
    number = ipaddress.IPv4Address(address)
    if number not in range_:
        fact = f"is not in network {network.name} ({cidr})"
    elif address == gateway_of(cidr):
        fact = f"is the gateway's in network {network.name}"
    elif not first <= number <= last:
        fact = f"can't be used by a workload of network {network.name} ({cidr})"
    else:
        return
    raise InvalidInput(f"{field}: {address} {fact}", reason="addressOutOfRange", field=field, hint=hint)


DRAWN_MACS = "52:54:00:"  # how the MACs of assigned addresses begin: QEMU's range


def mac_of(address: str) -> str:
    """The MAC of a chosen address: every address has its own, outside the range of assigned addresses."""
    return "52:57:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(address).packed)


def make_nic(
    endpoint: Envelope, at: EndpointSpec, network: Envelope, spec: NetworkSpec, status: NetworkStatus
) -> AllocatedNic:
    """A NIC for its node: its ``endpoint``, and that endpoint's network."""
    return AllocatedNic(
        uid=endpoint.uid,
        network=at.network,
        network_uid=network.uid,
        vni=status.vni,
        cidr=spec.cidr,
        gateway=status.gateway,
        mtu=spec.mtu,
        domain=spec.domain,
        nat=spec.nat,
        mac=at.mac,
        address=at.address,
    )
