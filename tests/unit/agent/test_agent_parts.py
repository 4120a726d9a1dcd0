"""The agent's small pure parts: folding networks, naming disks, seeds, orphans; and its durable copies."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from tests.scenario.agent_lab import ADDRESS, make_allocation, make_endpoint, make_nic, make_published_port

from weft.agent.agent import Agent, AgentPart
from weft.agent.allocation.orphans import MOST_ORPHAN_BYTES, copy_orphans
from weft.agent.image.cache import CachedImage
from weft.agent.network.plan import fold_filters, fold_segments, keep_forwards, ports_of, read_endpoint, read_forward
from weft.agent.node.facts import inspect_capacity
from weft.agent.state.allocation import Checkpoint, LocalAllocation, port_id, read_allocation
from weft.agent.state.allocation_state import AllocationState
from weft.agent.state.checkpoint import CheckpointStore, Surroundings
from weft.agent.workload.kind import Prepared
from weft.agent.workload.seed import build_tar
from weft.agent.workload.shape import name_serial
from weft.agent.workload.vm import plan_guest
from weft.contracts.driver.network import Endpoint, Forward
from weft.contracts.driver.runtime import BootDisk, BootKernel
from weft.contracts.driver.volume import VolumeFacts
from weft.kinds.allocation import AllocatedGroup, AllocatedNic, AllocatedRule, AllocatedVolume, Resources
from weft.kinds.endpoint import EndpointSpec
from weft.objects.envelope import decode_part
from weft.objects.errors import InvalidInput
from weft.objects.identity import Ref, short_id
from weft.objects.image.bundle import BundleManifest


def wanted(name: str = "web", **fields: object) -> LocalAllocation:
    return read_allocation(make_allocation(name, **fields))


@pytest.mark.parametrize("what", ["report", "ask"])
def test_no_two_parts_give_the_same_field(what: str) -> None:
    rows = [AgentPart(**{what: lambda: {"heard": 1}}), AgentPart(**{what: lambda: {"heard": 2}})]  # type: ignore[arg-type]
    parts: Any = SimpleNamespace(list_parts=lambda: rows, reporter=None, allocations=None, watches=None)
    with pytest.raises(ValueError, match="two parts of the agent give the fields heard"):
        Agent(parts).make_node_report() if what == "report" else Agent(parts).make_question()


def test_a_nic_here_is_here_whatever_the_list_still_says() -> None:
    told = Endpoint(make_nic().mac, "10.20.0.11", "web", "10.99.0.9")
    far = Endpoint("m", "10.20.0.12", "db", "10.99.0.2")
    segment = fold_segments([wanted()], {"uid-of-blue": [far, told]}, ADDRESS)["uid-of-blue"]
    assert [(e.name, e.node_address) for e in segment.endpoints] == [("web", ADDRESS), ("db", "10.99.0.2")]
    assert (segment.id, segment.vni, segment.nat) == (short_id("uid-of-blue"), 4001, True)


def test_a_nic_here_has_the_name_that_its_network_calls_it_by_now() -> None:
    """A VM that took another one's place is called as that one was, though its allocation doesn't know."""
    nic = make_nic()
    called = Endpoint(nic.mac, nic.address, "shop", ADDRESS, uid=nic.uid)
    others = msgspec.structs.replace(called, uid="of another NIC that had the address")
    for known, name in ((called, "shop"), (others, "web")):
        (endpoint,) = fold_segments([wanted()], {"uid-of-blue": [known]}, ADDRESS)["uid-of-blue"].endpoints
        assert endpoint.name == name


def test_one_fold_makes_one_segment_of_many_allocations() -> None:
    here = [wanted(f"w{n}", nics=[make_nic(f"10.20.0.{n}"), make_nic("10.30.0.9", "red")]) for n in (11, 12)]
    segments = fold_segments(here, {}, ADDRESS)
    assert sorted(segments) == ["uid-of-blue", "uid-of-red"]
    assert len(segments["uid-of-blue"].endpoints) == 2


def of(project: str, name: str, *nics: AllocatedNic) -> LocalAllocation:
    return wanted(name, nics=list(nics), workload=Ref("vm", name, f"uid-of-{name}", project))


def test_a_guest_of_another_project_has_its_project_in_its_name() -> None:
    nic = msgspec.structs.replace(make_nic(network="physics/blue"), network_uid="uid-of-blue")
    here = of("biology", "db", nic)
    segment = fold_segments([here], {}, ADDRESS)["uid-of-blue"]
    assert (segment.name, [e.name for e in segment.endpoints]) == ("blue", ["db.biology"])
    assert [port.hostname for port in ports_of(here)] == ["db.biology"]
    far = make_endpoint("10.20.0.12", "db", ADDRESS)
    spec = decode_part(far.spec, EndpointSpec)
    whose = Ref("vm", "db", "u", "biology")
    far.spec = msgspec.Raw(msgspec.json.encode(msgspec.structs.replace(spec, network="physics/blue", workload=whose)))
    endpoint = read_endpoint(far)
    assert endpoint is not None and endpoint.name == "db.biology"


def test_a_shared_network_learns_no_names_of_the_other_project_s_networks() -> None:
    own, other = make_nic("10.30.0.9", "own"), make_nic("10.20.0.11", "physics/blue")
    neighbours = {"uid-of-own": [Endpoint("m", "10.30.0.8", "secret", ADDRESS)]}
    segments = fold_segments([of("biology", "db", other, own)], neighbours, ADDRESS)
    assert segments["uid-of-physics/blue"].aliases == []


def test_names_of_a_shared_network_s_guests_say_whose_they_are_in_the_guest_s_own() -> None:
    own, other = make_nic("10.30.0.9", "own"), make_nic("10.20.0.11", "physics/blue")
    neighbours = {"uid-of-physics/blue": [Endpoint("m", "10.20.0.8", "web", ADDRESS)]}
    segments = fold_segments([of("biology", "db", own, other)], neighbours, ADDRESS)
    assert [alias.name for alias in segments["uid-of-own"].aliases] == ["db.biology.blue", "web.physics.blue"]


def test_ports_that_are_closed_let_nothing_through_whatever_their_groups_say() -> None:
    group = AllocatedGroup(name="web", uid="g", ingress=[AllocatedRule(protocol="tcp", first_port=80, last_port=80)])
    alone, grouped = wanted("alone"), wanted("grouped", groups=[group])
    segments = fold_segments([alone, grouped], {}, ADDRESS)
    closed = fold_filters([alone, grouped], segments, {alone.uid, grouped.uid})
    assert [(f.ingress, f.egress, f.closed) for f in closed] == [((), (), True)] * 2
    (filter_,) = fold_filters([alone, grouped], segments)
    assert filter_.port_id == port_id(grouped.uid, make_nic().uid) and [
        rule.first_port for rule in filter_.ingress
    ] == [80]


def test_two_incarnations_never_share_a_port() -> None:
    (one,), (two,) = ports_of(wanted(uid="a")), ports_of(wanted(uid="b"))
    assert one.id != two.id and one.mac == two.mac
    assert one.id == port_id("a", make_nic().uid)


def test_what_leads_nowhere_yet_is_left_out() -> None:
    assert read_endpoint(make_endpoint("10.20.0.12", "db", None)) is None
    assert read_forward(make_published_port(8080, "10.20.0.11", None)) is None
    forward = read_forward(make_published_port(8080, "10.20.0.11", ADDRESS))
    assert forward == Forward(8080, "tcp", short_id("uid-of-blue"), "10.20.0.11", 80, ADDRESS)


def test_only_an_orphans_forwards_outlive_their_published_port() -> None:
    segment = short_id("uid-of-blue")
    mine = Forward(8080, "tcp", segment, "10.20.0.11", 80, ADDRESS)
    other = Forward(8081, "tcp", segment, "10.20.0.12", 80, ADDRESS)
    assert keep_forwards([], [mine, other], [wanted()]) == [mine]
    assert keep_forwards([], [mine, other], []) == []
    assert keep_forwards([other], [mine], [wanted()]) == [mine, other]


def test_disk_serials_fit_and_differ() -> None:
    names = ["data", "root", "a-very-long-volume-name-1", "a-very-long-volume-name-2", "weft-seed"]
    serials = [name_serial(name) for name in names]
    assert serials[0] == "data"
    assert len(set(serials)) == 5 and all(len(serial) <= 20 for serial in serials)
    assert not {"root", "weft-seed"} & set(serials)


def facts(id: str) -> VolumeFacts:
    return VolumeFacts(id, f"/v/{id}", "qcow2", 1, 1)


def prepared(manifest: BundleManifest, **fields: object) -> Prepared:
    return Prepared(image=CachedImage("/i", manifest), root=facts("r"), links=["t0"], **fields)  # type: ignore[arg-type]


def test_a_guest_boots_its_bundles_kernel_or_else_its_disk() -> None:
    with_kernel = plan_guest(wanted(), prepared(BundleManifest("d", "raw", "k", "i", "quiet", agent=True)))
    assert (with_kernel.boot, with_kernel.has_agent) == (BootKernel("/i/k", "/i/i", "quiet"), True)
    plain = plan_guest(wanted(), prepared(BundleManifest("d", "qcow2")))
    assert (plain.boot, plain.has_agent) == (BootDisk(), False)


def test_disks_come_in_order_root_volumes_seed() -> None:
    volumes = [AllocatedVolume(name=n, uid=n, size=1) for n in ("b", "a")]
    plan = plan_guest(
        wanted(volumes=volumes, resources=Resources(cpu=1.5, memory=1 << 28)),
        prepared(BundleManifest("d", "raw"), volumes=[facts("b"), facts("a")], seed="/s.tar"),
    )
    assert [(d.serial, d.format, d.read_only) for d in plan.disks] == [
        ("root", "qcow2", False),
        ("b", "qcow2", False),
        ("a", "qcow2", False),
        ("weft-seed", "raw", True),
    ]
    assert (plan.cpu, plan.vcpus) == (1.5, 2)


def test_too_little_memory_for_the_image_is_named() -> None:
    with pytest.raises(InvalidInput, match="image tiny needs"):
        plan_guest(wanted(), prepared(BundleManifest("d", "raw", min_memory_bytes=1 << 30)))


def test_a_seed_holds_user_data_and_the_name_and_is_whole_blocks() -> None:
    data = build_tar(wanted(user_data="#!/bin/sh\necho hällo\n"))
    assert len(data) % 512 == 0 and data == build_tar(wanted(user_data="#!/bin/sh\necho hällo\n"))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["./user-data", "./meta-data"]
        user, meta = (tar.extractfile(name) for name in tar.getnames())
        assert user is not None and user.read().decode() == "#!/bin/sh\necho hällo\n"
        assert meta is not None and b"local-hostname: web\n" in meta.read()


def test_copies_outlive_and_a_broken_one_harms_no_other(tmp_path: Path) -> None:
    copies = CheckpointStore(str(tmp_path))
    allocation, checkpoint = make_allocation(), Checkpoint(run="up", restart_generation=3, made=True)
    copies.save("abc", allocation, checkpoint)
    (tmp_path / "allocations" / "broken.json").write_bytes(b"{")
    ((envelope, found),) = CheckpointStore(str(tmp_path)).load()
    assert (found, envelope.name) == (checkpoint, allocation.name)
    assert bytes(envelope.spec) == bytes(allocation.spec)
    copies.remove("abc")
    copies.remove("abc")
    assert copies.load() == []


def test_surroundings_outlive_and_are_empty_at_first(tmp_path: Path) -> None:
    copies = CheckpointStore(str(tmp_path))
    assert copies.load_surroundings() == Surroundings()
    known = Surroundings({"n": [Endpoint("m", "a", "b", "c")]}, [Forward(1, "tcp", "s", "a", 2, "n")])
    copies.save_surroundings(known)
    assert CheckpointStore(str(tmp_path)).load_surroundings() == known


def test_orphans_are_told_whole_unless_that_is_too_much(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    small = [AllocationState(make_allocation("a", user_data="x"), Checkpoint(), store)]
    assert json.loads(copy_orphans(small)[0])["spec"]["user_data"] == "x"
    large = [AllocationState(make_allocation(f"w{n}", user_data="x" * 60_000), Checkpoint(), store) for n in range(4)]
    told = copy_orphans(large)
    assert len(told) == 4 and sum(map(len, told)) < MOST_ORPHAN_BYTES
    assert msgspec.json.decode(told[0])["uid"] == "alloc-w0"


def test_capacity_is_what_was_told_or_found(tmp_path: Path) -> None:
    told = inspect_capacity(str(tmp_path), 1.5, 10, 20)
    assert (told.cpu, told.memory_bytes, told.disk_bytes) == (1.5, 10, 20)
    found = inspect_capacity(str(tmp_path), None, None, None)
    assert found.cpu >= 1 and found.memory_bytes > 0 and found.disk_bytes > 0
