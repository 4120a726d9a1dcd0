"""Network: a tenant's own Ethernet, with DHCP, DNS and a way out."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Annotated

import msgspec

from weft.kinds.fields.cells import AGE, NAME, joined, text
from weft.kinds.parts.goal import reaches
from weft.kinds.parts.sharing import SHARE, SharedWith, check_shares, share_reference
from weft.kinds.record import Access, Admission, Column, Display, Index, Kind, Lifetime, uid_of
from weft.kinds.securitygroup import Rule, read_rule
from weft.objects.errors import InvalidInput
from weft.objects.schema import field, words

Opening = Annotated[str, field("", max_length=128)]


class NetworkSpec(msgspec.Struct, kw_only=True):
    cidr: Annotated[str, field("Address range, like 10.20.0.0/24; the first address is the gateway's", change="never")]
    nat: Annotated[bool, field("Workloads may reach the outside through their node", change="live")] = True
    mtu: Annotated[int, field("MTU of the network", change="never", ge=576, le=8950)] = 1450
    domain: Annotated[
        str, field("DNS domain of the network; it holds only the network's own names", change="never", name=True)
    ] = "weft"

    open: Annotated[
        list[Opening],
        field(
            "Services of nodes and of the server's machine to open to workloads: api, functions, syslog or traces (at the"
            " gateway's address), or PROTOCOL[:PORT[-PORT]] [to CIDR], like tcp:2049 to 10.0.0.5/32",
            change="live",
        ),
    ] = []
    shared_with: SharedWith = []


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
        raise InvalidInput(f"{field_}: {cidr} is IPv6; only IPv4 is supported", field=field_, hint=hint)
    if not 8 <= network.prefixlen <= 29:
        raise InvalidInput(f"{field_}: /{network.prefixlen} is not between /8 and /29", field=field_, hint=hint)
    return network


# What no guest can have: addresses that hosts keep for themselves, for no one machine, or for nobody at all (RFC 6890).
_NOBODYS = {
    "0.0.0.0/8": "means this very network",
    "127.0.0.0/8": "is each machine's own loopback",
    "169.254.0.0/16": "is link-local: metadata services answer there",
    "224.0.0.0/4": "is for multicast",
    "240.0.0.0/4": "is reserved, and holds the broadcast address",
}

# Domains that guests resolve elsewhere: a network's domain of that name would answer instead (RFC 6761, 6762).
_OTHERS = {
    "localhost": "refers to each workload itself",
    "local": "is for multicast DNS, so workloads don't ask a server",
    "arpa": "is for reverse lookups of addresses",
    "invalid": "is reserved never to resolve",
    "onion": "belongs to another network",
    **dict.fromkeys("com net org edu gov mil int info biz".split(), "is a domain of the internet"),
}
_COUNTRY = re.compile("[a-z]{2}")  # all of two letters are countries', or may become theirs (RFC 1591)


# The server's services that a project may open to its own workloads: they let in only who has a token, or signs.
API, FUNCTIONS = "api", "functions"
# What the gateway's address takes from workloads: their logs (ports 514 of UDP and TCP), and OTLP over HTTP (port 4318).
SYSLOG, TRACES = "syslog", "traces"
SERVICES = (API, FUNCTIONS, SYSLOG, TRACES)
MOST_OPEN = 32


def read_open(written: str, field_: str = "spec.open") -> Rule | None:
    """A rule for services of hosts; None for one of SERVICES, whose address and port only the server knows. Raises InvalidInput."""
    if written in SERVICES:
        return None
    rule = read_rule(written, "egress", field_)
    if rule.group is not None:
        raise InvalidInput(
            f"{field_}: {written[:80]!r}: a host belongs to no group",
            field=field_,
            hint="name a host by its address, like tcp:2049 to 10.0.0.5/32",
        )
    return rule


def check_network(spec: NetworkSpec) -> None:
    read_cidr(spec.cidr)
    check_shares(spec.shared_with)
    if len(spec.open) > MOST_OPEN:
        raise InvalidInput(
            f"spec.open: {len(spec.open)} entries are too many",
            field="spec.open",
            hint=f"at most {MOST_OPEN}; one may name a range of ports",
        )
    for at, written in enumerate(spec.open):
        read_open(written, f"spec.open[{at}]")


def find_rights(old: NetworkSpec | None, new: NetworkSpec) -> Iterable[tuple[str, str]]:
    """The permissions in all projects, each with what it is for, that a new or changed network takes: hosts' services are
    the fabric's, and only who may change nodes can open more of them, or open them to more projects."""
    more = set(new.open) - set(SERVICES)
    if old is not None and not set(new.shared_with) - set(old.shared_with):
        more -= set(old.open)
    return [("node:update", f"open {min(more)!r} of hosts to a network")] if more else []


def check_new_network(spec: NetworkSpec) -> None:
    """Raises InvalidInput for a domain or range that belongs to others. It is checked only at creation: neither ever changes."""
    why = _OTHERS.get(spec.domain) or ("is a country's domain" if _COUNTRY.fullmatch(spec.domain) else None)
    if why:
        raise InvalidInput(
            f"spec.domain: {spec.domain} {why}: workloads would resolve nothing in it but this network's names",
            field="spec.domain",
            hint="choose one that belongs to nobody, like weft, lan or internal",
        )
    network = read_cidr(spec.cidr)
    for taken, why in _NOBODYS.items():
        if network.overlaps(ipaddress.IPv4Network(taken)):
            raise InvalidInput(
                f"spec.cidr: {spec.cidr} can't be used for workloads: {taken} {why}",
                field="spec.cidr",
                hint="choose a private range, in 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16",
            )


def gateway_of(cidr: str) -> str:
    return str(read_cidr(cidr).network_address + 1)


NETWORKS_BY_UID = Index("networks by uid")

NETWORK = Kind(
    name="network",
    plural="networks",
    title="network",
    summary="A tenant network",
    spec=NetworkSpec,
    status=NetworkStatus,
    indexes={NETWORKS_BY_UID: uid_of},
    references=(share_reference(),),
    verbs=(SHARE,),
    in_backups="kept",
    access=Access(
        readers="project",
        further_rights=find_rights,
        status_writer="networks",
        shared_fields=(
            *("spec.cidr", "spec.mtu", "spec.domain", "status.phase"),
            *("status.gateway", "status.used", "status.size"),
        ),
    ),
    admission=Admission(
        check=check_network,
        check_new=check_new_network,
        kept_fields=("shared_with",),
    ),
    display=Display(
        topic="Storage and networks",
        columns=(
            NAME,
            Column("CIDR", text("spec.cidr"), keep=True),
            Column("GATEWAY", text("status.gateway")),
            Column("VNI", text("status.vni"), align="right"),
            Column("OPEN", joined("spec.open"), wide=True),
            Column(
                "USED", lambda o: f"{(o.get('status') or {}).get('used', 0)}/{(o.get('status') or {}).get('size', 0)}"
            ),
            AGE,
        ),
    ),
    lifetime=Lifetime(goals={"create": reaches("Ready")}),
)
