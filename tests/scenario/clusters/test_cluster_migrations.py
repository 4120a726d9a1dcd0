"""VMs that migrate from one fabric to another over their link: each with its API server, its scheduler and controllers, and agents
without machines, which know the truth about who runs the guest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.migration_lab import World
from tests.scenario.two_clusters_lab import TERMS, Cluster, two_clusters

from weft.client.cluster.peer import connect_peer
from weft.contracts.store import Delete
from weft.objects.envelope import Envelope, merge_part
from weft.objects.errors import Forbidden, InUse, InvalidInput, WeftError
from weft.objects.identity import object_key


@pytest.fixture
def worlds() -> list[World]:
    """What the next tries are like."""
    return []


@pytest.fixture
def clusters(tmp_path: Path, worlds: list[World]) -> Iterator[tuple[Cluster, Cluster]]:
    with two_clusters(tmp_path, worlds) as sides:
        yield sides


def test_a_running_vm_migrates_with_its_addresses_and_its_volumes_and_leaves_its_name(
    clusters: tuple[Cluster, Cluster],
) -> None:
    east, west = clusters
    east.client.create({"kind": "volume", "name": "data", "project": "default", "spec": {"size": "1M"}})
    before = east.create_vm("web", volumes=["data"], publish=["18080:80"])
    mac = next(iter(east.side.run(east.lab.endpoints()))).mac
    name = east.migrate("web")
    over = east.until_phase("migration", name, "Succeeded", "Failed", "Cancelled")
    assert over["status"]["phase"] == "Succeeded", over["status"]
    assert (over["status"]["target"], over["status"]["actual"]["pause_ms"]) == ("west/w1", 21)
    came = west.until_phase("vm", "web", "Running")
    assert came["status"]["address"] == before["status"]["address"] and came["marks"]["arrives"] == ""
    assert (came["spec"]["volumes"], came["spec"]["publish"]) == (["data"], ["18080:80"])
    assert came["labels"] == {"weft/from-cluster": "east", "weft/from-uid": before["uid"]}
    assert next(iter(west.side.run(west.lab.endpoints()))).mac == mac
    left = east.until("vm", "web", lambda obj: obj["status"].get("reason") == "departed")
    assert (left["status"]["phase"], left["marks"]["departed"]) == ("Stopped", "west/default/web")
    assert "Placed" not in [one["type"] for one in left["conditions"]], "its node has it no more"
    until_told(west, "Created", "Placed", "Arrived", "Running")
    until_told(east, "Created", "Placed", "Running", "Departed")
    for verb, given in {"start": {}, "suspend": {}, "exec": {"argv": ["true"]}, "console": {}, "logs": {}}.items():
        with pytest.raises(WeftError, match="vm/web migrated to cluster west, where it is default/web") as refused:
            east.client.verb("vm", "web", verb, given, project="default")
        assert refused.value.hint == "use it there; weft vm delete frees its name here", "no other verb would work"
    east.until("volume", "data", lambda obj: obj is None)
    assert east.side.run(east.lab.every("allocation")) == []
    until_empty(east, "endpoint")
    west_arrivals(west, 0)
    east.client.patch("cluster", "west", {"spec": TERMS})
    back = west.until_phase("migration", west.migrate("web", "east"), "Failed", "Succeeded")["status"]
    assert (back["phase"], back["reason"]) == ("Failed", "cantTake") and west.runs("web"), "nothing of it was lost"
    said = "vm/web here is only the name of a VM that migrated to west/default/web: weft vm delete web -p default, at this cluster"
    assert said in back["message"]
    east.client.delete("vm", "web", project="default")
    east.until("vm", "web", lambda obj: obj is None)
    assert west.runs("web")


def until_told(cluster: Cluster, *reasons: str) -> None:
    """The VM's events say all of that, as people see them."""
    ends = time.monotonic() + 60.0
    while set(reasons) - (told := {one["reason"] for one in cluster.client.events(about="vm/default/web")}):
        assert time.monotonic() < ends, told
        time.sleep(0.02)


def until_empty(cluster: Cluster, kind: str) -> None:
    ends = time.monotonic() + 60.0
    while found := cluster.side.run(cluster.lab.every(kind)):
        assert time.monotonic() < ends, found
        time.sleep(0.02)


def west_arrivals(west: Cluster, count: int) -> list[dict[str, Any]]:
    ends = time.monotonic() + 60.0
    while len(found := west.list("arrival")) != count:
        assert time.monotonic() < ends, found
        time.sleep(0.02)
    return found


def test_a_cancellation_before_the_hand_over_leaves_it_here_and_nothing_there(
    clusters: tuple[Cluster, Cluster], worlds: list[World]
) -> None:
    east, west = clusters
    worlds.append(World(stops_at="migrating"))
    east.client.create({"kind": "volume", "name": "data", "project": "default", "spec": {"size": "1M"}})
    east.create_vm("web", volumes=["data"])
    name = east.migrate("web")
    east.until_phase("migration", name, "Migrating")
    assert [one["name"] for one in west.list("volume")] == ["data"]
    with pytest.raises(WeftError, match="on its way here"):
        west.client.delete("vm", "web", project="default")
    east.client.verb("migration", name, "cancel", project="default")
    over = east.until_phase("migration", name, "Cancelled", "Failed", "Succeeded")
    assert over["status"]["phase"] == "Cancelled"
    east.until("vm", "web", lambda obj: obj["status"]["phase"] == "Running" and not obj["status"].get("migration"))
    west.until("vm", "web", lambda obj: obj is None)
    west.until("volume", "data", lambda obj: obj is None)
    west_arrivals(west, 0)
    until_empty(west, "allocation")


def test_a_vm_that_leaves_stays_as_it_is_and_what_comes_there_has_a_mac_of_its_own(
    clusters: tuple[Cluster, Cluster], worlds: list[World]
) -> None:
    east, west = clusters
    worlds.append(World(stops_at="migrating"))
    for volume in ("data", "extra"):
        east.client.create({"kind": "volume", "name": volume, "project": "default", "spec": {"size": "1M"}})
    east.create_vm("web", volumes=["data"])
    name = east.migrate("web")
    east.until_phase("migration", name, "Migrating")
    east.until("vm", "web", lambda obj: obj["status"].get("migration") == name)
    with pytest.raises(WeftError, match="a change here would stay behind"):
        east.client.patch("vm", "web", {"spec": {"volumes": ["data", "extra"]}}, project="default")
    late = {"kind": "snapshot", "name": "late", "project": "default", "spec": {"of": "vm/web"}}
    with pytest.raises(WeftError, match="its snapshots stay here"):
        east.client.create(late)
    with pytest.raises(WeftError, match="on its way here"):
        again = {"workload": "vm/web", "cluster": "east"}
        west.client.create({"kind": "migration", "name": "back", "project": "default", "spec": again})
    (arrival,) = west_arrivals(west, 1)
    west.client.delete("arrival", arrival["name"], project="default")  # that is a cancellation, and its word stays
    over = east.until_phase("migration", name, "Cancelled", "Failed", "Succeeded")
    assert over["status"]["phase"] == "Cancelled", over["status"]
    west_arrivals(west, 0)
    west.create_vm("own")
    link = connect_peer(east.side.peer("west")).ask_for("default")
    (own,) = west.side.run(west.lab.endpoints())
    kept = {"kind": "arrival", "name": "a", "project": "default"}
    for change, said in (
        ({"mac": own.mac}, f"MAC {own.mac} in network default is taken here"),
        ({"mac": "ff:ff:ff:ff:ff:ff"}, "not a MAC that weft gives"),
        ({"mac": "02:77:65:66:74:01"}, "not a MAC that weft gives"),
    ):
        nics = [{**arrival["spec"]["nics"][0], "address": "10.214.0.77", **change}]
        with pytest.raises(WeftError, match=said):
            link.create({**kept, "spec": {**arrival["spec"], "nics": nics}})
    with pytest.raises(InvalidInput, match="networks"):
        workload = {**arrival["spec"]["workload"], "networks": [5]}
        link.create({**kept, "spec": {**arrival["spec"], "workload": workload}})
    again = {**arrival["spec"], "nics": [], "of": "vm/twice", "key": "k2", "volumes": {}}
    again["workload"] = {**again["workload"], "volumes": []}
    body = {"kind": "arrival", "name": "twice", "spec": again}
    uids = {
        link.http.request("POST", "/v1/projects/default/arrivals", body, headers={"Idempotency-Key": "one"}).json()[
            "uid"
        ]
        for _ in range(2)
    }
    assert len(uids) == 1  # an answer got lost
    made = {"kind": "migration", "name": "m", "project": "default", "spec": {"workload": "vm/web", "cluster": "west"}}
    guarded = object_key("vm", "default", "web")

    def guard(envelope: Envelope) -> None:
        envelope.marks = merge_part(envelope.marks, {"guard": "hold"})

    east.side.run(east.lab.change(guarded, guard))
    east.client.create(made)  # as of a manifest, which no verb has looked at
    refused = east.until_phase("migration", "m", "Failed", "Succeeded")["status"]
    assert refused["reason"] == "cantLeave" and "its failover is automatic" in refused["message"]


def test_a_line_that_is_cut_after_the_hand_over_ends_well_once_it_is_mended(
    clusters: tuple[Cluster, Cluster], worlds: list[World]
) -> None:
    east, west = clusters
    worlds.append(World(stops_at="switching"))
    east.create_vm("web")
    name = east.migrate("web")
    east.until("migration", name, lambda obj: obj["status"]["phase"] == "Switching")
    west.side.proxy.cut()
    (world,) = east.lab.worlds.values()
    world.stops_at = ""
    (key,) = [one.key for one in east.side.run(east.lab.every("allocation"))]
    east.side.run(east.node.act(key))
    waits = east.until("migration", name, lambda obj: "can't be asked" in obj["status"].get("message", ""))
    assert world.handed_over and waits["status"]["phase"] == "Switching"
    west.until_phase("vm", "web", "Running")
    west.side.proxy.mend()
    assert east.until_phase("migration", name, "Succeeded", "Failed")["status"]["phase"] == "Succeeded"


def test_a_line_that_is_cut_before_the_hand_over_and_a_source_that_fails_leave_it_here(
    clusters: tuple[Cluster, Cluster], worlds: list[World]
) -> None:
    east, west = clusters
    worlds.append(World(stops_at="migrating", fails_at="switching"))
    east.create_vm("web")
    name = east.migrate("web")
    east.until_phase("migration", name, "Migrating")
    west.side.proxy.cut()
    east.until("migration", name, lambda obj: "waits for the answer of west" in obj["status"].get("message", ""))
    next(iter(east.lab.worlds.values())).stops_at = ""
    (key,) = [one.key for one in east.side.run(east.lab.every("allocation"))]
    east.side.run(east.node.act(key))
    over = east.until_phase("migration", name, "Failed", "Succeeded")
    assert over["status"]["phase"] == "Failed" and "the connection was cut" in over["status"]["message"]
    assert east.runs("web")
    west.side.proxy.mend()
    west.until("vm", "web", lambda obj: obj is None)  # it is told, late


def test_a_cluster_that_knows_nothing_of_it_after_the_hand_over_is_no_reason_to_go_on_here_but_people_are(
    clusters: tuple[Cluster, Cluster], worlds: list[World]
) -> None:
    east, west = clusters
    worlds.append(World(deaf=True))
    east.create_vm("web")
    name = east.migrate("web")
    (arrival,) = west_arrivals(west, 1)
    world_of = east.lab.worlds
    ends = time.monotonic() + 60.0
    while not (world_of and next(iter(world_of.values())).handed_over):
        assert time.monotonic() < ends
        time.sleep(0.02)
    # As in a store that was restored to before it came.
    gone = [object_key("arrival", "default", arrival["name"]), object_key("vm", "default", "web")]
    west.side.run(west.side.store.commit([Delete(key) for key in gone]))
    found = east.until("migration", name, lambda obj: obj["status"].get("reason") == "arrivalMissing")
    assert "weft migration reclaim" in found["status"]["message"]
    with pytest.raises(InUse, match="only that one can say") as refused:
        east.client.delete("cluster", "west")
    assert f"weft migration reclaim {name}" in (refused.value.hint or "")
    next(iter(world_of.values())).given_up = True
    east.client.verb("migration", name, "reclaim", project="default")
    assert east.until_phase("migration", name, "Failed", "Succeeded")["status"]["reason"] == "reclaimed"
    assert east.runs("web")


def test_what_the_other_cluster_lacks_is_said_at_once_and_nothing_is_made_there(
    clusters: tuple[Cluster, Cluster],
) -> None:
    east, west = clusters
    for name, cidr in (("blue", "10.7.0.0/24"), ("red", "10.8.0.0/24")):
        east.client.create({"kind": "network", "name": name, "project": "default", "spec": {"cidr": cidr}})
    west.client.create({"kind": "network", "name": "red", "project": "default", "spec": {"cidr": "10.9.0.0/24"}})
    west.create_vm("web")
    west.client.verb("vm", "web", "stop", project="default")
    east.create_vm("web", networks=["default", "blue", "red"])
    taken = west.find("vm", "web")
    over = east.until_phase("migration", east.migrate("web"), "Failed", "Succeeded")["status"]
    assert (over["phase"], over["reason"]) == ("Failed", "cantTake")
    for said in ("vm/web exists here already", "network/blue doesn't exist here", "network/red is 10.9.0.0/24 here"):
        assert said in over["message"]
    assert over["message"].endswith("(weft network create NAME --cidr RANGE)"), "no remedy is cut in two"
    assert taken is not None and west.find("vm", "web") is not None and west.list("arrival") == []
    assert east.runs("web")


def test_without_the_grant_or_with_an_older_release_it_says_so(
    clusters: tuple[Cluster, Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    east, west = clusters
    east.create_vm("web")
    west.client.patch("cluster", "east", {"spec": {"grants": ["run"]}})
    over = east.until_phase("migration", east.migrate("web"), "Failed", "Succeeded")["status"]
    assert (over["phase"], over["reason"]) == ("Failed", "notGranted"), over
    with pytest.raises(Forbidden, match="only a linked cluster"):
        west.client.create({"kind": "arrival", "name": "a", "project": "default", "spec": {}})
    with pytest.raises(InvalidInput, match="a linked cluster creates it"):
        west.client.put({"kind": "arrival", "name": "a", "project": "default", "spec": {}})
