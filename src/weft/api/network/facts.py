"""Facts for a trace: the two ends, and the networks, groups and hosts between them, as the nodes get them."""

from __future__ import annotations

from typing import Literal

import msgspec

from weft.contracts.driver.network import Endpoint, Filter
from weft.contracts.network.rules import Opened, RefusedDestinations, make_filter
from weft.kinds.allocation import AllocatedGroup, AllocatedNic

Protocol = Literal["tcp", "udp", "icmp"]
EVERYWHERE = "0.0.0.0/0"


class Network(msgspec.Struct, frozen=True):
    uid: str
    name: str  # network/blue, of another project network/physics/lab
    cidr: str
    nat: bool
    endpoints: tuple[Endpoint, ...]  # those that are plugged in
    services: tuple[str, ...]  # addresses
    open: tuple[str, ...] = ()  # of hosts, as its spec has it
    egress: dict[str, str] = {}  # the nodes' own addresses, by which their proxies reach endpoints, by node


class Group(msgspec.Struct, frozen=True):
    """A security group, with its rules as people wrote them."""

    allocated: AllocatedGroup
    ingress: tuple[str, ...] = ()
    egress: tuple[str, ...] = ()


class Workload(msgspec.Struct, frozen=True):
    kind: str
    name: str
    project: str
    shown: str  # vm/a, of another project vm/physics/a
    networks: tuple[str, ...] = ()  # as its spec names them
    nics: tuple[AllocatedNic, ...] = ()  # in its order, those with an address
    groups: tuple[Group, ...] = ()
    node: str = ""  # where it is plugged in; "": nowhere
    node_address: str = ""
    silent: str = ""  # why nothing comes from it or answers there, whatever the rules say

    def filter(self, nic: AllocatedNic, network: Network) -> Filter | None:
        """The rules that its node applies at that NIC; None without security groups."""
        if not self.groups:
            return None
        groups = [group.allocated for group in self.groups]
        return make_filter(nic.uid, nic, groups, network.endpoints, network.services)


class Caller(msgspec.Struct, frozen=True):
    """A machine outside the fabric, or all of them."""

    address: str = EVERYWHERE

    @property
    def shown(self) -> str:
        return "internet" if self.address == EVERYWHERE else self.address


class Backend(msgspec.Struct, frozen=True):
    """An endpoint of a service that gets connections."""

    workload: Workload
    address: str


class Balanced(msgspec.Struct, frozen=True):
    """A service, in one network."""

    shown: str
    network: Network
    address: str
    ports: dict[tuple[str, int], int]  # (protocol, port): its endpoints' port
    backends: tuple[Backend, ...]
    http: bool = False


class Published(msgspec.Struct, frozen=True):
    """A published port, and where it leads."""

    shown: str  # publishedport/tcp-8080
    port: int
    protocol: Literal["tcp", "udp"]
    target_port: int
    leads_to: Workload | Balanced


class NetworkAddress(msgspec.Struct, frozen=True):
    """An address. ``is_all``: of the internet as a whole. ``network``: the name of the own project's other network that has it."""

    address: str
    is_all: bool = False
    network: str = ""

    @property
    def shown(self) -> str:
        return "internet" if self.is_all else self.address


class Anothers(msgspec.Struct, frozen=True):
    """Another project's holder of an address, which nobody here may see."""

    address: str

    @property
    def shown(self) -> str:
        return self.address


TraceTarget = Workload | Balanced | Published | NetworkAddress | Anothers


class ReachabilityFacts(msgspec.Struct, frozen=True):
    source: Workload | Caller
    target: TraceTarget
    networks: dict[str, Network]  # by uid: those of both ends
    refused: RefusedDestinations
    opened: Opened
    protocol: Protocol
    port: int  # 0 of icmp
    source_nic: str = ""  # only this one: a network's name, or an address
    target_nic: str = ""
