"""When an endpoint that leaves has departed, and what nodes are asked to confirm."""

from __future__ import annotations

from typing import Any

import msgspec

from weft.controllers.deployment.instance_state import find_departed, find_unready
from weft.controllers.service.controller import Services, make_served
from weft.controllers.service.facts import note_departures, read_member
from weft.controllers.service.plan import DRAINING, MOST_LEAVING, ServiceMember, plan_endpoints
from weft.informer.view import Changed, Item, View, make_view
from weft.kinds.endpoint import EndpointSpec, EndpointStatus, ServedTarget
from weft.kinds.node import NodeReport, NodeStatus
from weft.kinds.service import MOST_ENDPOINTS, ServiceEndpoint, ServiceSpec, ServiceStatus
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Envelope
from weft.objects.identity import Ref

NETWORK = Item(Envelope(kind="network", name="default", uid="net", project="default"))
SPEC = ServiceSpec(selector={"app": "web"}, ports=["80:8080"])


def raw(part: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(part))


def service_of(*endpoints: ServiceEndpoint, name: str = "shop", **status: Any) -> Item:
    stands = ServiceStatus(**{"phase": "Ready", "endpoints": list(endpoints), **status})
    of = Envelope(kind="service", name=name, uid=f"uid-{name}", project="default", spec=raw(SPEC), status=raw(stands))
    return Item(of)


def endpoint(name: str, **fields: Any) -> ServiceEndpoint:
    return ServiceEndpoint(workload=Ref("vm", name, f"uid-{name}", "default"), address="10.0.0.2", **fields)


def vm(name: str, run: str = "run", **labels: str) -> Item:
    spec = raw(VmSpec(image="tiny", run=run))  # type: ignore[arg-type]
    of = Envelope(
        kind="vm", name=name, uid=f"uid-{name}", project="default", spec=spec, labels={"app": "web", **labels}
    )
    return Item(of)


def node(name: str, *departed: str, phase: str = "Ready") -> Item:
    report, status = NodeReport(departed=list(departed)), NodeStatus(phase=phase)
    return Item(Envelope(kind="node", name=name, uid=f"uid-{name}", report=raw(report), status=raw(status)))


def view_of(*items: Item) -> View:
    """With an endpoint on node n1."""
    view, ref = make_view(), Ref("vm", "w1", "uid-w1", "default")
    spec = EndpointSpec(workload=ref, network="default", network_uid="net", index=0, mac="m", address="10.0.0.2")
    there = EndpointStatus(node="n1")
    own = Item(Envelope(kind="endpoint", name="net.10.0.0.2", uid="e", spec=raw(spec), status=raw(there)))
    for item in (own, *items):
        view.put_item(item.key, item)
    return view


def leaving(name: str, **fields: Any) -> ServiceMember:
    ref = Ref("vm", name, f"uid-{name}", "default")
    return ServiceMember(workload=ref, labels={}, address="10.0.0.2", leaves=DRAINING, **fields)


def test_a_stopped_workload_has_departed_and_no_node_is_asked_of_it() -> None:
    stopped, view = vm("w1", run="stop"), view_of(node("n1"))
    service = service_of()
    member = read_member(view, service, NETWORK, stopped, was_ready=False)
    assert member.leaves and not member.reachable
    found = note_departures(view, service, NETWORK, [msgspec.structs.replace(member, address="10.0.0.2")], 50.0)
    endpoints, _ = plan_endpoints(found, [], {})
    assert endpoints[0].departed_at == 50.0
    assert [one.leaves for one in make_served(SPEC, endpoints).targets] == [False]


def test_nodes_are_asked_only_until_they_have_confirmed() -> None:
    before = endpoint("w1", leaves=True, reason=DRAINING)
    asked = [one.leaves for one in make_served(SPEC, [before]).targets]
    view, service = view_of(node("n1", "uid-shop/10.0.0.2")), service_of(before)
    found = note_departures(view, service, NETWORK, [leaving("w1")], 50.0)
    endpoints, _ = plan_endpoints(found, [], {})
    assert (asked, endpoints[0].departed_at) == ([True], 50.0)
    assert [one.leaves for one in make_served(SPEC, endpoints).targets] == [False]
    again = note_departures(view_of(node("n1")), service_of(*endpoints), NETWORK, [leaving("w1")], 60.0)
    assert again[0].departed_at == 50.0, "it stays so though nodes don't report it any more"


def test_what_leaves_keeps_its_place_beside_as_many_others_as_can_be_endpoints() -> None:
    others = [
        ServiceMember(workload=Ref("vm", f"w{number:03}", f"uid-w{number:03}", "default"), labels={})
        for number in range(MOST_ENDPOINTS)
    ]
    gone = [leaving(f"x{number:03}", is_endpoint=True) for number in range(MOST_LEAVING + 5)]
    [kept] = [one for one in plan_endpoints([*others, gone[0]], [], {})[0] if one.leaves]
    assert kept.workload.name == "x000" and kept.departed_at is None
    found, more = plan_endpoints([*others, *gone], [], {})
    assert sum(one.leaves for one in found) == MOST_LEAVING and more == MOST_LEAVING + 5, "the others have most places"
    departed = [leaving("x000", is_endpoint=True, departed_at=5.0), *gone[1:]]
    assert "x000" not in {one.workload.name for one in plan_endpoints([*others, *departed], [], {})[0]}
    never = [leaving("x000"), leaving("x001", is_endpoint=True, reachable=False)]
    assert not any(one.leaves for one in plan_endpoints([*others, *never], [], {})[0])


def test_a_service_that_does_not_say_which_its_endpoints_are_does_not_end_a_drain() -> None:
    workload = vm("w1")
    assert find_departed(workload, []) == 0.0
    assert find_departed(workload, [service_of()]) == 0.0
    assert find_departed(workload, [service_of(endpoint("w1", leaves=True, departed_at=7.0))]) == 7.0
    assert find_departed(workload, [service_of(endpoint("w1", leaves=True))]) is None
    assert find_departed(workload, [service_of(endpoint("w2"), more=1)]) is None
    assert find_departed(workload, [service_of(phase="Pending", reason="networkNotReady")]) is None


def test_one_that_is_silent_and_keeps_its_connections_is_known_to_be_silent() -> None:
    silent = endpoint("w1", silent=True, weight=500, reason="it does not answer")
    assert find_unready(vm("w1"), [service_of(silent)], 0.0) == ("", True)
    assert find_unready(vm("w1"), [service_of(endpoint("w1", ready=True, weight=500))], 0.0) == ("", False)


def test_a_node_s_change_wakes_only_the_services_that_may_have_waited_for_it() -> None:
    waits = service_of(endpoint("w1", leaves=True), name="waits")
    done = service_of(endpoint("w1", leaves=True, departed_at=5.0), name="done")
    other = service_of(endpoint("w2", leaves=True), name="other")
    view, services = view_of(waits, done, other), Services()

    def woken(old: Item, new: Item) -> list[str]:
        return list(services.route(view, Changed(new.key, old, new)))

    said = node("n1", "uid-waits/10.0.0.2", "uid-done/10.0.0.2")
    assert woken(node("n1", "uid-done/10.0.0.2"), said) == [waits.key]
    assert woken(said, node("n1")) == [], "that it reports less ends no wait"
    assert woken(node("n1"), node("n1", phase="NotReady")) == [other.key, waits.key]


def test_a_node_that_still_reports_an_earlier_departure_has_not_confirmed_this_one() -> None:
    def pass_(service: Item, *departed: str, leaves: bool, now: float) -> tuple[Item, list[ServedTarget]]:
        member = leaving("w1") if leaves else msgspec.structs.replace(leaving("w1"), leaves="")
        found = note_departures(view_of(node("n1", *departed)), service, NETWORK, [member], now)
        endpoints, _ = plan_endpoints(found, [], {})
        return service_of(*endpoints), make_served(SPEC, endpoints).targets

    service, [asked] = pass_(service_of(endpoint("w1")), leaves=True, now=50.0)
    assert (asked.leaves, asked.departure) == (True, 50_000)
    service, [asked] = pass_(service, "uid-shop/10.0.0.2", leaves=True, now=51.0)
    assert (asked.leaves, asked.departure) == (True, 50_000), "what an agent says of a departure without number"
    service, [asked] = pass_(service, "uid-shop/10.0.0.2/50000", leaves=True, now=52.0)
    assert service.status(ServiceStatus).endpoints[0].departed_at == 52.0 and not asked.leaves
    service, [asked] = pass_(service, "uid-shop/10.0.0.2/50000", leaves=False, now=53.0)
    assert (asked.leaves, asked.departure) == (False, 0)
    service, [asked] = pass_(service, "uid-shop/10.0.0.2/50000", leaves=True, now=53.1)  # the report is as it was
    service, [asked] = pass_(service, "uid-shop/10.0.0.2/50000", leaves=True, now=53.2)
    assert (asked.leaves, asked.departure) == (True, 53_100)
    service, [asked] = pass_(service, "uid-shop/10.0.0.2/53100", leaves=True, now=54.0)
    assert service.status(ServiceStatus).endpoints[0].departed_at == 54.0


def test_a_departure_that_an_older_server_began_is_confirmed_without_a_number() -> None:
    before = endpoint("w1", leaves=True, reason=DRAINING)
    [found] = note_departures(
        view_of(node("n1", "uid-shop/10.0.0.2")), service_of(before), NETWORK, [leaving("w1")], 50.0
    )
    assert (found.departure, found.departed_at) == (0, 50.0)
