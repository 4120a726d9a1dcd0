"""Two clusters that are linked, and a witness as a process of its own: what each says to it, what both know then, and
what a promotion makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.scenario.api.test_api_snapshots import act
from tests.scenario.api_lab import make_image
from tests.scenario.clusters.test_api_replicas import DISKS, WORKLOAD
from tests.scenario.link_lab import Side, two_sides
from tests.witness_place import WitnessPlace

from weft.client.cluster.peer import connect_peer
from weft.client.cluster.witness import WitnessLink, ask_witness
from weft.controllers.failover import facts
from weft.kinds.allocation import ALLOCATION, AllocationSpec, Resources
from weft.kinds.replica import REPLICA, Point, ReplicaMarks, ReplicaSpec, ReplicaStatus
from weft.kinds.replication import REPLICATION, ReplicationMarks, ReplicationSpec, ReplicationStatus, SentPoint
from weft.kinds.snapshot import SNAPSHOT, SnapshotDisk, SnapshotMarks, SnapshotSpec, SnapshotStatus
from weft.kinds.vm import VM, VmSpec
from weft.objects.errors import Forbidden, IllegalTransition, InvalidInput, Unavailable, WeftError
from weft.objects.identity import Ref
from weft.protocol.failover.confirmed import CONFIRMED_PREFIX, read_confirmed
from weft.protocol.heartbeat import Digest, write_digest


def wait_for(side: Side, kind: str, reason: str) -> dict[str, Any]:
    """The condition of the object \"web\" once it has this reason."""
    ends = time.monotonic() + 90.0
    while True:
        said = [one for one in side.client.get(kind, "web").get("conditions") or () if one["type"] == "Witnessed"]
        if said and said[0]["reason"] == reason:
            return dict(said[0])
        assert time.monotonic() < ends, said
        time.sleep(0.05)


def put_pair(east: Side, west: Side, *, automatic: bool = False) -> None:
    """vm/web of east has its replica at west, with one point."""
    status = ReplicationStatus(
        phase="Replicating", workload_uid="w", point=SentPoint(snapshot="s", snapshot_uid="s", begun_at=1.0, number=4)
    )
    spec, held = ReplicationSpec(of="vm/web", cluster="west", automatic=automatic), ReplicationMarks()
    held.guard = "hold" if automatic else ""
    east.put(REPLICATION.make("web", spec, 1.0, uid="a" * 32, project="default", marks=held, status=status))
    west.client.create(make_image())
    disks = {name: SnapshotDisk(key=name, size=size, pool="local") for name, size in DISKS.items()}
    taken = SnapshotStatus(
        phase="Ready", workload_uid="u", workload_spec=WORKLOAD, disks=disks, node="n1", node_uid="u1", listed=True
    )
    of, marks = SnapshotSpec(of="vm/web"), SnapshotMarks(automatic="replication", replica="web")
    west.put(SNAPSHOT.make("web-point-4", of, 1.0, uid="p4", project="default", marks=marks, status=taken))
    point = Point(number=4, snapshot="web-point-4", snapshot_uid="p4", source="s")
    replica = ReplicaSpec(of="vm/web", origin="a" * 32, workload=WORKLOAD, disks=DISKS)
    there = ReplicaStatus(phase="Standby", points=[point], node="n1", node_uid="u1")
    west.put(
        REPLICA.make(
            "web",
            replica,
            1.0,
            uid="b" * 32,
            project="default",
            creator="cluster:east",
            marks=ReplicaMarks(automatic=automatic),
            status=there,
        )
    )


def refuse(link: WitnessLink, requests: Sequence[Any]) -> list[Any]:
    raise Unavailable("no route to the witness")


def set_witness(side: Side, name: str, place: WitnessPlace, site: str) -> None:
    token = place.tokens[site]
    text = f"{token.site}.{token.secret}.{token.ca_sha256}"
    spec = {"witness": {"url": place.url, "peer": name}, "values": {"witness": text}}
    side.client.patch("cluster", name, {"spec": spec})


def test_a_copy_is_promoted_only_once_the_witness_hears_no_more_of_the_primary_which_then_learns_it_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "PROMISE_SECONDS", 5.0)
    place = WitnessPlace(tmp_path)
    place.start()
    try:
        with two_sides(tmp_path) as (east, west):
            east.link("west", west, west.link_token("east"))
            put_pair(east, west)
            set_witness(east, "west", place, "east")
            assert "west hasn't named" in wait_for(east, "replication", "OnlyHere")["message"]
            set_witness(west, "east", place, "west")
            wait_for(east, "replication", "Confirmed")
            wait_for(west, "replica", "PrimarySpeaks")
            with pytest.raises(IllegalTransition, match="word from east") as speaks:
                act(west, "replica/web", "promote")
            assert speaks.value.token == "primaryAnswers" and "--force" in (speaks.value.hint or "")
            east.ask_witness = refuse
            assert wait_for(east, "replication", "Unreachable")["status"] == "Unknown"
            wait_for(west, "replica", "PrimarySilent")
            place.kill()  # what it knows is on disk
            place.start()
            assert act(west, "replica/web", "promote", force=True)["name"] == "web"
            assert "since its copy was promoted" in wait_for(west, "replica", "Confirmed")["message"]
            east.ask_witness = ask_witness
            assert "generation 2" in wait_for(east, "replication", "Superseded")["message"]
            east.client.patch("cluster", "west", {"spec": {"witness": None}})
            assert wait_for(east, "replication", "NoWitness")["status"] == "Unknown"
            secrets = [place.tokens[site].secret for site in ("east", "west")]
            shown = str([side.cluster(name) for side, name in ((east, "west"), (west, "east"))])
            assert not any(secret in shown for secret in secrets)
    finally:
        place.kill()


def test_a_link_has_no_witness_without_its_token_and_takes_no_other_value(tmp_path: Path) -> None:
    with two_sides(tmp_path) as (east, west):
        east.link("west", west, west.link_token("east"))
        witness = {"url": "https://192.0.2.7:7443", "peer": "west"}
        for spec, said in (
            ({"witness": witness}, "no token for the witness"),
            ({"witness": witness, "values": {"witness": "x"}}, "not a witness's token"),
            ({"values": {"token": "x"}}, "no other value"),
            ({"witness": {**witness, "url": "http://x"}}, "not the address of a server"),
        ):
            with pytest.raises(WeftError) as refused:
                east.client.patch("cluster", "west", {"spec": spec})
            assert isinstance(refused.value, InvalidInput) and said in refused.value.message
        token = f"east.{'e' * 64}.{'c' * 64}"
        east.client.patch("cluster", "west", {"spec": {"witness": witness, "values": {"witness": token}}})
        east.link("west", west, west.link_token("east"))
        kept = east.cluster("west")["spec"]
        assert kept["witness"] == witness and {"token", "witness"} == set(kept["sealed"]) and token not in str(kept)


def put_guarded(east: Side, guard: Literal["", "hold"] = "hold") -> None:
    """vm/web of east runs on a node that guards it, whose newest heartbeat has a stamp."""
    image = WORKLOAD["image"]
    east.put(VM.make("web", VmSpec(image=image), 1.0, uid="w", project="default"))
    vm, resources = Ref("vm", "web", "w", "default"), Resources(cpu=1, memory=1 << 28)
    spec = AllocationSpec(
        node="n1", node_uid="u1", workload=vm, workload_generation=1, incarnation=1, resources=resources, guard=guard
    )
    east.put(ALLOCATION.make("u1.x", spec, 1.0, uid="x"))
    east.run(east.store.grant("node/u1", "u1", 600.0, write_digest(Digest(stamp="boot/1"))))


def read_confirmed_stamps(east: Side) -> dict[str, str]:
    found = east.run(east.store.leases(f"{CONFIRMED_PREFIX}u1", digests=True))
    return read_confirmed(found[0].digest) if found else {}


def test_a_copy_takes_over_once_its_primary_is_cut_off_from_both_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "PROMISE_SECONDS", 4.0)
    place = WitnessPlace(tmp_path)
    place.start()
    try:
        with two_sides(tmp_path) as (east, west):
            east.link(
                "west",
                west,
                west.link_token("east", grants=["replicate", "take-over"], projects={"default": "default"}),
                projects={"default": "default"},
            )
            for side, name, site in ((east, "west", "east"), (west, "east", "west")):
                set_witness(side, name, place, site)
            put_guarded(east)
            put_pair(east, west, automatic=True)
            wait_for(east, "replication", "Confirmed")
            wait_until(lambda: read_confirmed_stamps(east) == {"w": "boot/1"})
            with pytest.raises(IllegalTransition, match="takes over automatically"):
                act(west, "replica/web", "promote")
            east.ask_witness = refuse
            east.run(east.store.grant("node/u1", "u1", 600.0, write_digest(Digest(stamp="boot/2"))))
            wait_until(lambda: read_confirmed_stamps(east) == {"w": "boot/2"})  # the other cluster promises instead
            wait_for(west, "replica", "PrimarySilent")
            wait_until(lambda: west.client.get("replica", "web")["marks"]["renewals"] > 30)
            assert west.client.get("replica", "web")["marks"]["role"] == "standby"
            west.proxy.cut()
            east.proxy.cut()
            wait_until(lambda: west.client.get("replica", "web")["marks"]["role"] == "primary")
            taken = west.client.get("replica", "web")["marks"]
            assert (
                taken["generation"] == 2 and taken["granted"] and west.client.get("vm", "web")["spec"]["run"] == "run"
            )
            made = [west.client.get("vm", "web"), *west.client.list("volume").items]
            assert not [one for one in made if "created_by" in one], "the former primary could change or delete it"
            wait_for(west, "replica", "Confirmed")
            east.run(east.store.grant("node/u1", "u1", 600.0, write_digest(Digest(stamp="boot/3"))))
            east.ask_witness = ask_witness
            assert "generation 2" in wait_for(east, "replication", "Superseded")["message"]
            west.proxy.mend()
            east.proxy.mend()
            with pytest.raises(WeftError):
                renew(east, "web")
            assert read_confirmed_stamps(east) == {"w": "boot/2"}  # nobody confirms it any more
    finally:
        place.kill()


def test_only_the_source_of_a_replica_renews_its_hold(tmp_path: Path) -> None:
    with two_sides(tmp_path) as (east, west):
        east.link(
            "west",
            west,
            west.link_token("east", grants=["replicate", "take-over"], projects={"default": "default"}),
            projects={"default": "default"},
        )
        put_pair(east, west)
        renew(east, "web")
        assert west.client.get("replica", "web")["marks"]["renewals"] == 1
        # It holds a take-over up, so nobody here may, whatever rights they have.
        for role in ("operator", "admin"):
            with pytest.raises(Forbidden, match="only the linked cluster that made"):
                west.with_token(use="access", role=role).verb(
                    "replica", "web", "renew", {"origin": "a" * 32}, project="default"
                )
        assert west.client.get("replica", "web")["marks"]["renewals"] == 1
        with pytest.raises(IllegalTransition, match="of another replication"):
            renew(east, "web", "c" * 32)
        for field, value in (("automatic", True), ("renewals", 9), ("granted", "x")):
            with pytest.raises(WeftError, match=field):
                west.client.patch("replica", "web", {"spec": {field: value}})


def renew(east: Side, name: str, origin: str = "a" * 32) -> None:
    client = connect_peer(east.peer("west")).ask_for("default")
    try:
        client.verb("replica", name, "renew", {"origin": origin}, project="default")
    finally:
        client.close()


def wait_until(holds: Callable[[], object]) -> None:
    ends = time.monotonic() + 90.0
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.05)
