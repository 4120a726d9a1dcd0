"""Gives each VM an address and a MAC in each of its networks, and says where its NICs and published ports are plugged in.

Reads VMs, networks, endpoints, published ports, allocations, nodes, functions; writes endpoints, publishedport.status and the VM's
condition Addressed. Woken by VMs, by networks that become ready, by allocations that come or go, by nodes that move. It keeps
the endpoints that nodes have for the sake of functions, too (``egress_endpoints``).
An address is an endpoint's key, so the store itself refuses to give one twice.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Sequence, Set

import msgspec

from weft.contracts.journal import Event
from weft.contracts.store import Absent, Precondition, Present, Write
from weft.controllers.allocation.active import active_allocation
from weft.controllers.function.egress_endpoints import plan_egress_endpoint, route_egress_endpoints
from weft.controllers.loop import Plan, has_changed
from weft.informer.commit import Commit, delete, edit, put, unchanged
from weft.informer.view import Changed, Item, View
from weft.informer.workloads import spec_of
from weft.kinds.allocation import ALLOCATIONS_BY_NODE, AllocatedNic, AllocationSpec
from weft.kinds.endpoint import ENDPOINTS_BY_WORKLOAD, EndpointSpec, EndpointStatus, endpoint_name
from weft.kinds.network import NetworkSpec, NetworkStatus, read_cidr
from weft.kinds.node import NODES_BY_UID, NodeReport
from weft.kinds.parts.nic import Nic, choose_endpoint, mac_of, read_nic
from weft.kinds.parts.orphan import read_copies
from weft.kinds.parts.workload import WITHOUT_NETWORKS, WORKLOADS_BY_NETWORK, WORKLOADS_BY_UID
from weft.kinds.published_port import PUBLISHED_PORTS_BY_WORKLOAD, PublishedPortSpec, PublishedPortStatus
from weft.kinds.registry import WORKLOADS, is_workload
from weft.objects.envelope import Condition, Envelope, merge_part, set_condition
from weft.objects.identity import new_uid, object_key

SOURCE = "addresses"
LACKING_SECONDS = 5.0


class AddressPool:
    """What is taken in one network: ``floor`` and all below it, and what was promised to the batch in hand."""

    __slots__ = ("addresses", "floor", "macs", "promised", "promised_macs")

    def __init__(self) -> None:
        self.addresses: set[int] = set()
        self.macs: set[str] = set()
        self.floor = 0
        self.promised = 0
        self.promised_macs: set[str] = set()

    def add(self, spec: EndpointSpec) -> None:
        self.addresses.add(int(ipaddress.IPv4Address(spec.address)))
        self.macs.add(spec.mac)

    def drop(self, spec: EndpointSpec) -> None:
        address = int(ipaddress.IPv4Address(spec.address))
        self.addresses.discard(address)
        self.macs.discard(spec.mac)
        self.floor = min(self.floor, address - 1)

    def promise(self, network: Item, own_macs: set[str], held: Set[int]) -> tuple[str, str] | None:
        """The lowest free address that isn't ``held``, and a MAC for it; None if the network is full. The first address
        is the gateway's, the last for broadcasts."""
        cidr = read_cidr(network.spec(NetworkSpec).cidr)
        self.floor = max(self.floor, int(cidr.network_address) + 1)
        while self.floor + 1 in self.addresses:
            self.floor += 1
        number = max(self.floor, self.promised) + 1
        while number in self.addresses or number in held:
            number += 1
        if number >= int(cidr.broadcast_address):
            return None
        address = str(ipaddress.IPv4Address(number))
        mac = choose_mac(network.uid, address, (self.macs, self.promised_macs, own_macs))
        self.promised = number
        self.promised_macs.add(mac)
        return address, mac

    def forget_promises(self) -> None:
        self.promised = 0
        self.promised_macs.clear()


def choose_mac(network_uid: str, address: str, taken: Sequence[set[str]]) -> str:
    """A MAC of QEMU's range that follows from network and address and is in none of ``taken``."""
    attempt = 0
    while True:
        digest = hashlib.sha256(f"{network_uid}/{address}/{attempt}".encode()).digest()
        mac = "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])
        if not any(mac in macs for macs in taken):
            return mac
        attempt += 1


class Addresses:
    name = "addresses"
    kinds = (*WORKLOADS, "network", "endpoint", "publishedport", "allocation", "node", "function", "functionversion")

    def __init__(self) -> None:
        self._books: dict[str, AddressPool] = {}
        self._orphans: dict[str, list[AllocatedNic]] = {}  # by node: NICs of guests that no endpoint explains

    def route(self, view: View, change: Changed) -> Iterable[str]:
        return [*self._route_workloads(view, change), *route_egress_endpoints(view, change)]

    def _route_workloads(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case "endpoint":
                self._note(change)
                return _workloads(view, change.item.spec(EndpointSpec).workload.uid)
            case "publishedport":
                return _workloads(view, change.item.spec(PublishedPortSpec).workload.uid)
            case "allocation":
                if has_changed(change, _leads_to):
                    return _workloads(view, change.item.spec(AllocationSpec).workload.uid)
            case "network":
                if has_changed(change, lambda item: (item.uid, item.status(NetworkStatus).vni)):
                    return [item.key for item in view.find(WORKLOADS_BY_NETWORK, change.key)]
            case "node":
                if has_changed(change, lambda item: (item.uid, item.report(NodeReport).orphan_allocations)):
                    self._note_orphans(change)
                if has_changed(change, lambda item: (item.uid, item.report(NodeReport).address)):
                    allocations = view.find(ALLOCATIONS_BY_NODE, change.item.uid)
                    return [key for a in allocations for key in _workloads(view, a.spec(AllocationSpec).workload.uid)]
            case kind if is_workload(kind):
                if has_changed(change, _wish_of):
                    return (change.key,)
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        for book in self._books.values():
            book.forget_promises()
        plan = Plan()
        for key in keys:
            workload = view.get(key)
            if workload is not None and workload.envelope.kind == "endpoint":
                plan.commits += plan_egress_endpoint(view, workload)
            elif workload is not None and not workload.deleting:
                commit, lacks = self._plan_workload(view, workload, now)
                if commit is not None:
                    plan.commits.append(commit)
                if lacks:  # what is taken may be free again, and nothing would wake the VM
                    plan.later[key] = LACKING_SECONDS
        return plan

    def _note(self, change: Changed) -> None:
        if not has_changed(change, lambda item: item.spec(EndpointSpec)):
            return
        for item, add in ((change.old, False), (change.new, True)):
            if item is None:
                continue
            spec = item.spec(EndpointSpec)
            book = self._books.setdefault(spec.network_uid, AddressPool())
            if add:
                book.add(spec)
            else:
                book.drop(spec)

    def _note_orphans(self, change: Changed) -> None:
        """Guests that a restored store forgot: they run on, and use their addresses."""
        self._orphans.pop(change.key, None)
        copies = read_copies(change.new.report(NodeReport)) if change.new is not None else []
        if nics := [nic for copy in copies for nic in copy.spec.nics]:
            self._orphans[change.key] = nics

    def _find_held(self, network_uid: str) -> Set[int]:
        """Addresses in a network that nobody new may have."""
        nics = (nic for nics in self._orphans.values() for nic in nics if nic.network_uid == network_uid)
        return {int(ipaddress.IPv4Address(nic.address)) for nic in nics}

    def _plan_workload(self, view: View, workload: Item, now: float) -> tuple[Commit | None, bool]:
        """What is to be written for a VM, and whether it waits for an address that is taken."""
        writes: list[Write] = []
        preconditions: list[Precondition] = []
        spec = spec_of(workload)
        endpoints = list(view.find(ENDPOINTS_BY_WORKLOAD, workload.uid))
        if not spec.networks and not endpoints and not spec.publish and _says_no_networks(workload):
            return None, False
        allocation = active_allocation(view, workload.uid)
        place = _read_place(view, workload, allocation)
        addresses: list[str] = []
        problem: tuple[str, str] | None = None
        wanted: set[str] = set()
        own_macs = {item.spec(EndpointSpec).mac for item in endpoints}
        for index, nic in enumerate(map(read_nic, spec.networks)):
            name = nic.network
            network = view.get(object_key("network", workload.envelope.project, name))
            if network is None or not network.status(NetworkStatus).vni:
                said = f'network "{name}" does not exist' if network is None else f"network {name} is being created"
                problem = problem or ("networkNotReady", said)
                continue
            endpoint = choose_endpoint(endpoints, network.uid, nic)
            if endpoint is not None:
                wanted.add(endpoint.uid)
                addresses.append(f"{name} {endpoint.spec(EndpointSpec).address}")
                continue
            made = self._make_endpoint(view, workload, network, nic, index, own_macs, place, now)
            if not isinstance(made, Envelope):
                problem = problem or made
                continue
            writes.append(put(made))
            preconditions += [unchanged(workload), Absent(made.key), Present(network.key)]
            addresses.append(f"{name} {made.name.partition('.')[2]}")
        in_use = {nic.uid for nic in allocation.spec(AllocationSpec).nics} if allocation is not None else set()
        for endpoint in endpoints:
            if endpoint.uid not in wanted and endpoint.uid not in in_use and problem is None:
                writes.append(delete(endpoint))
                preconditions += [unchanged(workload), unchanged(endpoint)]
            elif endpoint.status(EndpointStatus) != place:
                writes.append(_write_status(endpoint, place))
                preconditions.append(unchanged(endpoint))
        first_network, first_address = _first_nic(allocation)
        for published_port in view.find(PUBLISHED_PORTS_BY_WORKLOAD, workload.uid):
            leads = PublishedPortStatus(
                node=place.node, node_address=place.node_address, network_uid=first_network, address=first_address
            )
            if published_port.status(PublishedPortStatus) != leads:
                writes.append(_write_status(published_port, leads))
                preconditions.append(unchanged(published_port))
        events: list[Event] = []
        lacks = problem is not None and problem[0] != "networkNotReady"
        envelope = edit(workload)
        if set_condition(envelope, _addressed(workload, addresses, problem, now)):
            writes.append(put(envelope))
            preconditions.append(unchanged(workload))
            if problem is not None and lacks:
                events.append(Event("Warning", problem[0], problem[1], workload.envelope.ref, SOURCE))
        if not writes:
            return None, lacks
        return Commit(workload.key, writes, list(dict.fromkeys(preconditions)), events), lacks

    def _make_endpoint(
        self,
        view: View,
        workload: Item,
        network: Item,
        nic: Nic,
        index: int,
        own_macs: set[str],
        place: EndpointStatus,
        now: float,
    ) -> Envelope | tuple[str, str]:
        """A NIC's endpoint, or why there can't be one."""
        name = network.envelope.name
        if nic.address is not None:  # admission made it; a restored store may have lost it
            if view.get(object_key("endpoint", None, endpoint_name(network.uid, nic.address))) is not None:
                return "addressInUse", f"address {nic.address} in network {name} is already in use"
            address, mac = nic.address, mac_of(nic.address)
        else:
            promise = self._books.setdefault(network.uid, AddressPool()).promise(
                network, own_macs, self._find_held(network.uid)
            )
            if promise is None:
                return "networkFull", f"network {name} ({network.spec(NetworkSpec).cidr}) has no free address"
            address, mac = promise
        own_macs.add(mac)
        spec = EndpointSpec(
            workload=workload.envelope.ref,
            network=name,
            network_uid=network.uid,
            index=index,
            mac=mac,
            address=address,
        )
        return make_endpoint(workload, new_uid(), spec, place, now)


def make_endpoint(workload: Item, uid: str, spec: EndpointSpec, status: EndpointStatus, now: float) -> Envelope:
    """A VM's endpoint as a whole object."""
    return Envelope(
        kind="endpoint",
        name=endpoint_name(spec.network_uid, spec.address),
        uid=uid,
        owner=workload.envelope.ref,
        created_at=now,
        spec=msgspec.Raw(msgspec.json.encode(spec)),
        status=msgspec.Raw(msgspec.json.encode(status)),
    )


def _leads_to(allocation: Item) -> object:
    """What of an allocation bears on where a NIC is: the role too, so that a swap of the sides of a move is seen."""
    spec = allocation.spec(AllocationSpec)
    return allocation.uid, spec.role, spec.nics


def _wish_of(workload: Item) -> object:
    return (workload.uid, workload.envelope.generation, workload.deleting, workload.envelope.condition("Addressed"))


def _workloads(view: View, uid: str) -> list[str]:
    return [item.key for item in view.find(WORKLOADS_BY_UID, uid)]


def _read_place(view: View, workload: Item, allocation: Item | None) -> EndpointStatus:
    if allocation is None:
        return EndpointStatus()
    keys = (object_key("securitygroup", workload.envelope.project, name) for name in spec_of(workload).security_groups)
    groups = sorted(group.uid for key in keys if (group := view.get(key)) is not None)
    spec = allocation.spec(AllocationSpec)
    nodes = view.find(NODES_BY_UID, spec.node_uid)
    address = (nodes[0].report(NodeReport).address if nodes else "") or None
    return EndpointStatus(node=spec.node, node_address=address, groups=groups)


def _first_nic(allocation: Item | None) -> tuple[str | None, str | None]:
    """Network uid and address of the NIC that published ports lead to; nowhere while there is no place."""
    nics = allocation.spec(AllocationSpec).nics if allocation is not None else []
    return (nics[0].network_uid, nics[0].address) if nics else (None, None)


def _write_status(item: Item, status: EndpointStatus | PublishedPortStatus) -> Write:
    envelope = edit(item)
    envelope.status = merge_part(envelope.status, status)
    return put(envelope)


def _says_no_networks(workload: Item) -> bool:
    said = workload.envelope.condition("Addressed")
    return said is not None and said.status == "True" and said.generation == workload.envelope.generation


def _addressed(workload: Item, addresses: list[str], problem: tuple[str, str] | None, now: float) -> Condition:
    generation = workload.envelope.generation
    if problem is not None:
        return Condition("Addressed", "False", problem[0], problem[1], now, generation)
    if not addresses:
        return msgspec.structs.replace(WITHOUT_NETWORKS, since=now, generation=generation)
    return Condition("Addressed", "True", "Addressed", ", ".join(addresses), now, generation)
