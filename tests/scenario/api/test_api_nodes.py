"""Nodes: how they join, what their certificate lets them see and write, and how they come back after amnesia."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.node_key import make_node_key
from tests.scenario.api_lab import ApiLab, JoinedNode, make_allocation, make_image, make_vm

import weft
from weft.api.object.verbs import PLACE_SECONDS
from weft.client.answer import raise_problem
from weft.contracts.clock import SystemClock
from weft.contracts.store import Delete, Precondition, Put, Write, epoch_of
from weft.controllers.node.controller import fold_node
from weft.kinds.allocation import AllocationReport, AllocationSpec, AllocationStatus, EndedBy, Resources
from weft.kinds.backup import BackupSpec, BackupStatus
from weft.kinds.fields.lease import AllocatedLease
from weft.kinds.node import NodeReport, NodeStatus
from weft.kinds.parts.snapshot.volume_work import VolumeOrder
from weft.kinds.server import SERVER, ServerSpec, ServerStatus
from weft.kinds.snapshot import SNAPSHOT, SnapshotSpec, SnapshotStatus
from weft.kinds.volume import VolumeStatus, derive_kept_uid
from weft.objects.envelope import Condition, Envelope, decode_part, encode_envelope, merge_part
from weft.objects.errors import (
    AlreadyExists,
    Forbidden,
    IllegalTransition,
    InUse,
    InvalidInput,
    NotAuthenticated,
    NotFound,
    StoreUnavailable,
    Unavailable,
    UnknownField,
)
from weft.objects.identity import Ref
from weft.objects.quantity import format_time
from weft.store.memory import MemoryStore
from weft.trust.ca import Authority, read_csr
from weft.trust.enrolment import enrolment_key
from weft.trust.probe.echo import pair_key
from weft.trust.tickets import verify_ticket


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    lab.client.create(make_image())
    yield lab
    lab.close()


def start_vm(lab: ApiLab, node: JoinedNode, name: str = "web", **spec: Any) -> tuple[dict[str, Any], str]:
    """A VM with an allocation on ``node``, as scheduler and controllers would leave it; its allocation's name."""
    vm = lab.client.create(make_vm(name, **spec))
    return vm, place_vm(lab, node, vm)


def place_vm(lab: ApiLab, node: JoinedNode, vm: dict[str, Any]) -> str:
    name = vm["name"]
    network = lab.client.get("network", "default")
    allocation = make_allocation(node, vm, network_uid=network["uid"])
    envelope = lab.stored(f"/vm/default/{name}")
    assert envelope is not None
    envelope.status = msgspec.Raw(msgspec.json.encode({"phase": "Running", "node": node.name}))
    lab.put(envelope, allocation)
    return allocation.name


def test_a_node_joins_with_a_token_and_reports_with_its_certificate(lab: ApiLab) -> None:
    node = lab.join("n1")
    assert lab.client.get("node", "n1")["uid"] == node.uid
    answer = node.report(node={"version": "0.1.0", "cpu": 4, "memory": 8 << 30})
    assert (answer["refused"], answer["remove_volumes"]) == ({}, [])
    assert lab.client.get("node", "n1")["report"]["cpu"] == 4
    [lease] = lab.run(lab.store.leases("node/"))
    assert (lease.name, lease.holder) == (f"node/{node.uid}", node.uid)


def test_a_report_that_says_nothing_new_writes_nothing(lab: ApiLab) -> None:
    node = lab.join("n1")
    _, name = start_vm(lab, node)
    body = {"node": {"cpu": 4, "a_field_of_tomorrow": 1}, "allocations": {name: {"incarnation": 1, "state": "running"}}}
    node.report(**body)
    before = lab.revision()
    node.report(**body)
    node.report()
    assert lab.revision() == before
    assert lab.client.get("node", "n1")["report"]["a_field_of_tomorrow"] == 1


def test_what_was_released_before_a_restore_is_not_taken_for_released_since(lab: ApiLab) -> None:
    node = lab.join("n1")
    _, name = start_vm(lab, node)
    now = lab.run(lab.store.list("/")).cursor
    released = {name: {"incarnation": 1, "state": "released"}}
    for heard in (
        "before:7",
        "",
    ):  # a restored store may wish it again, and the agent begin it: deleted then, it would be left
        assert node.report(allocations=released, heard=heard)["refused"] == {name: "notHeard"}
    assert lab.client.get("allocation", name)["report"] == {}
    assert node.report(allocations=released, heard=now)["refused"] == {}
    assert lab.client.get("allocation", name)["report"]["state"] == "released"


def test_a_join_token_works_once(lab: ApiLab) -> None:
    made = lab.client.create({"kind": "token", "name": "once", "spec": {"use": "join"}})
    first = lab.join_with(made["secret"], "n1")
    with pytest.raises(NotAuthenticated, match="was used already"):
        lab.join_with(made["secret"], "n2")
    with pytest.raises(NotAuthenticated, match="was used already"):
        lab.join_with(made["secret"], "n1")  # another machine that has seen the token
    again = lab.join_with(made["secret"], "n1", first.key)  # its answer may have been lost
    assert again.uid == first.uid
    again.report()
    lab.run(lab.store.commit([Delete(enrolment_key(first.uid))]))
    with pytest.raises(NotAuthenticated, match="was used already"):
        lab.join_with(made["secret"], "n1", first.key)  # nobody knows by now whose key it was


def test_nobody_joins_under_the_name_of_a_node_there_is(lab: ApiLab) -> None:
    first = lab.join("n1")
    with pytest.raises(AlreadyExists, match='node "n1" exists already'):
        lab.join("n1")
    with pytest.raises(Forbidden, match="enrols node n2 only"):
        lab.join("n3", node="n2")
    assert lab.join("n1", node="n1").uid == first.uid  # a token bound to it enrols it anew


@pytest.mark.parametrize("spec", [{"use": "join"}, {"use": "server"}, {"use": "link", "link": {}}])
def test_a_refused_request_does_not_use_up_a_token_for_one_use(lab: ApiLab, spec: dict[str, Any]) -> None:
    made = lab.client.create({"kind": "token", "name": "once", "spec": spec})
    joiner = lab.connect(msgspec.structs.replace(lab.context, token=made["secret"]))
    for path in ("/v1/join", "/v1/servers:join", "/v1/clusters:link") * 2:
        assert joiner.http.request("POST", path, {}).status >= 400
    lab.run(lab.api.token_use.write())  # as after ten seconds
    assert not lab.client.get("token", "once")["status"].get("used_at")


@pytest.mark.parametrize(
    ("spec", "field", "said"),
    [
        ({"use": "join", "role": "admin"}, "spec.role", "spec.role has no effect on a join token"),
        ({"use": "server", "role": "operator"}, "spec.role", "spec.role has no effect on a server token"),
        ({"use": "link", "link": {}, "role": "invoker"}, "spec.role", "spec.role has no effect on a link token"),
        ({"use": "server", "node": "n1"}, "spec.node", "spec.node is for join tokens, and its use is server"),
        ({"use": "access", "node": "n1"}, "spec.node", "spec.node is for join tokens, and its use is access"),
    ],
)
def test_a_token_takes_no_field_that_would_have_no_effect(
    lab: ApiLab, spec: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        lab.client.create({"kind": "token", "name": "t", "spec": spec})
    assert (refused.value.field, refused.value.hint) == (field, "leave it out")
    lab.client.create({"kind": "token", "spec": {"use": "join", "role": "viewer"}})  # as an export has it


def test_a_join_must_bring_a_name_and_a_sound_request(lab: ApiLab) -> None:
    made = lab.client.create({"kind": "token", "name": "t", "spec": {"use": "join"}})
    joiner = lab.connect(msgspec.structs.replace(lab.context, token=made["secret"]))
    for body in ({"node": "n1", "csr": "x"}, {"node": "N!", "csr": "x"}, {"node": "n1"}, {"csr": 5, "node": "n1"}):
        answer = joiner.http.request("POST", "/v1/join", body)
        assert (answer.status, answer.json()["reason"]) == (400, "invalidInput")
    for request in (lambda: joiner.list("vm"), lambda: joiner.create(make_vm("x")), lambda: list(joiner.events())):
        with pytest.raises(Forbidden):
            request()
    with pytest.raises(Forbidden, match="only a join token"):
        lab.join_with(lab.context.token, "n1")


@pytest.mark.parametrize(("release", "status"), [("99.0.0", 409), (weft.__version__, 400), ("", 400), ("?", 400)])
def test_an_agent_that_is_newer_than_the_server_is_refused_before_anything_else(
    lab: ApiLab, release: str, status: int
) -> None:
    made = lab.client.create({"kind": "token", "spec": {"use": "join"}})
    joiner = lab.connect(msgspec.structs.replace(lab.context, token=made["secret"]))
    answer = joiner.http.request("POST", "/v1/join", {"node": "n1", "csr": "x", "release": release})
    assert answer.status == status  # 400: its signing request can't be read
    if status == 409:
        assert answer.json()["reason"] == "newerAgent"
        assert answer.json()["message"] == (
            f"this cluster runs weft {weft.__version__}, and node n1 has {release}: an agent can't be newer than the servers"
        )
        assert "upgrade the servers" in answer.json()["hint"]


def test_a_node_sees_only_what_is_its_own(lab: ApiLab) -> None:
    one, two = lab.join("n1"), lab.join("n2")
    _, name = start_vm(lab, one)
    network = lab.client.get("network", "default")["uid"]
    assert [a["name"] for a in one.client.list("allocation", query={"node": one.uid}).items] == [name]
    assert one.client.get("allocation", name)["name"] == name
    assert one.client.get("node", "n1")["uid"] == one.uid
    assert one.client.list("endpoint", query={"network": network}).items == []
    assert one.client.list("publishedport").items == []
    for refused in (
        lambda: two.client.list("allocation", query={"node": one.uid}),
        lambda: two.client.list("allocation"),
        lambda: two.client.get("allocation", name),
        lambda: two.client.list("endpoint", query={"network": network}),
        lambda: two.client.get("node", "n1"),
        lambda: one.client.list("node"),
        lambda: one.client.list("vm"),
        lambda: one.client.list("token"),
        lambda: list(one.client.events()),
        lambda: one.client.create(make_vm("x")),
        lambda: one.client.verb("node", "n1", "cordon"),
        lambda: one.client.delete("vm", "web"),
        lambda: one.client.apply([make_vm("x")]),
        lambda: one.client.batch("vm", []),
    ):
        with pytest.raises(Forbidden):
            refused()


def test_a_node_watches_its_own_allocations(lab: ApiLab) -> None:
    one, two = lab.join("n1"), lab.join("n2")
    events = one.client.watch_forever("allocation", query={"node": one.uid})
    assert next(events).type == "synced"
    start_vm(lab, two, "theirs")
    _, name = start_vm(lab, one, "ours")
    assert next(events).object["name"] == name


def test_a_node_hears_in_its_watch_that_its_next_report_is_answered_with_other_orders(lab: ApiLab) -> None:
    one, two = lab.join("n1"), lab.join("n2")
    volume = lab.client.create({"kind": "volume", "name": "data", "spec": {"size": "1G"}})
    told, follow = [], {one.uid: one, two.uid: two}
    for uid, node in follow.items():
        events = node.client.watch_forever("allocation", query={"node": uid})
        assert next(events).type == "synced"
        follower = threading.Thread(target=lambda events=events, uid=uid: told.extend((uid, event) for event in events))
        follower.start()
    wait_until(lambda: len(lab.api.orders.bells) == 2)

    def write(status: VolumeStatus) -> None:
        envelope = lab.stored("/volume/default/data")
        assert envelope is not None
        envelope.status = msgspec.Raw(msgspec.json.encode(status))
        lab.put(envelope)

    order = VolumeOrder(uid="u", act="take", node_uid=one.uid, snapshot="s", volumes=[])
    write(VolumeStatus(node="n1", node_uid=one.uid, order=order))
    wait_until(lambda: len(told) == 1)
    assert one.report()["orders"]["volume"] == [msgspec.to_builtins(order)]
    write(VolumeStatus(node="n1", node_uid=one.uid, order=order, phase="Restoring"))  # the same order
    write(VolumeStatus(node="n1", node_uid=one.uid))
    wait_until(lambda: len(told) == 2)
    assert one.report()["orders"] == {}
    lab.client.delete("volume", "data")
    wait_until(lambda: len(told) == 3)
    assert one.report()["remove_volumes"] == [volume["uid"]]
    assert {uid for uid, _ in told} == {one.uid} and all(event.report for _, event in told)
    one.client.close()
    two.client.close()
    wait_until(lambda: len(lab.api.orders.bells) == 0)


def test_a_node_watches_the_snapshots_that_lie_on_it_and_sees_no_other(lab: ApiLab) -> None:
    one, two = lab.join("n1"), lab.join("n2")
    for name, node in (("ours", one), ("theirs", two)):
        put_snapshot(lab, name, node)
    events = one.client.watch_forever("snapshot")
    assert next(events).object["name"] == "ours"
    assert next(events).type == "synced"
    for refused in (lambda: one.client.get("snapshot", "ours"), lambda: one.client.delete("snapshot", "ours")):
        with pytest.raises(Forbidden):
            refused()
    for name in ("theirs", "ours"):
        lab.client.delete("snapshot", name)
    event = next(events)
    assert event.object["name"] == "ours" and event.object["deleting_since"], "at once, not with the next report"


def put_snapshot(lab: ApiLab, name: str, node: JoinedNode) -> None:
    spec = SnapshotSpec(of="vm/web", memory=True)
    envelope = SNAPSHOT.make(name, spec, lab.clock.now(), project="default")
    envelope.finalizers = ["snapshot"]
    envelope.status = msgspec.Raw(msgspec.json.encode(SnapshotStatus(phase="Ready", node=node.name, node_uid=node.uid)))
    lab.put(envelope)


def test_a_node_reports_on_its_own_allocations_and_the_newest_incarnation_only(lab: ApiLab) -> None:
    one, two = lab.join("n1"), lab.join("n2")
    _, name = start_vm(lab, one)
    allocation = lab.stored(f"/allocation/-/{name}")
    assert allocation is not None
    spec = {**msgspec.json.decode(allocation.spec), "incarnation": 3}
    allocation.spec = msgspec.Raw(msgspec.json.encode(spec))
    lab.put(allocation)
    new, old = {"incarnation": 3, "state": "running"}, {"incarnation": 2, "state": "failed"}
    assert two.report(allocations={name: new})["refused"] == {name: "notYours"}
    assert one.report(allocations={name: old})["refused"] == {name: "staleIncarnation"}
    assert one.report(allocations={f"{one.uid}.gone": new})["refused"] == {f"{one.uid}.gone": "unknown"}
    assert one.report(allocations={name: new})["refused"] == {}
    assert lab.client.get("allocation", name)["report"]["state"] == "running"
    with pytest.raises(Forbidden, match="node n1's, not n2's"):
        raise_problem(one.client.http.request("POST", "/v1/nodes/n2:report", {}))


def test_a_report_on_many_allocations_is_one_commit_in_each_ninety(lab: ApiLab) -> None:
    node = lab.join("n1")
    node.report()
    vm = lab.client.create(make_vm("web"))
    allocations = [make_allocation(node, vm) for _ in range(100)]
    lab.put(*allocations)
    before = lab.revision()
    node.report(allocations={a.name: {"incarnation": 1, "state": "running"} for a in allocations})
    assert lab.revision() == before + 2
    states = [a["report"]["state"] for a in lab.client.list("allocation").items]
    assert states == ["running"] * 100


def test_a_node_is_told_the_networks_ranges_once_and_which_of_its_idle_networks_are_gone(lab: ApiLab) -> None:
    node = lab.join("n1")
    default, known = lab.client.get("network", "default"), ""

    def hear(*ranges: str) -> bool:
        nonlocal known
        answer = node.report(ranges_version=known)
        known = answer["ranges_version"] or known
        return bool(answer["ranges"] == list(ranges))

    wait_until(lambda: hear(default["spec"]["cidr"]))
    assert node.report(ranges_version=known)["ranges"] is None
    for name, cidr in (("blue", "172.30.0.0/25"), ("green", "172.30.0.128/25"), ("again", "172.30.0.0/25")):
        lab.client.create({"kind": "network", "name": name, "spec": {"cidr": cidr}})
    wait_until(lambda: hear(default["spec"]["cidr"], "172.30.0.0/24"))
    blue = lab.client.get("network", "blue")["uid"]
    assert node.report(idle_networks=[blue])["gone_networks"] == []
    lab.client.delete("network", "blue")
    wait_until(lambda: node.report(idle_networks=[blue, default["uid"]])["gone_networks"] == [blue])
    assert not hear(default["spec"]["cidr"])  # another network has its range still


def test_a_node_is_told_all_nodes_own_addresses_but_none_that_can_be_no_machine_s(lab: ApiLab) -> None:
    said = {"n1": "10.9.0.2", "n2": "10.9.0.3", "n3": "0.0.0.0", "n4": "fe80::1", "n5": "127.0.0.1", "n6": "nowhere"}
    nodes = {name: lab.join(name) for name in said}
    for name, address in said.items():
        nodes[name].report(node={"address": address})
    wait_until(lambda: nodes["n1"].report()["node_ranges"] == ["10.9.0.2/31"])
    version = nodes["n1"].report()["ranges_version"]
    assert nodes["n1"].report(ranges_version=version)["node_ranges"] == []
    nodes["n2"].report(node={"address": ""})
    wait_until(lambda: nodes["n1"].report(ranges_version=version)["node_ranges"] == ["10.9.0.2/32"])


def test_a_node_is_told_every_address_of_nodes_and_where_the_server_is(lab: ApiLab) -> None:
    nodes = {name: lab.join(name) for name in ("n1", "n2")}
    for name, address in (("n1", "10.9.0.2"), ("n2", "10.9.0.3")):
        odd = ["nowhere", "127.0.0.1", "169.254.3.3", "::1", "0.0.0.0", "192.0.2.1"]
        nodes[name].report(node={"address": address, "addresses": [address, *odd, *["198.51.100.7"] * 100]})
    wait_until(lambda: nodes["n1"].report()["node_ranges"] == ["10.9.0.2/31", "192.0.2.1/32", "198.51.100.7/32"])
    nodes["n2"].report(
        node={"addresses": [f"198.18.{n >> 8}.{n & 255}" for n in range(300)]}
    )  # what is lost has no end
    wait_until(lambda: nodes["n1"].report()["node_ranges"][-2:] == ["198.18.0.0/26", "198.51.100.7/32"])
    known = nodes["n1"].report()
    assert known.get("server", {}) == {}

    def move(*addresses: str) -> None:
        lab.loop.call_soon_threadsafe(lab.api.ranges.put_server, addresses, [8444, 8443], [8445])

    move("203.0.113.5", "10.1.0.1")
    place = {"ranges": ["10.1.0.1/32", "203.0.113.5/32"], "api": [8443, 8444], "functions": [8445]}
    wait_until(lambda: nodes["n1"].report(ranges_version=known["ranges_version"]).get("server") == place)
    version = nodes["n1"].report()["ranges_version"]
    assert nodes["n1"].report(ranges_version=version).get("server") in (None, {})
    move("203.0.113.6")
    wait_until(lambda: nodes["n1"].report(ranges_version=version).get("server", {}).get("ranges") == ["203.0.113.6/32"])
    other = SERVER.make("s2", ServerSpec(), 0.0)
    status = ServerStatus(phase="NotReady", addresses=["203.0.113.7", "::1"], api_ports=[9443], function_ports=[9445])
    other.status = merge_part(other.status, status)
    lab.run(lab.store.commit([Put(other.key, encode_envelope(other))]))
    both = {"ranges": ["203.0.113.6/31"], "api": [8443, 8444, 9443], "functions": [8445, 9445]}
    wait_until(lambda: nodes["n1"].report(ranges_version=version).get("server") == both)


def test_a_node_is_told_what_its_networks_open_as_it_changes(lab: ApiLab) -> None:
    node = lab.join("n1")
    blue = lab.client.create({"kind": "network", "name": "blue", "spec": {"cidr": "172.30.0.0/24", "open": ["api"]}})
    default, uid = lab.client.get("network", "default")["uid"], blue["uid"]
    asked = {"networks": [uid, default, "gone"]}
    wait_until(lambda: node.report(**asked).get("networks") == {uid: {"open": ["api"]}, default: {}})
    lab.client.patch("network", "blue", {"spec": {"open": ["udp:123 to 192.0.2.1/32"], "nat": False}})
    changed = {"nat": False, "open": ["udp:123 to 192.0.2.1/32"]}
    wait_until(lambda: node.report(**asked).get("networks") == {uid: changed, default: {}})
    assert node.report().get("networks", {}) == {}


def test_a_report_that_makes_no_sense_is_refused_whole(lab: ApiLab) -> None:
    node = lab.join("n1")
    for body in ({"node": {"cpu": "many"}}, {"allocations": {"x": {"state": "odd"}}}, {"events": [{}]}, []):
        answer = node.client.http.request("POST", "/v1/nodes/n1:report", body)
        assert (answer.status, answer.json()["reason"]) == (400, "invalidInput")


def test_a_node_tells_the_journal_only_about_what_is_its_own(lab: ApiLab) -> None:
    node = lab.join("n1")
    vm, _ = start_vm(lab, node)
    other = lab.client.create(make_vm("other"))

    def event(obj: dict[str, Any]) -> dict[str, Any]:
        about = {"kind": "vm", "name": obj["name"], "uid": obj["uid"], "project": "default"}
        return {"type": "Warning", "reason": "Crashed", "message": "m", "object": about}

    node.report(events=[event(vm), event(other), event({**vm, "name": "other"})])  # another's name makes it no other's
    lab.journal.flush()
    told = [e for e in lab.client.events(about="vm") if e["reason"] == "Crashed"]
    assert {(e["object"]["name"], e["object"]["uid"], e["source"]) for e in told} == {("web", vm["uid"], "node/n1")}


def test_the_events_of_a_nodes_outbox_are_kept_once_at_the_time_when_they_happened(lab: ApiLab) -> None:
    node = lab.join("n1")
    vm, _ = start_vm(lab, node)
    about = {"kind": "vm", "name": "web", "uid": vm["uid"], "project": "default"}
    events = [
        {"type": "Warning", "reason": "GuestEnded", "message": "m", "object": about, "n": 5, "age_seconds": 7200.0},
        {"type": "Normal", "reason": "Foreign", "message": "m", "object": {**about, "uid": "another"}, "n": 6},
        {"type": "Normal", "reason": "GuestRestarted", "message": "m", "object": about, "n": 8},
    ]
    assert node.report()["through"] is None and node.report(events=events[:1], outbox="box")["through"] == 5
    for _ in range(2):
        assert node.report(events=events, outbox="box")["through"] == 8
    assert node.report(events=events[1:2], outbox="box")["through"] == 8, "what isn't the node's needn't come again"
    told = [one for one in lab.client.events(about="vm") if one["source"] == "node/n1"]
    assert [(one["reason"], one["count"]) for one in told] == [("GuestEnded", 1), ("GuestRestarted", 1)]
    assert told[1]["at"] - told[0]["at"] == pytest.approx(7200.0, abs=30.0)
    for wrong in ({"n": -1}, {"age_seconds": -1.0}, {"n": 2**63}):
        with pytest.raises(InvalidInput, match="can't be read"):
            node.report(events=[{**events[0], **wrong}], outbox="box")


def test_an_outbox_tells_of_workloads_that_the_rest_of_the_report_does_not_name(lab: ApiLab) -> None:
    node = lab.join("n1")
    web, named = start_vm(lab, node)
    db, _ = start_vm(lab, node, "db")
    events = [
        {
            "type": "Warning",
            "reason": "GuestEnded",
            "message": "m",
            "object": {"kind": "vm", "name": vm["name"], "uid": vm["uid"], "project": "default"},
            "n": number,
        }
        for number, vm in enumerate((web, db), 1)
    ]
    answer = node.report(allocations={named: {"state": "running", "incarnation": 1}}, events=events, outbox="box")
    assert (answer["through"], answer["refused"]) == (2, {})
    told = {one["object"]["name"] for one in lab.client.events(about="vm") if one["reason"] == "GuestEnded"}
    assert told == {"web", "db"}


def test_a_node_that_a_restored_store_does_not_know_comes_back_by_itself(lab: ApiLab) -> None:
    node = lab.join("n1")
    node.report(node={"cpu": 4})
    keys = [entry.key for entry in lab.run(lab.store.list("/")).entries]
    lab.run(lab.store.commit([Delete(key) for key in keys]))  # amnesia: an empty store
    lab.restart()
    admin = lab.connect(msgspec.json.decode(lab.context_path.read_bytes(), type=type(lab.context)))
    assert admin.context.token != lab.context.token
    assert node.report(node={"cpu": 4})["refused"] == {}
    back = admin.get("node", "n1")
    assert (back["uid"], back["report"]["cpu"]) == (node.uid, 4)
    assert admin.get("project", "default") and admin.get("network", "default")


def test_a_name_that_is_taken_meanwhile_is_not_taken_back(lab: ApiLab) -> None:
    node = lab.join("n1")
    lab.run(lab.store.commit([Delete("/node/-/n1"), Delete(f"/enrolment/-/{node.uid}")]))
    lab.join("n1")
    with pytest.raises(AlreadyExists, match="another identity"):
        node.report()


def test_a_node_names_the_project_of_a_workload_that_keeps_it(lab: ApiLab) -> None:
    node = lab.join("n1")
    allocation = make_allocation(node, {"name": "far-off", "uid": "u"})
    workload = Ref("vm", "far-off", "u", "far")
    spec = msgspec.structs.replace(decode_part(allocation.spec, AllocationSpec), workload=workload)
    allocation.spec = merge_part(allocation.spec, spec)
    lab.put(allocation)
    with pytest.raises(InUse, match='node "n1" is in use by vm/far-off -p far') as used:
        lab.client.delete("node", "n1")
    away = "weft node drain n1 migrates what is there"
    assert used.value.hint == f"{away}; weft describe vm/far-off -p far shows why one stays"


def test_what_has_ended_does_not_hold_a_node_and_what_runs_is_named_first(lab: ApiLab) -> None:
    node = lab.join("n1")
    reports = {
        "a-stopped": (AllocationReport(state="stopped", incarnation=1), False),
        "b-runs": (AllocationReport(state="running", incarnation=1), False),
        "c-done": (AllocationReport(state="stopped", incarnation=1, ended=True), True),
    }
    places = {}
    for name, (report, once) in reports.items():
        _, key = start_vm(lab, node, name)
        envelope = places[name] = lab.stored(f"/allocation/-/{key}")
        assert envelope is not None
        envelope.spec = merge_part(envelope.spec, {"once": once})
        envelope.report = merge_part(envelope.report, report)
        lab.put(envelope)
    with pytest.raises(InUse, match=r'node "n1" is in use by vm/b-runs, vm/a-stopped$'):
        lab.client.delete("node", "n1")
    assert len(lab.client.list("allocation").items) == 3, "a refused deletion lets nothing go"
    for name in ("a-stopped", "b-runs"):
        place = places[name]
        assert place is not None
        lab.run(lab.store.commit([Delete(place.key)]))
    lab.client.delete("node", "n1")
    assert lab.client.list("allocation").items == [] and lab.client.get("vm", "c-done")["name"] == "c-done"


@pytest.mark.parametrize(
    ("once", "said", "remedy"),
    [
        (
            True,
            "vm/done has ended, and its node was deleted: what it had there, such as its log,",
            "weft describe vm/done",
        ),
        (False, "vm/done is stopped, and on no node: logs is not possible now", "weft start vm/done places it again"),
    ],
)
def test_the_log_of_what_ended_on_a_deleted_node_has_no_remedy_that_leads_in_a_circle(
    lab: ApiLab, once: bool, said: str, remedy: str
) -> None:
    lab.client.create(make_vm("done"))
    envelope = lab.stored("/vm/default/done")
    assert envelope is not None
    envelope.spec = merge_part(envelope.spec, {"once": once})
    envelope.status = merge_part(envelope.status, {"phase": "Stopped", "ended": True, "reason": "completed"})
    lab.put(envelope)
    with pytest.raises(IllegalTransition) as refused:
        lab.client.verb("vm", "done", "logs")
    assert refused.value.message.startswith(said) and (refused.value.hint or "").startswith(remedy)


def test_a_node_that_was_removed_stays_out(lab: ApiLab) -> None:
    node = lab.join("n1")
    _, name = start_vm(lab, node)
    with pytest.raises(InUse, match='node "n1" is in use by vm/web'):
        lab.client.delete("node", "n1")
    lab.run(lab.store.commit([Delete(f"/allocation/-/{name}")]))
    lab.client.delete("node", "n1")
    with pytest.raises(Forbidden, match="was removed"):
        node.report()
    with pytest.raises(Forbidden, match="was removed"):
        node.client.list("allocation", query={"node": node.uid})
    assert lab.join("n1").uid != node.uid


def test_nobody_makes_a_node_by_hand_but_labels_it(lab: ApiLab) -> None:
    with pytest.raises(InvalidInput, match="by joining"):
        lab.client.put({"kind": "node", "name": "n9"})
    lab.join("n1")
    lab.client.verb("node", "n1", "cordon", {"reason": "disk swap"})
    labelled = lab.client.put({"kind": "node", "name": "n1", "labels": {"rack": "r1"}})
    assert (labelled["labels"], labelled["actions"]["cordoned"]) == ({"rack": "r1"}, True)


def test_a_node_renews_its_certificate_with_the_one_it_has(lab: ApiLab) -> None:
    node = lab.join("n1")
    path = "/v1/nodes/n1:renew"
    answer = node.client.http.request("POST", path, {"csr": make_node_key(node.key)})
    assert answer.json()["node_uid"] == node.uid
    assert lab.client.http.request("POST", path, {"csr": make_node_key(node.key)}).status == 403


def test_a_certificate_of_another_ca_is_not_let_in(lab: ApiLab, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    key = foreign / "n.key"
    certificate = foreign / "n.crt"
    certificate.write_text(Authority(foreign, lab.clock).sign_node(read_csr(make_node_key(key)), "some-uid"))
    context = msgspec.structs.replace(lab.context, token="", certificate=str(certificate), key=str(key))
    with pytest.raises((Unavailable, NotAuthenticated)):
        lab.connect(context).list("vm")


def test_a_volume_is_removed_from_its_node_on_positive_evidence_only(lab: ApiLab) -> None:
    node = lab.join("n1")
    volume = lab.client.create({"kind": "volume", "name": "data", "spec": {"size": "1G"}})
    vm = lab.client.create(make_vm("web"))
    allocation = make_allocation(node, vm, volume_uid=volume["uid"])
    envelope = lab.stored("/volume/default/data")
    assert envelope is not None
    envelope.status = msgspec.Raw(msgspec.json.encode(VolumeStatus(node="n1", node_uid=node.uid)))
    lab.put(envelope, allocation)
    assert node.report()["remove_volumes"] == []
    lab.client.delete("volume", "data")
    wait_until(lambda: lab.api.orders.doomed_volumes.found)
    assert node.report()["remove_volumes"] == []  # one of its allocations has it still
    lab.run(lab.store.commit([Delete(allocation.key)]))
    assert lab.join("n2").report()["remove_volumes"] == []
    assert node.report()["remove_volumes"] == [volume["uid"]]
    assert node.report(removed_volumes=[volume["uid"]])["remove_volumes"] == []


def wait_until(condition: Any) -> None:
    for _ in range(1200):
        if condition():
            return
        threading.Event().wait(0.05)
    raise AssertionError("it never came")


def test_exec_waits_for_a_vm_that_is_about_to_get_its_place_and_for_no_other(lab: ApiLab) -> None:
    node = lab.join("n1")
    vm = lab.client.create(make_vm("soon"))
    answers: list[dict[str, Any]] = []
    asking = threading.Thread(
        target=lambda: answers.append(lab.connect().verb("vm", "soon", "exec", {"argv": ["true"]}))
    )
    asking.start()
    name = place_vm(lab, node, vm)
    asking.join(10)
    assert verify_ticket(b"k" * 32, answers[0]["ticket"], lab.clock.now())["allocation"] == name
    lab.client.create(make_vm("refused"))
    envelope = lab.stored("/vm/default/refused")
    assert envelope is not None
    envelope.conditions = [Condition("Placed", "False", "insufficientResources", "", 1.0)]
    lab.put(envelope)
    lab.client.create(make_vm("held", hold=True))
    for name in ("refused", "held"):
        began = lab.clock.elapsed()
        with pytest.raises(IllegalTransition):
            lab.client.verb("vm", name, "exec", {"argv": ["true"]})
        assert lab.clock.elapsed() - began < PLACE_SECONDS


def test_nobody_gets_a_ticket_for_the_inside_of_a_guest_before_its_lease_begins(lab: ApiLab) -> None:
    node, start = lab.join("n1"), lab.clock.now() + 90
    _, name = start_vm(lab, node)
    allocation = lab.stored(f"/allocation/-/{name}")
    assert allocation is not None
    lease = AllocatedLease(mode="reservation", start=start, end=start + 600, prepare_at=start - 60)
    spec = decode_part(allocation.spec, AllocationSpec)
    allocation.spec = merge_part(allocation.spec, msgspec.structs.replace(spec, lease=lease))
    lab.put(allocation)
    inputs: dict[str, Any] = {"exec": {"argv": ["true"]}, "forward": {"port": 80}}
    for verb in ("exec", "console", "forward", "screen"):
        with pytest.raises(Unavailable, match=r"its lease begins at 2.* UTC, in 1m") as caught:
            lab.client.verb("vm", "web", verb, inputs.get(verb, {}))
        assert caught.value.token == "leaseWaits"
    assert lab.client.verb("vm", "web", "logs")["ticket"]
    allocation = lab.stored(f"/allocation/-/{name}")
    assert allocation is not None
    begun = msgspec.structs.replace(spec, lease=msgspec.structs.replace(lease, start=lab.clock.now()))
    allocation.spec = merge_part(allocation.spec, begun)
    lab.put(allocation)
    assert lab.client.verb("vm", "web", "exec", inputs["exec"])["ticket"]


def test_a_stream_verb_gives_a_ticket_for_the_place_of_the_workload(
    lab: ApiLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.api.object.verbs.PLACE_SECONDS", 0.2)
    node = lab.join("n1")
    _, name = start_vm(lab, node)
    given = lab.client.verb("vm", "web", "exec", {"argv": ["uname", "-a"]})
    claims = verify_ticket(b"k" * 32, given["ticket"], lab.clock.now())
    assert (claims["node_uid"], claims["allocation"], claims["verb"], claims["subject"]) == (
        node.uid,
        name,
        "exec",
        f"token:{lab.client.http.request('GET', '/v1/whoami').json()['token']}",
    )
    assert claims["input"]["argv"] == ["uname", "-a"] and len(claims["guest_id"]) == 10
    assert (given["address"], given["server_name"]) == ("127.0.0.1:9", "weft-server")
    with pytest.raises(UnknownField):
        lab.client.verb("vm", "web", "exec", {"argv": ["x"], "user": "root"})
    with pytest.raises(InvalidInput):
        lab.client.verb("vm", "web", "exec", {"argv": "uname"})
    assert lab.client.verb("vm", "web", "logs", {"follow": True})["ticket"]
    assert lab.client.verb("vm", "web", "metrics")["ticket"] and lab.client.verb("node", "n1", "logs")["ticket"]
    lab.journal.flush()
    opened = [one["message"] for one in lab.client.events() if one["reason"] == "Opened"]
    assert opened == [f"exec opened by {claims['subject']}"], "who only looks leaves no event"
    for field, value in {"until": 5, "filter": "ERROR", "regex": "^GET"}.items():
        with pytest.raises(InvalidInput, match=f"{field} .* need aggregate") as refused:
            lab.client.verb("vm", "web", "logs", {field: value})
        assert refused.value.field == f"input.{field}" and "input.aggregate" in (refused.value.hint or "")
        assert lab.client.verb("vm", "web", "logs", {field: value, "aggregate": True})["ticket"]
    lab.client.create(make_vm("nowhere"))
    with pytest.raises(IllegalTransition):
        lab.client.verb("vm", "nowhere", "exec", {"argv": ["x"]})
    with pytest.raises(IllegalTransition, match="is not placed yet"):
        lab.client.verb("vm", "nowhere", "logs")
    with pytest.raises(Forbidden):
        lab.with_token(use="access").verb("vm", "web", "exec", {"argv": ["x"]})


def test_an_image_is_given_to_people_and_to_nodes_that_have_it_allocated(lab: ApiLab) -> None:
    digest, content = "ab" * 32, bytes(range(256)) * 5000
    (lab.folder / "images" / digest).write_bytes(content)
    one, two = lab.join("n1"), lab.join("n2")
    start_vm(lab, one)
    with one.client.http.stream("GET", f"/v1/blobs/{digest}") as stream:
        assert b"".join(itertools.takewhile(bool, iter(lambda: stream.read(100_000), b""))) == content
    part = lab.client.http.request("GET", f"/v1/blobs/{digest}", headers={"Range": "bytes=1000-1255"})
    assert (part.status, part.body) == (206, content[1000:1256])
    known = lab.client.http.request("GET", f"/v1/blobs/{digest}", headers={"If-None-Match": f'"{digest}"'})
    assert (known.status, known.body) == (304, b"")
    with pytest.raises(Forbidden):
        two.client.http.stream("GET", f"/v1/blobs/{digest}")
    for odd in ("cd" * 32, "..%2Fca.key", "x"):
        with pytest.raises(NotFound):
            lab.client.http.stream("GET", f"/v1/blobs/{odd}")


def test_who_has_a_role_in_a_project_only_sees_of_a_node_nothing_that_tells_of_others(lab: ApiLab) -> None:
    secret, copy = "ab" * 32, '{"uid": "u", "spec": {}}'
    node = lab.join("n1")
    viewer = lab.with_token(use="access", role="viewer", project="default")
    cursor = viewer.list("node").cursor
    orphans = ["u vm/other/db 1"]
    node.report(node={"cpu": 4, "images": [secret], "orphans": orphans, "orphan_allocations": [copy]})
    envelope = lab.stored("/node/-/n1")
    assert envelope is not None
    envelope.conditions = [Condition("Drained", "False", "Draining", "1 left; vm/other/db can't leave")]
    lab.put(envelope)
    assert lab.client.get("node", "n1")["report"]["images"] == [secret]
    assert "db" in lab.client.get("node", "n1")["conditions"][0]["message"]
    selector = f"fields=report.images%3D{secret}"
    for path in ("", "/n1", f"?watch=1&cursor={cursor}&fields=name%3Dn1", f"?watch=1&cursor={cursor}", f"?{selector}"):
        with viewer.http.stream("GET", f"/v1/nodes{path}") as stream:
            shown = stream.read(100_000)
        assert shown and secret.encode() not in shown and b"vm/other/db" not in shown, path
        if path in ("", "/n1"):
            assert b'"cpu":4' in shown and b'"Draining"' in shown
        if selector in path:
            assert b"n1" not in shown


def set_phase(lab: ApiLab, phase: str) -> None:
    envelope = lab.stored("/node/-/n1")
    assert envelope is not None
    envelope.status = msgspec.Raw(msgspec.json.encode({"phase": phase}))
    lab.put(envelope)


def test_only_a_silent_node_is_given_up_and_what_it_returns_with_is_told_apart(lab: ApiLab) -> None:
    node = lab.join("n1")
    node.report(node={"cpu": 4})
    vm, _ = start_vm(lab, node)
    waits = lab.client.create(make_vm("waits"))
    places = {vm["name"]: make_allocation(node, vm), "waits": make_allocation(node, waits)}
    lab.put(*places.values())

    set_phase(lab, "Ready")
    with pytest.raises(IllegalTransition, match="is Ready"):
        lab.client.delete("node", "n1", force=True)
    set_phase(lab, "Autonomous")
    with pytest.raises(IllegalTransition, match="is Autonomous until") as refused:
        lab.client.delete("node", "n1", force=True)
    assert "weft node set n1 --autonomy 0" in refused.value.hint
    with pytest.raises(IllegalTransition, match="is Autonomous until"):
        lab.client.delete("node", "n1")
    set_phase(lab, "NotReady")
    with pytest.raises(InUse):
        lab.client.delete("node", "n1")
    with pytest.raises(InvalidInput, match="force is only for a lost node"):
        lab.client.delete("vm", "web", force=True)
    stale = lab.client.http.request("DELETE", "/v1/nodes/n1?force=1", headers={"If-Match": '"1"'})
    assert stale.status == 412 and lab.client.get("node", "n1")["uid"] == node.uid
    lab.client.delete("node", "n1", force=True)
    assert lab.client.list("node").items == [] and lab.client.list("allocation").items == []

    # The one was placed elsewhere meanwhile, the other waits for its node: only the first must not run here any more.
    envelope = lab.stored("/vm/default/web")
    assert envelope is not None
    envelope.status = msgspec.Raw(msgspec.json.encode({"incarnation": 2, "active_incarnation": 2}))
    lab.put(envelope)
    copies = [
        msgspec.json.encode({"uid": place.uid, "spec": msgspec.json.decode(place.spec)}).decode()
        for place in places.values()
    ]
    back = node.report(node={"cpu": 4, "orphan_allocations": [*copies, "of another age"]})
    assert back["superseded"] == [places["web"].uid]
    assert lab.client.get("node", "n1")["uid"] == node.uid
    assert node.report()["superseded"] == [places["web"].uid]


def test_the_root_disk_of_a_vm_that_was_placed_elsewhere_is_kept_as_a_volume_when_its_node_is_back(
    lab: ApiLab,
) -> None:
    node = lab.join("n1")
    node.report(node={"cpu": 4})
    vm, _ = start_vm(lab, node)
    place = make_allocation(node, vm)
    spec = msgspec.structs.replace(decode_part(place.spec, AllocationSpec), resources=Resources(cpu=1, disk=5 << 30))
    place.spec = msgspec.Raw(msgspec.json.encode(spec))
    lab.put(place)
    status = BackupStatus(phase="Ready", workload_uid=vm["uid"], taken_at=0.0)
    backup = Envelope(kind="backup", name="nightly", uid="b", project="default")
    backup.spec = msgspec.Raw(msgspec.json.encode(BackupSpec(of="vm/web", to="store")))
    backup.status = msgspec.Raw(msgspec.json.encode(status))
    lab.put(backup)
    set_phase(lab, "NotReady")
    lab.client.delete("node", "n1", force=True)
    lab.journal.flush()
    told = {one["reason"]: one["message"] for one in lab.client.events(about="vm/web")}
    assert told["RootDiskLost"] == (
        "node n1, which has its root disk, was given up: it gets a new one from its image; backup/nightly has it as of "
        "1970-01-01 00:00 UTC: weft backup restore nightly --new-name NAME"
    )

    envelope = lab.stored("/vm/default/web")
    assert envelope is not None
    envelope.status = msgspec.Raw(msgspec.json.encode({"incarnation": 2, "active_incarnation": 2}))
    lab.put(envelope)
    copy = msgspec.json.encode({"uid": place.uid, "spec": spec}).decode()
    node.report(node={"cpu": 4, "orphan_allocations": [copy]})
    assert lab.client.list("volume").items == [], "an older agent removes the disk"
    for _ in range(2):
        back = node.report(node={"cpu": 4, "orphan_allocations": [copy], "capabilities": ["kept-disks"]})
        assert back["superseded"] == [place.uid] and back["remove_volumes"] == []
    [volume] = lab.client.list("volume").items
    name = volume["name"]
    assert (volume["uid"], volume["spec"]["size"], name.rpartition("-")[0]) == (place.uid, 5 << 30, "web-root")
    assert (volume["marks"]["orphan"]["of"], volume["marks"]["orphan"]["node"]) == ("vm/web", "n1")
    lab.journal.flush()
    told = {one["reason"]: one["message"] for one in lab.client.events(about="vm/web")}
    assert told["DiskKept"].endswith(f"weft volume reclaim {name}")

    with pytest.raises(IllegalTransition, match="has not made"):
        lab.client.verb("volume", name, "reclaim")
    there = lab.stored(f"/volume/default/{name}")
    assert there is not None
    there.status = msgspec.Raw(msgspec.json.encode(VolumeStatus(phase="Orphaned", node="n1", node_uid=node.uid)))
    lab.put(there)
    container = {"image": "tiny", "mounts": [f"{name}:/data"]}
    for refused in (
        lambda: lab.client.patch("volume", name, {"spec": {"size": 6 << 30}}),
        lambda: lab.client.patch("vm", "web", {"spec": {"volumes": [name]}}),
        lambda: lab.client.create({"kind": "vm", "name": "new", "spec": {"image": "tiny", "volumes": [name]}}),
        lambda: lab.client.create({"kind": "container", "name": "new", "spec": container}),
        lambda: lab.client.create({"kind": "job", "name": "new", "spec": {"task": container}}),
    ):
        with pytest.raises(IllegalTransition, match=f"volume/{name} is an orphan") as error:
            refused()
        assert str(error.value.hint).endswith(f"weft volume reclaim {name}")
    assert lab.client.verb("volume", name, "reclaim")["marks"]["orphan"] is None
    assert lab.client.patch("volume", name, {"spec": {"size": 6 << 30}})["spec"]["size"] == 6 << 30
    with pytest.raises(IllegalTransition, match="is not an orphan"):
        lab.client.verb("volume", name, "reclaim")


@pytest.mark.parametrize("role", ["active", "lost"])
@pytest.mark.parametrize("active", [1, 2, None])
def test_an_orphan_whose_allocation_is_lost_is_superseded_once_its_workload_went_on_or_was_deleted(
    lab: ApiLab, role: Any, active: int | None
) -> None:
    node = lab.join("n1")
    told = {"cpu": 4, "capabilities": ["kept-disks"]}
    node.report(node=told)
    vm, _ = start_vm(lab, node)
    place = make_allocation(node, vm)
    disk = Resources(cpu=1, disk=5 << 30)
    lost = msgspec.structs.replace(decode_part(place.spec, AllocationSpec), role=role, resources=disk)
    place.spec = msgspec.Raw(msgspec.json.encode(lost))
    ended = EndedBy(by="guard", at=77.0, message="its guard ended it")
    place.status = msgspec.Raw(msgspec.json.encode(AllocationStatus(ended_by=ended)))
    lab.put(place)
    envelope = lab.stored("/vm/default/web")
    assert envelope is not None
    if active is None:
        lab.run(lab.store.commit([Delete(envelope.key)]))
    else:
        envelope.status = msgspec.Raw(msgspec.json.encode({"incarnation": active, "active_incarnation": active}))
        lab.put(envelope)
    copy = msgspec.json.encode({"uid": place.uid, "spec": lost}).decode()
    answer = node.report(node={**told, "orphan_allocations": [copy]})
    superseded = role == "lost" and active != 1
    assert answer["superseded"] == ([place.uid] if superseded else [])
    kept = [one["marks"]["orphan"]["lost_at"] for one in lab.client.list("volume").items]
    assert kept == ([77.0] if superseded else [])


def test_a_returned_node_keeps_the_volumes_of_a_vm_that_went_on_from_an_earlier_state_of_them(lab: ApiLab) -> None:
    node = lab.join("n1")
    told = {"cpu": 4, "capabilities": ["kept-disks", "kept-volumes"]}
    node.report(node=told)
    data = lab.client.create({"kind": "volume", "name": "data", "spec": {"size": "1G"}})
    vm, _ = start_vm(lab, node, volumes=["data"])
    place = make_allocation(node, vm, volume_uid=data["uid"])
    lost = msgspec.structs.replace(
        decode_part(place.spec, AllocationSpec), role="lost", resources=Resources(cpu=1, disk=5 << 30)
    )
    place.spec = msgspec.Raw(msgspec.json.encode(lost))
    ended = EndedBy(by="guard", at=77.0, message="its guard ended it")
    place.status = msgspec.Raw(msgspec.json.encode(AllocationStatus(ended_by=ended)))
    envelope, volume = lab.stored("/vm/default/web"), lab.stored("/volume/default/data")
    assert envelope is not None and volume is not None
    envelope.status = msgspec.Raw(msgspec.json.encode({"incarnation": 2, "active_incarnation": 2}))
    volume.status = msgspec.Raw(msgspec.json.encode(VolumeStatus(node="n1", node_uid=node.uid)))
    lab.put(place, envelope, volume)
    copy = msgspec.json.encode({"uid": place.uid, "spec": lost, "standing": "here"}).decode()
    told["orphan_allocations"] = [copy]
    assert node.report(node=told)["superseded"] == [], "the volume's new home is not written yet"
    volume = lab.stored("/volume/default/data")
    assert volume is not None
    volume.status = msgspec.Raw(msgspec.json.encode(VolumeStatus(node="n2", node_uid="n2-uid")))
    lab.put(volume)
    older = node.report(node={**told, "capabilities": ["kept-disks"]})
    assert (older["superseded"], older["stale_volumes"]) == ([place.uid], []), "it would remove them"
    for _ in range(2):
        answer = node.report(node=told)
        assert (answer["superseded"], answer["stale_volumes"]) == ([place.uid], [data["uid"]])
    kept = {one["uid"]: one for one in lab.client.list("volume").items if one["marks"].get("orphan")}
    assert kept.keys() == {place.uid, derive_kept_uid(place.uid, data["uid"])}
    of_data = kept[derive_kept_uid(place.uid, data["uid"])]
    assert of_data["name"].startswith("web-data-") and of_data["spec"]["size"] == 1
    assert (of_data["marks"]["orphan"]["volume"], of_data["marks"]["orphan"]["lost_at"]) == ("data", 77.0)
    lab.journal.flush()
    said = [one["message"] for one in lab.client.events(about="vm/web") if one["reason"] == "DiskKept"]
    assert any("keeps volume data of vm/web as it was there: weft volume reclaim web-data-" in one for one in said)
    with pytest.raises(IllegalTransition, match="is an orphan, volume data of vm/web that node n1 kept"):
        lab.client.patch("vm", "web", {"spec": {"volumes": [of_data["name"]]}})


def test_a_node_that_was_given_up_is_taken_back_once_it_has_heard_of_that(lab: ApiLab) -> None:
    node = lab.join("n1")
    start_vm(lab, node)
    listed = node.client.list("allocation", query={"node": node.uid}).cursor
    assert node.report(node={"cpu": 4}, heard=listed)["refused"] == {}
    set_phase(lab, "NotReady")
    lab.client.delete("node", "n1", force=True)
    for heard in ("", listed, f"another-history:{10**9}"):
        with pytest.raises(Unavailable, match="was given up, and hasn't followed the deletion of its allocations yet"):
            node.report(node={"cpu": 4}, heard=heard)
    with pytest.raises(InvalidInput, match="can't be read"):
        node.report(node={"cpu": 4}, heard="nonsense")
    assert lab.client.list("node").items == []
    gone = next(node.client.watch("allocation", listed, query={"node": node.uid}))
    assert gone.type == "delete"
    lab.client.create(make_vm("other"))
    node.report(node={"cpu": 4}, heard=gone.cursor)
    assert lab.client.get("node", "n1")["uid"] == node.uid
    # What it has heard once it needn't hear again; and what an older agent has heard nobody knows.
    set_phase(lab, "NotReady")
    lab.client.delete("node", "n1", force=True)
    node.report(node={"cpu": 4}, heard=listed)
    place_vm(lab, node, lab.client.get("vm", "other"))
    set_phase(lab, "NotReady")
    lab.client.delete("node", "n1", force=True)
    assert node.report(node={"cpu": 4})["refused"] == {}


def test_a_node_that_is_taken_back_is_asked_to_say_again_what_it_has_said(lab: ApiLab) -> None:
    node = lab.join("n1")
    assert node.report(node={"cpu": 4}, version="a.1")["version"] == "a.1"
    set_phase(lab, "NotReady")
    lab.client.delete("node", "n1", force=True)
    assert node.report(version="a.1")["version"] not in ("", "a.1")
    assert node.report(node={"cpu": 4}, version="a.1")["version"] == "a.1"
    assert lab.client.get("node", "n1")["report"]["cpu"] == 4


def test_a_node_that_comes_back_without_its_settings_is_said_to_with_what_they_were(lab: ApiLab) -> None:
    node = lab.join("n1")
    node.report(node={"cpu": 4})
    lab.client.patch("node", "n1", {"labels": {"site": "west"}, "spec": {"autonomy_seconds": 60, "taints": ["till"]}})
    set_phase(lab, "NotReady")
    lab.client.delete("node", "n1", force=True)
    node.report(node={"cpu": 4})
    assert lab.client.get("node", "n1")["labels"] == {}
    lab.journal.flush()
    told = {one["reason"]: one["message"] for one in lab.client.events(about="node/n1")}
    assert told["GivenUp"].endswith("set again: label site=west, taints=till, autonomy_seconds=60.0")
    assert "people had given the node up" in told["TakenBack"] and "set again" in told["TakenBack"]


def test_who_gives_a_node_up_within_its_autonomy_is_named_with_when_it_would_have_ended(lab: ApiLab) -> None:
    now = SystemClock().now()
    for name, lost_at, until in (("n1", now - 60.0, now + 3540.0), ("n2", now - 7200.0, None)):
        node = lab.join(name)
        node.report(node={"cpu": 4})
        status = NodeStatus(phase="Ready")
        for at, autonomy in ((lost_at, 3600.0), (now, 3600.0), (now, 0.0)):  # lost, and then people end its autonomy
            status = fold_node(status, NodeReport(cpu=4.0), NodeStatus(), False, at, autonomy)
        envelope = lab.stored(f"/node/-/{name}")
        assert envelope is not None
        envelope.status = merge_part(envelope.status, status)
        lab.put(envelope)
        lab.client.delete("node", name, force=True)
        lab.journal.flush()
        told = {one["reason"]: one["message"] for one in lab.client.events(about=f"node/{name}")}
        said = f"; its autonomy would have lasted until {format_time(until)}" if until is not None else ""
        assert told["GivenUp"].partition(", ")[2] == f"with the allocations of no workload{said}"


def test_a_target_that_never_ran_goes_once_nobody_waits_for_its_word(lab: ApiLab) -> None:
    node, other = lab.join("n1"), lab.join("n2")
    vm, _ = start_vm(lab, node)
    coming = make_allocation(node, vm)
    epoch = epoch_of(lab.client.list("node").cursor)
    migration = {"key": "m", "peer": "n2", "peer_uid": other.uid, "peer_allocation": "the source"}
    spec = {**msgspec.json.decode(coming.spec), "role": "target", "migration": migration}
    given_up = {"uid": coming.uid, "spec": spec, "standing": "abandoned", "migration": "m"}

    def ask(standing: str = "abandoned") -> Any:
        copy = msgspec.json.encode({**given_up, "standing": standing}).decode()
        return node.report(node={"cpu": 4, "orphan_allocations": [copy]})["superseded"]

    other.report(node={"cpu": 4, "epoch": "of a lost history"})
    assert ask() == [], "what the other node has isn't known yet"
    other.report(node={"cpu": 4, "epoch": epoch, "orphans": ["the source vm/default/web 1"]})
    assert ask() == [], "its source waits for that word"
    other.report(node={"cpu": 4, "epoch": epoch})
    assert ask("open") == ask("here") == []
    assert ask() == [coming.uid]


def test_what_it_made_of_a_volume_goes_with_it_once_the_node_where_its_guest_stayed_has_the_data(lab: ApiLab) -> None:
    node, source, former = lab.join("n1"), lab.join("n2"), lab.join("n3")
    volume = lab.client.create({"kind": "volume", "name": "data", "spec": {"size": "1G"}})
    vm = lab.client.create(make_vm("web"))
    coming = make_allocation(node, vm, volume_uid=volume["uid"])
    epoch = epoch_of(lab.client.list("node").cursor)
    migration = {"key": "m", "peer": "n2", "peer_uid": source.uid, "peer_allocation": "the source"}
    spec = {**msgspec.json.decode(coming.spec), "role": "target", "migration": migration}
    copy = msgspec.json.encode({"uid": coming.uid, "spec": spec, "standing": "abandoned", "migration": "m"}).decode()

    def ask(home: JoinedNode | None, *, there: bool) -> Any:
        envelope = lab.stored("/volume/default/data")
        assert envelope is not None
        status = VolumeStatus(node=home.name, node_uid=home.uid) if home is not None else VolumeStatus()
        envelope.status = msgspec.Raw(msgspec.json.encode(status))
        lab.put(envelope)
        source.report(node={"cpu": 4, "epoch": epoch, "volumes": [volume["uid"]] if there else []})
        answer = node.report(node={"cpu": 4, "orphan_allocations": [copy]})
        assert answer["superseded"] == [coming.uid]
        return answer["stale_volumes"]

    assert ask(former, there=False) == [], "it may be all that there is"
    assert ask(node, there=True) == [], "it is in use here"
    assert ask(former, there=True) == ask(None, there=True) == ask(source, there=True) == [volume["uid"]]


def test_a_report_that_comes_late_does_not_take_the_place_of_a_newer_one(lab: ApiLab) -> None:
    node = lab.join("n1")
    assert node.report(node={"cpu": 4}, version="a.1")["version"] == "a.1"
    assert node.report(node={"cpu": 5}, version="a.2")["version"] == "a.2"
    assert node.report(node={"cpu": 4}, version="a.1")["version"] == "a.2"
    envelope = lab.stored("/node/-/n1")
    assert envelope is not None and decode_part(envelope.report, NodeReport).cpu == 5


def test_late_facts_of_a_former_life_are_said_anew_also_to_a_server_that_has_begun_anew(lab: ApiLab) -> None:
    node = lab.join("n1")
    assert node.report(node={"cpu": 5}, version="b.1")["version"] == "b.1"
    assert node.report(node={"cpu": 4}, version="a.1")["version"] == "a.1"  # late, from a former life of its agent
    lab.restart()
    assert node.report(version="b.1")["version"] not in ("", "b.1")
    assert node.report(node={"cpu": 5}, version="b.2")["version"] == "b.2"
    assert lab.client.get("node", "n1")["report"]["cpu"] == 5


def test_facts_that_may_have_been_written_though_the_store_did_not_answer_are_asked_for_again(tmp_path: Path) -> None:
    store = SilentStore(SystemClock())
    lab = ApiLab(tmp_path, store)
    try:
        node = lab.join("n1")
        assert node.report(node={"cpu": 5}, version="b.1")["version"] == "b.1"
        store.silent = True
        with pytest.raises(Unavailable):
            node.report(node={"cpu": 4}, version="a.1")
        store.silent = False
        assert lab.client.get("node", "n1")["report"]["cpu"] == 4
        assert node.report(version="b.1")["version"] not in ("", "b.1")
    finally:
        lab.close()


class SilentStore(MemoryStore):
    """Commits; while ``silent``, nobody hears that it has."""

    silent = False

    async def commit(
        self,
        writes: Sequence[Write],
        preconditions: Sequence[Precondition] = (),
        *,
        idempotency_key: str | None = None,
    ) -> int:
        revision = await super().commit(writes, preconditions, idempotency_key=idempotency_key)
        if self.silent:
            raise StoreUnavailable("the answer was lost")
        return revision


def test_nodes_are_told_whom_to_ask_how_far_away_they_are_once(lab: ApiLab) -> None:
    one, two, three = (lab.join(name) for name in ("n1", "n2", "n3"))
    for number, node in enumerate((one, two)):
        node.report(node={"cpu": 4, "address": f"10.0.0.{number}", "echo_port": 8445})
    three.report(node={"cpu": 4, "address": "10.0.0.3"})  # an older agent: nobody can ask it
    asked = wait_for_peers(one, {two.uid})
    [peer] = asked["peers"]
    assert (peer["address"], peer["port"]) == ("10.0.0.1", 8445)
    answering = wait_for_peers(two, {one.uid})
    assert peer["key"] == pair_key(bytes.fromhex(answering["key"]), one.uid).hex()
    assert one.report(peers_version=asked["version"])["peers"] is None
    assert {p["uid"] for p in wait_for_peers(three, {one.uid, two.uid})["peers"]} == {one.uid, two.uid}


def wait_for_peers(node: JoinedNode, uids: set[str]) -> Any:
    """The peers that a node is told, once they are these: the API servers sort them once a second at most."""
    for _ in range(1200):
        told = node.report()["peers"]
        if told is not None and {peer["uid"] for peer in told["peers"]} == uids:
            return told
        threading.Event().wait(0.05)
    raise AssertionError(told)


@pytest.mark.parametrize(
    ("verb", "given"), [("exec", {"argv": ["true"]}), ("start", {}), ("restart", {}), ("suspend", {})]
)
def test_what_is_refused_of_a_workload_out_of_reach_says_why_and_is_not_remedied_by_its_console(
    lab: ApiLab, verb: str, given: dict[str, Any]
) -> None:
    node, lost = lab.join("n1"), "node n1 sends no heartbeat; the workload may still run there; waiting for the node"
    start_vm(lab, node)
    envelope = lab.stored("/vm/default/web")
    assert envelope is not None
    envelope.status = msgspec.Raw(msgspec.json.encode({"phase": "Unknown", "node": "n1", "message": lost}))
    lab.put(envelope)
    with pytest.raises(IllegalTransition, match=f"vm/web is Unknown: {verb} is not possible now: {lost}") as refused:
        lab.client.verb("vm", "web", verb, given)
    assert refused.value.hint == "possible now: stop, delete"
    lab.client.verb("vm", "web", "stop")
    lab.client.delete("vm", "web")
