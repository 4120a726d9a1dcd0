"""A workload's NICs, the free addresses of its networks, and the endpoint that gives it one. Pure but for the book.

For the scheduler, which gives a workload its addresses in the commit that places it, and for the controller of addresses, which
handles all others. An address is an endpoint's key, so the store itself refuses to give one twice.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections import Counter
from collections.abc import Container, Iterable, Sequence, Set
from heapq import heappop, heappush

import msgspec

from weft.informer.shares import describe_missing, find_named
from weft.informer.view import Changed, Item, View
from weft.informer.workloads import find_hostname, spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_WORKLOAD, AllocatedNic
from weft.kinds.endpoint import ENDPOINT, ENDPOINTS_BY_WORKLOAD, EndpointSpec, EndpointStatus, endpoint_name
from weft.kinds.network import NetworkSpec, NetworkStatus, read_cidr
from weft.kinds.node import NodeReport
from weft.kinds.parts.nic import DRAWN_MACS, Nic, choose_endpoint, mac_of, make_nic, read_nic
from weft.kinds.parts.node.orphan import read_copies
from weft.kinds.parts.workload import WITHOUT_NETWORKS
from weft.objects.envelope import Condition
from weft.objects.identity import object_key


class AddressProblem(msgspec.Struct, frozen=True):
    """Why a workload can't have an address."""

    reason: str
    message: str
    lasts: bool = True  # until an address of the network is returned


class WorkloadNic(msgspec.Struct, frozen=True):
    """One NIC that a workload's spec names."""

    index: int  # in the spec's list
    wanted: Nic
    network: Item
    endpoint: Item | None  # None: it has no address yet
    reserved: EndpointSpec | None = None  # the address of the endpoint that it gets

    @property
    def address(self) -> str:
        """``blue 10.20.0.15``, once an address is given or reserved."""
        spec = self.reserved if self.endpoint is None else self.endpoint.spec(EndpointSpec)
        return f"{self.wanted.network} {spec.address}" if spec is not None else ""

    def allocate(self, made: Item | None = None) -> AllocatedNic:
        """The NIC for its allocation; ``made`` is its new endpoint, if it had none."""
        endpoint = self.endpoint or made
        assert endpoint is not None, self.wanted.network
        spec, status = self.network.spec(NetworkSpec), self.network.status(NetworkStatus)
        return make_nic(endpoint.envelope, endpoint.spec(EndpointSpec), self.network.envelope, spec, status)


def which_joins(network: Item) -> object:
    """The part of a network that decides whether workloads may join it."""
    return network.uid, network.status(NetworkStatus).vni, network.spec(NetworkSpec).shared_with


def awaits_place(view: View, workload: Item) -> bool:
    """Whether it isn't placed and may be: then the scheduler gives it the addresses that it lacks."""
    spec = spec_of(workload)
    unplaced = not view.count(ALLOCATIONS_BY_WORKLOAD, workload.uid)
    return unplaced and not workload.deleting and spec.run == "run" and not spec.hold


def read_nics(view: View, workload: Item) -> tuple[list[WorkloadNic], AddressProblem | None]:
    """A workload's NICs in the networks that are ready, and the problem of the first of the others."""
    nics: list[WorkloadNic] = []
    problem: AddressProblem | None = None
    networks = spec_of(workload).networks
    endpoints = view.find(ENDPOINTS_BY_WORKLOAD, workload.uid) if networks else []
    for index, wanted in enumerate(map(read_nic, networks)):
        network = find_named(view, workload, "network", wanted.network)
        if network is not None and network.status(NetworkStatus).vni:
            nics.append(WorkloadNic(index, wanted, network, choose_endpoint(endpoints, network.uid, wanted)))
        elif problem is None:
            why = f'network "{wanted.network}" {describe_missing(workload, wanted.network)}'
            why = why if network is None else f"network {wanted.network} is being created"
            problem = AddressProblem("networkNotReady", why, lasts=False)
    return nics, problem


class _Pool:
    """One network's addresses: those that are ``taken``; those below ``next_free`` that were ``returned``, and are free unless they
    are taken again; and the MACs in use. To take one needs no search."""

    __slots__ = ("macs", "next_free", "returned", "taken")

    def __init__(self) -> None:
        self.taken: dict[int, str] = {}  # with the MAC of each
        # By how many addresses: a VM may arrive with one that is reserved here for a commit, which fails then.
        self.macs: Counter[str] = Counter()
        self.next_free = 0
        self.returned: list[int] = []  # a heap; an address that is taken again stays in it until it comes up

    def add(self, spec: EndpointSpec) -> None:
        self._forget(_number(spec.address))
        self.taken[_number(spec.address)] = spec.mac
        self.macs[spec.mac] += 1

    def drop(self, spec: EndpointSpec) -> None:
        self._forget(_number(spec.address))
        self.free(_number(spec.address))

    def _forget(self, number: int) -> None:
        mac = self.taken.pop(number, None)
        if mac is None:
            return
        self.macs[mac] -= 1
        if not self.macs[mac]:
            del self.macs[mac]

    def free(self, number: int) -> None:
        if number < self.next_free:
            heappush(self.returned, number)

    def take(self, cidr: ipaddress.IPv4Network, held: Set[int]) -> int | None:
        """The lowest free address that isn't ``held``; None if there is none. The first address is the gateway's, the last for
        broadcasts."""
        while self.returned:
            number = heappop(self.returned)
            if number not in self.taken and number not in held:
                return number
        number = max(self.next_free, int(cidr.network_address) + 2)
        while number in self.taken or number in held:
            number += 1
        self.next_free = number
        if number >= int(cidr.broadcast_address):
            return None
        self.next_free += 1
        return number


class AddressBook:
    """The taken addresses by network: from the changes of endpoints and nodes, and from reservations here."""

    def __init__(self) -> None:
        self._pools: dict[str, _Pool] = {}
        self._held: dict[str, Counter[int]] = {}  # by network: addresses of guests that no endpoint explains

    def notice_endpoint(self, change: Changed) -> None:
        old = change.old.spec(EndpointSpec) if change.old is not None else None
        new = change.new.spec(EndpointSpec) if change.new is not None else None
        if _place_of(old) == _place_of(new):
            return
        if old is not None and (pool := self._pools.get(old.network_uid)) is not None:
            pool.drop(old)
            if not pool.taken:
                del self._pools[old.network_uid]
        if new is not None:
            self._pools.setdefault(new.network_uid, _Pool()).add(new)

    def notice_node(self, change: Changed) -> None:
        """Guests that a restored store doesn't have run on and use their addresses: no other workload may get these."""
        for item, count in ((change.old, -1), (change.new, 1)):
            copies = read_copies(item.report(NodeReport)) if item is not None else []
            for nic in (nic for copy in copies for nic in copy.spec.nics):
                held, number = self._held.setdefault(nic.network_uid, Counter()), _number(nic.address)
                held[number] += count
                if held[number] <= 0:
                    del held[number]
                    if (pool := self._pools.get(nic.network_uid)) is not None:
                        pool.free(number)

    def reserve(self, view: View, workload: Item, nic: WorkloadNic, own_macs: set[str]) -> WorkloadNic | AddressProblem:
        """``nic`` with an address that counts as taken from now on, or why there is none. ``own_macs``: the workload's, in any
        network; the new one is added."""
        network, name = nic.network, nic.wanted.network
        pool = self._pools.setdefault(network.uid, _Pool())
        if nic.wanted.address is not None:  # admission made its endpoint; a restored store may have lost it
            address, mac = nic.wanted.address, mac_of(nic.wanted.address)
            key = object_key("endpoint", None, endpoint_name(network.uid, address))
            if _number(address) in pool.taken or view.get(key) is not None:
                return AddressProblem("addressInUse", f"address {address} in network {name} is already in use")
        else:
            cidr = network.spec(NetworkSpec).cidr
            number = pool.take(read_cidr(cidr), self._held.get(network.uid, Counter()).keys())
            if number is None:
                return AddressProblem("networkFull", f"network {name} ({cidr}) has no free address")
            address = str(ipaddress.IPv4Address(number))
            mac = choose_mac(network.uid, address, (pool.macs, own_macs))
        own_macs.add(mac)
        spec = EndpointSpec(
            workload=workload.envelope.ref,
            network=name,
            network_uid=network.uid,
            index=nic.index,
            mac=mac,
            address=address,
            hostname=find_hostname(workload),
        )
        pool.add(spec)
        return msgspec.structs.replace(nic, reserved=spec)

    def give_back(self, view: View, specs: Iterable[EndpointSpec]) -> None:
        """Free the reserved addresses that became no endpoint."""
        for spec in specs:
            pool = self._pools.get(spec.network_uid)
            key = object_key("endpoint", None, endpoint_name(spec.network_uid, spec.address))
            if pool is not None and view.get(key) is None:
                pool.drop(spec)


def _place_of(spec: EndpointSpec | None) -> object:
    return (spec.network_uid, spec.address, spec.mac) if spec is not None else None


def _number(address: str) -> int:
    return int(ipaddress.IPv4Address(address))


def choose_mac(network_uid: str, address: str, taken: Sequence[Container[str]]) -> str:
    """A MAC of QEMU's range, derived from network and address, that is in none of ``taken``."""
    attempt = 0
    while True:
        digest = hashlib.sha256(f"{network_uid}/{address}/{attempt}".encode()).digest()
        mac = DRAWN_MACS + ":".join(f"{byte:02x}" for byte in digest[:3])
        if not any(mac in macs for macs in taken):
            return mac
        attempt += 1


def make_endpoint(
    workload: Item, spec: EndpointSpec, status: EndpointStatus, now: float, *, uid: str | None = None
) -> Item:
    """A workload's endpoint as a whole object."""
    name, owner = endpoint_name(spec.network_uid, spec.address), workload.envelope
    return Item(ENDPOINT.make(name, spec, now, uid=uid or "", owner=owner, status=status), spec=spec)


def make_addressed(
    workload: Item, nics: Sequence[WorkloadNic], problem: AddressProblem | None, now: float
) -> Condition:
    """The condition Addressed of a workload with these NICs."""
    generation = workload.envelope.generation
    if problem is not None:
        return Condition("Addressed", "False", problem.reason, problem.message, now, generation)
    if not nics:
        return msgspec.structs.replace(WITHOUT_NETWORKS, since=now, generation=generation)
    addresses = ", ".join(nic.address for nic in nics)
    return Condition("Addressed", "True", "Addressed", addresses, now, generation)
