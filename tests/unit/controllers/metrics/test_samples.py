"""Samples of one moment: whose they are, of when, and that a hostile node counts for no other node's guests."""

from __future__ import annotations

import msgspec
import pytest

from weft.contracts.store import MAX_DIGEST_BYTES, Lease
from weft.controllers.metrics.samples import list_samples
from weft.informer.view import View, make_view
from weft.kinds.allocation import AllocationSpec, Resources, allocation_name
from weft.kinds.replication import REPLICATION, ReplicationSpec, ReplicationStatus, SentPoint
from weft.objects.envelope import Envelope, encode_envelope
from weft.objects.identity import Ref
from weft.protocol.heartbeat import (
    MOST_DISKS,
    MOST_NICS,
    MOST_PATHS,
    MOST_PORTS,
    DeviceCounts,
    Digest,
    HeldPorts,
    Instances,
    PathFigures,
    Use,
    add_devices,
    write_digest,
)
from weft.telemetry.metrics.sample import Sample

NOW = 1_795_471_245.0


def put(view: View, envelope: Envelope) -> None:
    assert view.put(envelope.key, encode_envelope(envelope), 1) is not None


def make_fabric(*, once: bool = False, ended: bool = False) -> View:
    view = make_view()
    for n in (1, 2):
        report = msgspec.json.encode({"cpu": 8.0, "memory": 2**34, "disk": 2**40})
        status = msgspec.json.encode({"phase": "Ready", "allocated_cpu": 2.0})
        put(
            view,
            Envelope(kind="node", name=f"n{n}", uid=f"node{n}", report=msgspec.Raw(report), status=msgspec.Raw(status)),
        )
    spec = AllocationSpec(
        node="n1",
        node_uid="node1",
        workload=Ref(kind="vm", project="shop", name="web", uid="vm1"),
        workload_generation=1,
        incarnation=1,
        resources=Resources(cpu=2.0, memory=2**30),
        once=once,
    )
    made = Envelope(kind="allocation", name=allocation_name("node1", "al1"), uid="al1")
    made.spec = msgspec.Raw(msgspec.json.encode(spec))
    made.report = msgspec.Raw(msgspec.json.encode({"state": "stopped", "ended": ended, "incarnation": 1}))
    put(view, made)
    return view


def heartbeat(uid: str, age: float, guests: dict[str, Use], *, measured: bool = True) -> Lease:
    return lease(uid, Digest(guests, Use(100, 5, 6), Instances(busy=3), measured=measured), age)


def lease(uid: str, digest: Digest, age: float = 0.0) -> Lease:
    return Lease(f"node/{uid}", uid, 1, 30.0 - age, write_digest(digest))


def read(samples: list[Sample], name: str) -> dict[tuple[tuple[str, str], ...], tuple[int, float]]:
    return {sample.labels: (sample.at, sample.value) for sample in samples if sample.name == name}


def test_a_guest_s_use_has_its_project_name_and_node() -> None:
    samples = list(list_samples(make_fabric(), [heartbeat("node1", 2.0, {"vm1": Use(1500, 7, 8)})], {}, NOW))
    labels = (("project", "shop"), ("kind", "vm"), ("name", "web"), ("node", "n1"))
    at = int((NOW - 2) * 1000)
    assert read(samples, "weft_guest_cpu_cores") == {labels: (at, 1.5)}
    assert read(samples, "weft_guest_memory_requested_bytes") == {labels: (at, 2**30)}
    assert read(samples, "weft_node_cpu_used_cores") == {(("node", "n1"),): (at, 1.6)}
    assert read(samples, "weft_node_function_instances")[(("node", "n1"), ("state", "busy"))] == (at, 3)


def test_a_node_that_is_silent_is_down_and_nothing_else_is_told_of_it() -> None:
    samples = list(list_samples(make_fabric(), [heartbeat("node1", 0.0, {})], {}, NOW))
    assert {labels[0][1]: value for labels, (_, value) in read(samples, "weft_node_up").items()} == {
        "n1": 1.0,
        "n2": 0.0,
    }
    assert list(read(samples, "weft_node_cpu_cores")) == [(("node", "n1"),)]


@pytest.mark.parametrize(("phase", "value"), [("Autonomous", 1.0), ("NotReady", 0.0)])
def test_a_silent_node_is_autonomous_while_its_autonomy_lasts(phase: str, value: float) -> None:
    view = make_fabric()
    spec, status = msgspec.Raw(b'{"autonomy_seconds": 600}'), msgspec.Raw(msgspec.json.encode({"phase": phase}))
    put(view, Envelope(kind="node", name="n3", uid="node3", spec=spec, status=status))
    samples = list(list_samples(view, [heartbeat("node1", 0.0, {})], {}, NOW))
    labels, at = (("node", "n3"),), int(NOW * 1000)
    assert read(samples, "weft_node_autonomous") == {labels: (at, value)}
    assert read(samples, "weft_node_up")[labels] == (at, 0.0)


def test_a_node_that_never_came_is_not_down_yet() -> None:
    view = make_fabric()
    put(view, Envelope(kind="node", name="n3", uid="node3", status=msgspec.Raw(b'{"phase": "Joining"}')))
    samples = list(list_samples(view, [heartbeat("node1", 0.0, {})], {}, NOW))
    assert [labels[0][1] for labels in read(samples, "weft_node_up")] == ["n1", "n2"]
    samples = list(list_samples(view, [heartbeat("node3", 0.0, {})], {}, NOW))
    assert read(samples, "weft_node_up")[(("node", "n3"),)][1] == 1.0


def test_losses_and_round_trips_are_told_of_links_between_nodes_that_there_are() -> None:
    known = PathFigures(latency_ms=3.0, loss=0.25)
    paths = {"node2": known, "node1": known, **{f"made-up-{number}": known for number in range(2 * MOST_PATHS)}}
    samples = list(list_samples(make_fabric(), [lease("node1", Digest(paths=paths))], {}, NOW))
    labels, at = (("node", "n1"), ("peer", "n2")), int(NOW * 1000)
    assert read(samples, "weft_link_loss_ratio") == {labels: (at, 0.25)}
    assert read(samples, "weft_link_round_trip_seconds") == {labels: (at, 0.003)}
    for loss, trip in ((1.5, 1e9), (-1.0, -1.0)):
        paths = {"node2": PathFigures(latency_ms=trip, loss=loss)}
        samples = list(list_samples(make_fabric(), [lease("node1", Digest(paths=paths))], {}, NOW))
        assert not read(samples, "weft_link_loss_ratio") and not read(samples, "weft_link_round_trip_seconds")


def test_a_hostile_node_counts_for_no_guest_of_another() -> None:
    hostile = [
        heartbeat("node2", 0.0, {"vm1": Use(10**6), "no-such": Use(1)}),
        heartbeat("stranger", 0.0, {"vm1": Use(9)}),
    ]
    samples = list(list_samples(make_fabric(), hostile, {}, NOW))
    assert read(samples, "weft_guest_cpu_cores") == {}


def test_a_heartbeat_is_told_once() -> None:
    view, sent = make_fabric(), dict[str, int]()
    first = list(list_samples(view, [heartbeat("node1", 1.0, {})], sent, NOW))
    assert read(first, "weft_node_cpu_cores")
    assert not read(list(list_samples(view, [heartbeat("node1", 11.0, {})], sent, NOW + 10)), "weft_node_cpu_cores")
    assert read(list(list_samples(view, [heartbeat("node1", 3.0, {})], sent, NOW + 10)), "weft_node_cpu_cores")
    list(list_samples(view, [], sent, NOW + 60))
    assert sent == {}


def test_what_a_node_can_t_measure_isn_t_told_as_zero() -> None:
    samples = list(list_samples(make_fabric(), [heartbeat("node1", 0.0, {"vm1": Use(5)}, measured=False)], {}, NOW))
    assert not read(samples, "weft_node_cpu_used_cores") and not read(samples, "weft_guest_cpu_cores")
    assert read(samples, "weft_node_cpu_cores")


def test_a_task_has_samples_until_its_end_and_a_vm_that_stopped_goes_on_having_them() -> None:
    digest = [heartbeat("node1", 0.0, {"vm1": Use(0, 0, 4096)})]
    for once, ended, expected in ((True, False, 1), (True, True, 0), (False, True, 1)):
        samples = list(list_samples(make_fabric(once=once, ended=ended), digest, {}, NOW))
        for name in ("weft_guest_disk_bytes", "weft_guest_memory_requested_bytes"):
            assert len(read(samples, name)) == expected, (name, once, ended)


def count(devices: dict[str, DeviceCounts], node: dict[str, float] | None = None, uid: str = "node1") -> list[Sample]:
    digest = Digest(devices=devices, node=node or {})
    return list(list_samples(make_fabric(), [Lease(f"node/{uid}", uid, 1, 30.0, write_digest(digest))], {}, NOW))


def test_disks_and_nics_of_a_guest_are_counters_with_names() -> None:
    counts = DeviceCounts({"root": [1, 2, 3, 4, 0.5, -1], "": [9]}, [[10, 11, 12, 13, 14, 15], [-1] * 6])
    samples = count({"vm1": counts}, {"pressure.io.full": 7.5, "cpu": 3.0, "memory.available": 5, "strange": 1})
    web = (("project", "shop"), ("kind", "vm"), ("name", "web"), ("node", "n1"))
    at = int(NOW * 1000)
    assert read(samples, "weft_guest_disk_read_bytes_total") == {
        (*web, ("disk", "root")): (at, 1), (*web, ("disk", "all")): (at, 9),
    }  # fmt: skip
    assert read(samples, "weft_guest_disk_read_seconds_total") == {(*web, ("disk", "root")): (at, 0.5)}
    assert read(samples, "weft_guest_disk_write_seconds_total") == {}
    assert read(samples, "weft_guest_network_sent_bytes_total") == {(*web, ("nic", "0")): (at, 13)}
    pressure = (("node", "n1"), ("resource", "io"), ("tasks", "all"))
    assert read(samples, "weft_node_pressure_seconds_total") == {pressure: (at, 7.5)}
    assert read(samples, "weft_node_memory_available_bytes") == {(("node", "n1"),): (at, 5)}
    assert not any("strange" in sample.name for sample in samples)


def test_a_hostile_node_makes_no_more_series_than_a_guest_has_devices_and_none_with_odd_names() -> None:
    odd = {'a"} evil{x="': [1.0] * 6, "<script>": [1.0] * 6, "x" * 253: [1.0] * 6, "a\n": [1.0] * 6, "-a": [1.0] * 6}
    many = {f"d{n}": [1.0] * 60 for n in range(500)}
    of_odd = count({"vm1": DeviceCounts(odd, [])})
    assert read(of_odd, "weft_guest_disk_reads_total") == {}
    samples = count({"vm1": DeviceCounts(many, [[1] * 60] * 500)}, {"cpu": float("nan")})
    of_guests = [sample for sample in samples if sample.name.startswith("weft_guest_")]
    assert 0 < len(of_guests) <= (MOST_DISKS + MOST_NICS) * 6 and not read(
        samples, "weft_node_worked_cpu_seconds_total"
    )
    assert not read(count({"vm1": DeviceCounts({"root": [1.0] * 6}, [])}, uid="node2"), "weft_guest_disk_reads_total")


@pytest.mark.parametrize("count", ["1" + "0" * 400, "-2", str(2**63), '"many"', "1.5"])
def test_a_count_that_can_not_be_is_no_heartbeat_s(count: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(f'{{"devices": {{"vm1": [{{}}, [[{count}]]]}}}}', type=Digest)


def test_counts_beyond_all_that_is_possible_are_left_out() -> None:
    samples = count({"vm1": DeviceCounts({"root": [1e300, float("inf"), 5, float("nan"), -1, 2]}, [])}, {"cpu": 1e300})
    assert not read(samples, "weft_guest_disk_read_bytes_total") and not read(
        samples, "weft_node_worked_cpu_seconds_total"
    )
    assert len(read(samples, "weft_guest_disk_reads_total")) == 1


@pytest.mark.parametrize("guests", [0, 100, 800])
def test_counts_of_devices_never_crowd_the_usage_out_of_a_heartbeat(guests: int) -> None:
    used = {f"{n:036}": Use(1000, 2**31, 2**33) for n in range(guests)}
    devices = {
        f"{n:036}": DeviceCounts({f"d{d}": [2.5e12] * 6 for d in range(18)}, [[2**40] * 6] * 8) for n in range(250)
    }
    full = tuple(range(65535 - MOST_PORTS, 65535))
    digest = add_devices(Digest(used, held=HeldPorts(full, full)), devices)
    assert len(write_digest(digest)) <= MAX_DIGEST_BYTES and len(digest.guests) == guests
    assert (len(digest.devices) > 10) == (guests < 800)


def test_a_replication_tells_how_old_its_newest_point_is() -> None:
    view = make_view()
    point = SentPoint(snapshot="s", snapshot_uid="s", begun_at=NOW - 20)
    for name, status, paused in (("web", point, False), ("new", None, False), ("rests", point, True)):
        spec = ReplicationSpec(of=f"vm/{name}", cluster="west", rpo=60.0, paused=paused)
        put(view, REPLICATION.make(name, spec, 1.0, project="shop", status=ReplicationStatus(point=status)))
    for phase in ("Stale", "HandedOver", "Failed"):  # its VM writes elsewhere, or migrated: no point is to come
        over, spec = ReplicationStatus(point=point, phase=phase), ReplicationSpec(of="vm/x", cluster="west", rpo=60.0)
        put(view, REPLICATION.make(phase.lower(), spec, 1.0, project="shop", status=over))
    samples = list(list_samples(view, [], {}, NOW))
    labels = (("project", "shop"), ("name", "web"), ("cluster", "west"))
    assert read(samples, "weft_replication_lag_seconds") == {labels: (int(NOW * 1000), 20.0)}
    assert read(samples, "weft_replication_rpo_seconds") == {labels: (int(NOW * 1000), 60.0)}
