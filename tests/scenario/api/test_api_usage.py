"""What nodes use rides their heartbeats: told while they are heard of, stored nowhere, and never in the way of a report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm

from weft.client.answer import raise_problem
from weft.client.usage import fetch_usage
from weft.objects.errors import Forbidden
from weft.protocol.failover.confirmed import CONFIRMED_PREFIX, HOLDER, write_confirmed


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    yield lab
    lab.close()


def test_what_a_node_said_last_is_told_to_people_and_leaves_no_trace_in_the_store(lab: ApiLab) -> None:
    node = lab.join("n1")
    node.report(node={"cpu": 8.0})
    assert fetch_usage(lab.client.http) == []
    revision = lab.revision()
    node.report(digest={"guests": {"web": [1500, 2**30, 4096, True]}, "other": [0, 0, 100, True]})
    [told] = fetch_usage(lab.client.http, guests=True)
    assert told["node"] == node.uid and 0 <= told["age_seconds"] < 30
    assert told["use"] == {"cpu": 1.5, "memory": 2**30, "disk": 4196, "settled": True}
    assert told["guests"] == {"web": {"cpu": 1.5, "memory": 2**30, "disk": 4096, "settled": True}}
    assert fetch_usage(lab.client.http)[0]["guests"] == {}
    node.report(digest={"guests": {}, "instances": [1, 0, 3, 5 << 20]})
    [told] = fetch_usage(lab.client.http)
    assert told["instances"] == {"busy": 1, "idle": 0, "ready": 3, "memory": 5 << 20} and told["use"]["memory"] == 0
    assert lab.revision() == revision


@pytest.mark.parametrize(
    "digest", ["nonsense", {"guests": {"web": "much"}}, {"guests": {f"{n:036d}": [n, n, n] for n in range(2_000)}}]
)
def test_a_digest_that_is_not_understood_is_a_sign_of_life_all_the_same(lab: ApiLab, digest: object) -> None:
    node = lab.join("n1")
    node.report(node={"cpu": 8.0}, digest={"guests": {"web": [1, 2, 3, True]}})
    node.report(digest=digest)
    assert fetch_usage(lab.client.http) == []
    assert [lease.name for lease in lab.run(lab.store.leases("node/"))] == [f"node/{node.uid}"]


def test_a_newer_agents_digest_is_read_as_far_as_it_is_understood(lab: ApiLab) -> None:
    node = lab.join("n1")
    node.report(digest={"guests": {"web": [1, 2, 3, False, "more"]}, "pressure": [1, 2]})
    [told] = fetch_usage(lab.client.http, guests=True)
    assert told["guests"]["web"] == {"cpu": 0.001, "memory": 2, "disk": 3, "settled": False}


def test_a_node_may_not_look_at_what_others_use(lab: ApiLab) -> None:
    node = lab.join("n1")
    with pytest.raises(Forbidden):
        raise_problem(node.client.http.request("GET", "/v1/usage"))
    assert msgspec.json.decode(lab.client.http.request("GET", "/v1/usage?guests=0").body) == {"items": []}


def test_people_of_a_project_see_what_its_own_workloads_use_and_nothing_else(lab: ApiLab) -> None:
    lab.client.create({"kind": "project", "name": "shop"})
    lab.client.apply([{**make_image(), "project": "shop"}])
    [made] = lab.client.apply([{**make_vm("web", networks=[]), "project": "shop"}])
    uid = made["object"]["uid"]
    node = lab.join("n1")
    node.report(digest={"guests": {uid: [1500, 5, 4, True], "other": [9, 9, 9, True]}, "other": [1, 1, 1, True]})
    member = lab.with_token(use="access", role="viewer", project="shop")
    [told] = fetch_usage(member.http, guests=True)
    assert told["use"] == told["guests"][uid] and list(told["guests"]) == [uid]
    with pytest.raises(Forbidden, match="the usage of nodes"):
        fetch_usage(member.http)
    lab.client.create({"kind": "role", "name": "nothing", "spec": {"rules": {"node": ["list"]}}})
    with pytest.raises(Forbidden):
        fetch_usage(lab.with_token(use="access", role="nothing", project="shop").http, guests=True)


def test_a_node_that_sends_a_stamp_gets_its_own_confirmed_ones_back_and_no_others(lab: ApiLab) -> None:
    node, other = lab.join("n1"), lab.join("n2")
    for uid, stamp in ((node.uid, "boot/1"), (other.uid, "boot/2"), (f"{node.uid}-longer", "boot/3")):
        lab.run(lab.store.grant(f"{CONFIRMED_PREFIX}{uid}", HOLDER, 60.0, write_confirmed({"vm": stamp})))
    assert node.report(node={"cpu": 8.0}, digest={}).get("stamps", {}) == {}
    assert node.report(digest={"stamp": "boot/9"})["stamps"] == {"vm": "boot/1"}
    assert other.report(node={"cpu": 8.0}, digest={"stamp": "boot/9"})["stamps"] == {"vm": "boot/2"}
    lab.run(lab.store.grant(f"{CONFIRMED_PREFIX}{node.uid}", HOLDER, 60.0, b"junk"))
    assert node.report(digest={"stamp": "boot/9"}).get("stamps", {}) == {}
    assert node.report(digest={"stamp": "x" * 101}).get("stamps", {}) == {}  # longer than any: no digest at all
