"""Numbers on the wire, addresses and MACs: each once."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.long import examples

from weft.controllers.network.controller import FIRST_VNI, LAST_VNI, choose_vni, plan_status
from weft.controllers.workload.controller import read_addresses
from weft.informer.addresses import AddressBook, AddressProblem, WorkloadNic, choose_mac
from weft.informer.view import Item, make_view
from weft.kinds.allocation import AllocatedImage, AllocatedNic, AllocationSpec, Resources
from weft.kinds.endpoint import EndpointSpec, endpoint_name
from weft.kinds.network import NetworkSpec
from weft.kinds.parts.nic import Nic
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope
from weft.objects.identity import Ref


def network(cidr: str, uid: str = "u") -> Item:
    spec = msgspec.Raw(msgspec.json.encode(NetworkSpec(cidr=cidr)))
    return Item(Envelope(kind="network", name="blue", uid=uid, project="default", spec=spec))


def endpoint(address: str, mac: str) -> EndpointSpec:
    return EndpointSpec(
        workload=Ref("vm", "web", "v", "default"), network="blue", network_uid="u", index=0, mac=mac, address=address
    )


def make_endpoint_item(spec: EndpointSpec) -> Item:
    return Item(_envelope("endpoint", endpoint_name(spec.network_uid, spec.address), f"e-{spec.address}", spec))


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(st.one_of(st.sampled_from(["reserve", "land", "fail"]), st.integers(0, 20)), max_size=60))
def test_the_lowest_free_address_is_given_and_none_twice(history: list[str | int]) -> None:
    view, book, blue = make_view(), AddressBook(), network("10.9.0.0/28")
    vm = Item(_envelope("vm", "web", "v", VmSpec(image="tiny", networks=["blue"])))
    held: dict[str, EndpointSpec] = {}
    reserved: dict[str, EndpointSpec] = {}
    usable = [str(a) for a in list(ipaddress.ip_network("10.9.0.0/28").hosts())[1:]]
    for action in history:
        if action == "reserve":
            got = book.reserve(view, vm, WorkloadNic(0, Nic("blue"), blue, None), set())
            free = [a for a in usable if a not in held and a not in reserved]
            if isinstance(got, AddressProblem):
                assert not free and (got.reason, got.lasts) == ("networkFull", True)
                continue
            assert got.reserved is not None and got.reserved.address == free[0]
            reserved[free[0]] = got.reserved
        elif action in ("land", "fail"):
            if action == "land":
                for spec in reserved.values():
                    item = make_endpoint_item(spec)
                    book.notice_endpoint(view.put_item(item.key, item))
                held |= reserved
            book.give_back(view, reserved.values())
            reserved.clear()
        elif held:
            address = sorted(held)[int(action) % len(held)]
            change = view.drop(make_endpoint_item(held.pop(address)).key)
            assert change is not None
            book.notice_endpoint(change)
    everything = [*held.values(), *reserved.values()]
    assert len({spec.mac for spec in everything}) == len(everything)


def test_a_chosen_address_is_given_to_one_only() -> None:
    view, book, blue = make_view(), AddressBook(), network("10.9.0.0/28")
    vm = Item(_envelope("vm", "web", "v", VmSpec(image="tiny", networks=["blue:10.9.0.2"])))
    chosen = WorkloadNic(0, Nic("blue", "10.9.0.2"), blue, None)
    first = book.reserve(view, vm, chosen, set())
    assert isinstance(first, WorkloadNic) and first.reserved is not None
    again = book.reserve(view, vm, chosen, set())
    assert isinstance(again, AddressProblem) and again.reason == "addressInUse"
    other = book.reserve(view, vm, WorkloadNic(1, Nic("blue"), blue, None), set())
    assert isinstance(other, WorkloadNic) and other.reserved is not None and other.reserved.address == "10.9.0.3"
    book.give_back(view, [first.reserved])
    assert isinstance(book.reserve(view, vm, chosen, set()), WorkloadNic)


def test_macs_are_unicast_local_and_never_the_same_twice() -> None:
    taken: set[str] = set()
    for number in range(3000):
        mac = choose_mac("u", f"10.0.{number // 256}.{number % 256}", (taken,))
        assert mac.startswith("52:54:00:") and mac not in taken
        taken.add(mac)
    assert choose_mac("u", "10.0.0.1", (taken,)) not in taken


@given(st.lists(st.uuids(), unique=True, max_size=50))
def test_every_network_has_its_own_number_on_the_wire(uids: list[object]) -> None:
    taken: set[int] = set()
    for uid in uids:
        vni = choose_vni(str(uid), taken)
        assert FIRST_VNI <= vni <= LAST_VNI and vni not in taken
        taken.add(vni)


def test_a_network_made_anew_does_not_get_the_number_of_the_old_one() -> None:
    assert choose_vni("old", set()) != choose_vni("new", set())
    first = choose_vni("u", set())
    assert choose_vni("u", {first}) == first + 1


def test_a_networks_status_tells_gateway_and_room() -> None:
    status = plan_status(network("10.20.0.0/24"), 3, set())
    assert (status.phase, status.gateway, status.used, status.size) == ("Ready", "10.20.0.1", 3, 253)


@pytest.mark.parametrize("used", ["e1", "e2"])
def test_the_address_that_a_guest_has_is_told_before_the_one_that_it_is_to_have(used: str) -> None:
    view = make_view()
    vm = Item(_envelope("vm", "web", "v", VmSpec(image="tiny", networks=["blue"])))
    addresses = {"e1": "10.9.0.2", "e2": "10.9.0.3"}
    for uid, address in addresses.items():
        item = Item(_envelope("endpoint", f"u.{address}", uid, endpoint(address, "52:54:00:00:00:02")))
        view.put_item(item.key, item)
    nic = AllocatedNic(
        uid=used, network="blue", network_uid="u", vni=1, cidr="10.9.0.0/28", gateway="10.9.0.1", mtu=1450, domain="weft",
        nat=True, mac="52:54:00:00:00:02", address=addresses[used],
    )  # fmt: skip
    spec = AllocationSpec(
        node="n1", node_uid="n", workload=vm.envelope.ref, workload_generation=1, incarnation=1, resources=Resources(),
        image=AllocatedImage(name="tiny", uid="i", sha256="0" * 64, size=1, url="/"), nics=[nic],
    )  # fmt: skip
    assert read_addresses(view, vm, Item(_envelope("allocation", "n.a", "a", spec))) == {"blue": addresses[used]}


def _envelope(kind: str, name: str, uid: str, spec: msgspec.Struct) -> Envelope:
    project = "default" if kind == "vm" else None
    return Envelope(kind=kind, name=name, uid=uid, project=project, spec=msgspec.Raw(msgspec.json.encode(spec)))


def test_a_drawn_mac_that_a_vm_arrived_with_meanwhile_stays_taken_once_the_draw_is_given_back() -> None:
    view, book, blue = make_view(), AddressBook(), network("10.9.0.0/28")
    vm = Item(_envelope("vm", "web", "v", VmSpec(image="tiny", networks=["blue"])))
    drawn = book.reserve(view, vm, WorkloadNic(0, Nic("blue"), blue, None), set())
    assert isinstance(drawn, WorkloadNic) and drawn.reserved is not None
    arrived = make_endpoint_item(endpoint("10.9.0.9", drawn.reserved.mac))
    book.notice_endpoint(view.put_item(arrived.key, arrived))
    book.give_back(view, [drawn.reserved])  # its commit failed
    again = book.reserve(view, vm, WorkloadNic(0, Nic("blue"), blue, None), set())
    assert isinstance(again, WorkloadNic) and again.reserved is not None
    assert (again.reserved.address, again.reserved.mac == drawn.reserved.mac) == (drawn.reserved.address, False)
    change = view.drop(arrived.key)
    assert change is not None
    book.notice_endpoint(change)
    book.give_back(view, [again.reserved])
    last = book.reserve(view, vm, WorkloadNic(0, Nic("blue"), blue, None), set())
    assert isinstance(last, WorkloadNic) and last.reserved == drawn.reserved, "nobody has it any more"
