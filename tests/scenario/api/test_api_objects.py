"""What people do to objects through the API, over TLS with the real client: make, read, change, delete, refuse."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import GATEWAY, ApiLab, make_image, make_vm, take_port

from weft.client.answer import ClientAnswer
from weft.kinds.image import IMAGE, ImageSpec, ImageStatus
from weft.kinds.vm import VM, VmSpec
from weft.kinds.volume import VolumeStatus
from weft.objects.envelope import Condition
from weft.objects.errors import (
    AlreadyExists,
    IllegalTransition,
    InUse,
    InvalidInput,
    InvalidStrategy,
    NotFound,
    StaleRevision,
    UnknownField,
    WeftError,
)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def vms(lab: ApiLab) -> ApiLab:
    """A lab with an image to make VMs from."""
    lab.client.create(make_image())
    return lab


def test_what_is_created_can_be_read_listed_changed_and_deleted(lab: ApiLab) -> None:
    made = lab.client.create(
        {"kind": "network", "name": "blue", "labels": {"tier": "db"}, "spec": {"cidr": "10.9.0.0/24"}}
    )
    assert (made["generation"], made["project"], made["spec"]["nat"]) == (1, "default", True)
    assert lab.client.get("network", "blue") == made
    assert [n["name"] for n in lab.client.list("networks").items] == ["blue", "default"]
    changed = lab.client.put({"kind": "network", "name": "blue", "spec": {"cidr": "10.9.0.0/24", "nat": False}})
    assert (changed["generation"], changed["spec"]["nat"], changed["labels"]) == (2, False, {"tier": "db"})
    lab.client.delete("network", "blue")
    with pytest.raises(NotFound, match='network "blue" not found'):
        lab.client.get("network", "blue")


def test_an_unknown_field_is_refused_with_its_path_and_a_suggestion(vms: ApiLab) -> None:
    with pytest.raises(UnknownField) as caught:
        vms.client.create(make_vm("web", cpuu=2))
    assert (caught.value.field, caught.value.hint) == ("spec.cpuu", "did you mean spec.cpu?")
    with pytest.raises(UnknownField) as caught:
        vms.client.create({"kind": "vm", "name": "web", "image": "tiny"})
    assert (caught.value.field, caught.value.hint) == ("image", "it belongs under spec: spec.image")
    assert vms.client.list("vm").items == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"memory": "5X"}, "spec.memory"),
        ({"memory": "-5G"}, "spec.memory"),
        ({"memory": 10**400}, "spec.memory"),
        ({"cpu": 0}, "spec.cpu"),
        ({"publish": ["80"]}, "spec.publish[0]"),
        ({"restart": "maybe"}, "spec.restart"),
        ({"networks": "default"}, "spec.networks"),
        ({"image": "No Such"}, "spec.image"),
    ],
)
def test_a_wrong_value_is_refused_and_names_its_field(vms: ApiLab, spec: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        vms.client.create(make_vm("web", **spec))
    assert caught.value.field == field
    assert vms.client.list("vm").items == []


def test_all_problems_of_a_spec_are_told_at_once(vms: ApiLab) -> None:
    with pytest.raises(InvalidInput) as caught:
        vms.client.create(make_vm("web", memory="5X", cpuu=1))
    assert [p["field"] for p in caught.value.details["problems"]] == ["spec.memory", "spec.cpuu"]


@pytest.mark.parametrize("name", ["", "Web", "-web", "web_1", "a" * 64, "web/1", None, 5])
def test_an_invalid_name_is_refused(vms: ApiLab, name: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        vms.client.create({**make_vm("x"), "name": name})
    assert caught.value.field == "name"


def test_a_taken_name_is_refused_and_says_since_when(vms: ApiLab) -> None:
    vms.client.create(make_vm("web"))
    with pytest.raises(AlreadyExists, match=r'VM "web" exists already in project default \(created \ds ago\)'):
        vms.client.create(make_vm("web", cpu=2))
    assert vms.client.get("vm", "web")["spec"]["cpu"] == 1.0
    vms.put(
        IMAGE.make("gone", ImageSpec(url="file:///gone"), 1.0, project="default", status=ImageStatus(phase="Failed"))
    )
    with pytest.raises(AlreadyExists, match=r"ago, Failed\)") as failed:
        vms.client.create(make_image("gone"))
    assert "if nobody needs that one: weft delete image/gone" in str(failed.value.hint)


def test_what_a_manifest_names_must_exist(vms: ApiLab) -> None:
    for spec, field, hint in (
        ({"image": "tny"}, "spec.image", "did you mean tiny?"),
        ({"networks": ["defalt"]}, "spec.networks", "did you mean default?"),
        ({"volumes": ["data"]}, "spec.volumes", "weft volume list"),
        ({"node": "n9"}, "spec.node", "weft node list"),
    ):
        with pytest.raises(NotFound) as caught:
            vms.client.create(make_vm("web", **spec))
        assert (caught.value.field, caught.value.hint) == (field, hint)
    with pytest.raises(NotFound, match='project "nope" not found'):
        vms.client.create({**make_vm("web"), "project": "nope"})
    assert vms.client.list("vm").items == []


def test_an_unknown_strategy_is_named_and_dashes_are_fine(vms: ApiLab) -> None:
    with pytest.raises(InvalidStrategy) as caught:
        vms.client.create(make_vm("web", strategy="best_fti"))
    assert caught.value.hint == "did you mean best_fit?"
    assert vms.client.create(make_vm("web", strategy="best-fit"))["spec"]["strategy"] == "best_fit"


def test_a_stale_generation_is_refused_and_status_writes_do_not_make_one_stale(vms: ApiLab) -> None:
    made = vms.client.create(make_vm("web"))
    envelope = vms.stored("/vm/default/web")
    assert envelope is not None
    envelope.conditions = []
    vms.put(envelope)  # a controller writes
    changed = vms.client.put({**make_vm("web", grace=5), "generation": made["generation"]})
    assert changed["generation"] == 2
    with pytest.raises(StaleRevision) as caught:
        vms.client.put({**make_vm("web", grace=6), "generation": made["generation"]})
    assert caught.value.details["generation"] == 2


def test_if_match_holds_each_way_of_changing_an_object_to_the_revision_that_was_read(vms: ApiLab) -> None:
    def ask(method: str, path: str, tag: str, body: object = None) -> ClientAnswer:
        return vms.client.http.request(method, f"/v1/projects/default/{path}", body, headers={"If-Match": tag})

    made = vms.client.http.request("POST", "/v1/projects/default/vms", make_vm("web"))
    old = made.headers["etag"]
    assert (
        old
        == f'"{made.json()["revision"]}"'
        == vms.client.http.request("GET", "/v1/projects/default/vms/web").headers["etag"]
    )
    vms.client.patch("vm", "web", {"labels": {"a": "1"}})
    before = vms.revision()
    ways = (
        ("PUT", "vms/web", make_vm("web", grace=7)),
        ("PATCH", "vms/web", {"spec": {"grace": 7}}),
        ("POST", "vms/web:hold", None),
        ("POST", "vms/web:convert", {"to": "container"}),
        ("POST", "vms/web:exec", {"argv": ["true"]}),
        ("DELETE", "vms/web", None),
    )
    for method, path, body in ways:
        for tag in (old, f"W/{old}", '"0"', f'{old}, "1"'):
            answer = ask(method, path, tag, body)
            assert (answer.status, answer.json()["reason"]) == (412, "etagMismatch"), (method, path, tag, answer.body)
        assert ask(method, path, "rubbish", body).json()["field"] == "If-Match"
    assert ask("PUT", "vms/none", "*", make_vm("none")).status == 412
    assert vms.revision() == before
    tag = vms.client.http.request("GET", "/v1/projects/default/vms/web").headers["etag"]
    for method, path, body in (ways[0], ways[1], ways[2], ways[5]):
        answer = ask(method, path, f"{old}, {tag}", body)
        assert answer.status in (200, 202), answer.body
        tag = answer.headers["etag"]


def test_if_none_match_makes_only_what_is_not_there_and_tells_only_what_is_new(vms: ApiLab) -> None:
    def ask(method: str, tag: str, body: object = None) -> ClientAnswer:
        return vms.client.http.request(method, "/v1/projects/default/vms/web", body, headers={"If-None-Match": tag})

    assert ask("PUT", "*", make_vm("web")).status == 201
    before = vms.revision()
    tag = ask("GET", '"1"').headers["etag"]
    for held in ("*", tag, f"W/{tag}", f'"1", {tag}'):
        answer = ask("GET", held)
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag), held
        for method, body in (("PUT", make_vm("web", grace=7)), ("PATCH", {"spec": {"grace": 7}}), ("DELETE", None)):
            answer = ask(method, held, body)
            problem = answer.json()
            assert (answer.status, problem["reason"], problem["field"]) == (412, "etagMismatch", "If-None-Match")
    assert ask("GET", "rubbish").json()["field"] == ask("DELETE", "rubbish").json()["field"] == "If-None-Match"
    assert vms.revision() == before
    assert ask("PUT", '"1"', make_vm("web", grace=7)).status == 200
    assert ask("GET", tag).json()["spec"]["grace"] == 7


def test_if_match_holds_a_deletion_to_what_was_read_also_where_others_refer_to_it(lab: ApiLab) -> None:
    lab.client.create(make_image("old"))
    tag = lab.client.http.request("GET", "/v1/projects/default/images/old").headers["etag"]
    lab.client.patch("image", "old", {"labels": {"a": "1"}})
    answer = lab.client.http.request("DELETE", "/v1/projects/default/images/old", headers={"If-Match": tag})
    assert answer.status == 412 and lab.client.get("image", "old")["deleting_since"] is None
    tag = lab.client.http.request("GET", "/v1/projects/default/images/old").headers["etag"]
    assert lab.client.http.request("DELETE", "/v1/projects/default/images/old", headers={"If-Match": tag}).status < 300


def test_a_put_with_a_stale_revision_is_refused(vms: ApiLab) -> None:
    made = vms.client.create(make_vm("web"))
    with pytest.raises(StaleRevision) as caught:
        vms.client.put({**make_vm("web", grace=6), "revision": 1})
    assert caught.value.field == "revision" and caught.value.details["revision"] == made["revision"]
    assert vms.client.put({**make_vm("web", grace=6), "revision": made["revision"]})["spec"]["grace"] == 6
    written = vms.stored("/vm/default/web")
    assert written is not None
    old = vms.client.get("vm", "web")
    vms.put(written)  # as its controllers write the status: the generation stays
    before = vms.revision()
    with pytest.raises(StaleRevision) as caught:
        vms.client.put({**old, "spec": {**old["spec"], "grace": 7}})
    assert caught.value.field == "revision" and vms.revision() == before
    del old["revision"]
    assert vms.client.put({**old, "spec": {**old["spec"], "grace": 7}})["spec"]["grace"] == 7
    with pytest.raises(StaleRevision):
        vms.client.put({**make_vm("none"), "revision": 1})
    with pytest.raises(InvalidInput):
        vms.client.put({**make_vm("web"), "revision": "1"})


def test_a_network_in_which_a_node_stands_is_refused(lab: ApiLab) -> None:
    node = lab.join("n1")
    node.report(node={"address": "10.77.0.4"}, version="a.1")
    for _ in range(6000):
        if lab.api.ranges.find_node("10.77.0.0/24"):
            break
        time.sleep(0.01)
    with pytest.raises(InvalidInput, match=r"contains 10\.77\.0\.4, which is a node's own address") as caught:
        lab.client.create({"kind": "network", "name": "blue", "spec": {"cidr": "10.77.0.0/24"}})
    assert caught.value.field == "spec.cidr" and caught.value.hint
    lab.client.create({"kind": "network", "name": "blue", "spec": {"cidr": "10.77.1.0/24"}})


def test_an_idempotent_put_writes_nothing(vms: ApiLab) -> None:
    made = vms.client.put(make_vm("web", memory="256M"))
    before = vms.revision()
    assert vms.client.put(make_vm("web", memory="0.25G")) == made
    assert vms.client.put(made) == made  # what was read can be sent back
    assert vms.revision() == before


def test_what_verbs_have_set_survives_a_manifest_that_does_not_mention_it(vms: ApiLab) -> None:
    vms.client.create(make_vm("web"))
    assert vms.client.verb("vm", "web", "hold")["spec"]["hold"] is True
    assert vms.client.put(make_vm("web", grace=5))["spec"]["hold"] is True
    assert vms.client.put(make_vm("web", hold=False))["spec"]["hold"] is False


def test_a_patch_merges_and_null_takes_a_field_back_to_its_default(vms: ApiLab) -> None:
    vms.client.create({**make_vm("web", grace=5), "labels": {"a": "1", "b": "2"}})
    changed = vms.client.patch("vm", "web", {"spec": {"grace": None, "restart": "always"}, "labels": {"a": None}})
    assert (changed["spec"]["grace"], changed["spec"]["restart"], changed["labels"]) == (20.0, "always", {"b": "2"})
    with pytest.raises(UnknownField):
        vms.client.patch("vm", "web", {"status": {"phase": "Running"}})


def test_a_field_that_never_changes_and_one_that_needs_a_new_object_are_refused(vms: ApiLab) -> None:
    vms.client.create(make_image("other"))
    vms.client.create(make_vm("web"))
    with pytest.raises(InvalidInput, match=r"spec\.url of image .* can never change"):
        vms.client.put({**make_image("other"), "spec": {"url": "file:///srv/another.tar"}})
    assert vms.client.put(make_vm("web", image="other"))["spec"]["image"] == "other"  # it has no place yet
    envelope = vms.stored("/vm/default/web")
    assert envelope is not None
    for phase, placed in (("Running", None), ("Pending", "True")):  # it runs; it was just given a place to do so
        envelope.status = type(envelope.status)(b'{"phase":"%s"}' % phase.encode())
        envelope.conditions = [Condition("Placed", placed, "", "", 1.0, 1)] if placed else []
        vms.put(envelope)
        with pytest.raises(InvalidInput, match="can't change while it lives") as caught:
            vms.client.put(make_vm("web"))
        assert caught.value.field == "spec.image"
    envelope.conditions = [Condition("Placed", "False", "", "", 1.0, 1)]
    vms.put(envelope)
    assert vms.client.put(make_vm("web"))["spec"]["image"] == "tiny"


def test_what_a_change_asks_for_must_agree_with_a_constraint_that_was_named_before(vms: ApiLab) -> None:
    vms.client.create({"kind": "constraint", "name": "west", "spec": {"expression": "zone=west"}})
    vms.client.create(make_vm("web", constraint="@west"))
    with pytest.raises(InvalidInput, match="zone=west"):
        vms.client.put(make_vm("web", constraint="@west,zone=east"))
    assert vms.client.get("vm", "web")["spec"]["constraint"] == "@west"


def test_an_illegal_verb_names_the_legal_ones(vms: ApiLab) -> None:
    vms.client.create(make_vm("web"))
    with pytest.raises(IllegalTransition) as caught:
        vms.client.verb("vm", "web", "suspend")
    assert caught.value.details["legal"] == ["hold", "delete"]
    with pytest.raises(NotFound, match="has no verb") as unknown:
        vms.client.verb("vm", "web", "stpo")
    assert unknown.value.hint == "did you mean stop?"
    with pytest.raises(InvalidInput):
        vms.client.verb("vm", "web", "hold", {"why": "x"})


def test_a_repeated_request_with_the_same_key_acts_once(vms: ApiLab) -> None:
    first = vms.client.create(make_vm("web", publish=["18080:80"]), idempotency_key="k1")
    assert vms.client.create(make_vm("web", publish=["18080:80"]), idempotency_key="k1")["uid"] == first["uid"]
    with pytest.raises(AlreadyExists):
        vms.client.create(make_vm("web"), idempotency_key="k2")
    envelope = vms.stored("/vm/default/web")
    assert envelope is not None
    envelope.status = type(envelope.status)(b'{"phase":"Running"}')
    vms.put(envelope)
    path = "/v1/projects/default/vms/web:restart"
    for _ in range(3):
        answer = vms.client.http.request("POST", path, {}, headers={"Idempotency-Key": "again"})
        assert answer.json()["actions"]["restart_generation"] == 1


def test_a_dry_run_stores_nothing(vms: ApiLab) -> None:
    before = vms.revision()
    assert vms.client.create(make_vm("web"), dry_run=True)["spec"]["memory"] == 256 << 20
    assert vms.client.apply([make_vm("web")], dry_run=True)[0]["action"] == "created"
    assert vms.revision() == before
    vms.client.create(make_vm("web"))
    changed = vms.client.apply([make_vm("web", memory="1G")], dry_run=True)[0]
    assert [(c["path"], c["old"], c["new"], c["mode"]) for c in changed["changes"]] == [
        ("spec.memory", 256 << 20, 1 << 30, "start")
    ]
    assert vms.client.get("vm", "web")["spec"]["memory"] == 256 << 20


def test_apply_takes_references_between_its_objects_in_any_order(lab: ApiLab) -> None:
    manifests = [
        {**make_vm("web", networks=["blue"], volumes=["data"], publish=["18081:80"]), "project": "shop"},
        {"kind": "volume", "name": "data", "project": "shop", "spec": {"size": "1G"}},
        {"kind": "network", "name": "blue", "project": "shop", "spec": {"cidr": "10.9.0.0/24"}},
        {**make_image(), "project": "shop"},
        {"kind": "project", "name": "shop"},
    ]
    assert [r["action"] for r in lab.client.apply(manifests)] == ["created"] * 5
    before = lab.revision()
    assert [r["action"] for r in lab.client.apply(manifests)] == ["unchanged"] * 5
    assert lab.revision() == before
    assert [p["name"] for p in lab.client.list("publishedport").items] == ["tcp-18081"]


def test_apply_with_one_wrong_object_stores_none_and_says_which(vms: ApiLab) -> None:
    before = vms.revision()
    with pytest.raises(InvalidInput) as caught:
        vms.client.apply([make_vm("a"), make_vm("b", image="nope"), {"kind": "vn", "name": "c"}, make_vm("d", cpu="x")])
    assert sorted(p["index"] for p in caught.value.details["problems"]) == [1, 2, 3]
    assert "nothing was changed" in caught.value.message
    assert vms.revision() == before


def test_a_large_apply_is_split_and_complete(vms: ApiLab) -> None:
    results = vms.client.apply([make_vm(f"v{i}") for i in range(250)])
    assert {r["action"] for r in results} == {"created"}
    assert len({r["object"]["revision"] for r in results}) == 3
    assert len(vms.client.list("vm").items) == 250


def test_a_batch_gives_one_result_for_each_object(vms: ApiLab) -> None:
    vms.client.create(make_vm("v3"))
    manifests = [make_vm(f"v{i}") for i in range(130)]
    manifests[7]["spec"]["image"] = "nope"
    manifests[9] = make_vm("v8")
    manifests[11]["spec"]["memory"] = manifests[12]["spec"]["memory"] = "1K"  # one spec is read once: wrong for both
    manifests[13]["spec"]["memory"] = "300M"
    results = vms.client.batch("vm", manifests)
    errors = {i: r["error"]["reason"] for i, r in enumerate(results) if "error" in r}
    assert errors == {3: "alreadyExists", 7: "notFound", 9: "alreadyExists", 11: "invalidInput", 12: "invalidInput"}
    assert [results[i]["object"]["spec"]["memory"] >> 20 for i in (10, 13, 14)] == [256, 300, 256]
    assert results[129]["object"] == vms.client.get("vm", "v129")
    assert len(vms.client.list("vm").items) == 126


def test_a_repeated_batch_finds_what_the_first_one_made(vms: ApiLab) -> None:
    manifests = [make_vm(f"v{i}", publish=[f"{21000 + i}:80"]) for i in range(120)]
    path = "/v1/projects/default/vms:batch"
    headers = {"Idempotency-Key": "once"}
    first = vms.client.http.request("POST", path, {"objects": manifests}, headers=headers).json()["results"]
    again = vms.client.http.request("POST", path, {"objects": manifests}, headers=headers).json()["results"]
    assert [r["object"]["uid"] for r in again] == [r["object"]["uid"] for r in first]
    other = vms.client.http.request("POST", path, {"objects": manifests}, headers={"Idempotency-Key": "twice"}).json()
    assert {r["error"]["reason"] for r in other["results"]} == {"portInUse"}


def test_a_published_port_is_taken_once_and_free_again_after(vms: ApiLab) -> None:
    vms.client.create(make_vm("web", publish=["18082:80"]))
    with pytest.raises(InUse) as caught:
        vms.client.create(make_vm("other", publish=["18082:81"]))
    assert (caught.value.token, caught.value.field) == ("portInUse", "spec.publish[0]")
    assert "vm/web" in caught.value.message
    vms.client.create(make_vm("udp", publish=["18082:53/udp"]))
    vms.client.put(make_vm("web", publish=["18083:80"]))
    assert [p["name"] for p in vms.client.list("publishedport").items] == ["tcp-18083", "udp-18082"]
    vms.client.create(make_vm("other", publish=["18082:81"]))
    errors = vms.client.batch("vm", [make_vm("x", publish=["18084:1"]), make_vm("y", publish=["18084:2"])])
    assert [r.get("error", {}).get("reason") for r in errors] == [None, "portInUse"]


def test_a_chosen_address_is_the_vms_from_the_first_moment_and_nobody_elses(vms: ApiLab) -> None:
    vms.client.create({"kind": "network", "name": "blue", "spec": {"cidr": "10.20.0.0/24"}})
    web = vms.client.create(make_vm("web", networks=["default", "blue:10.20.0.15"]))
    [endpoint] = vms.client.list("endpoint").items
    assert endpoint["owner"]["uid"] == web["uid"]
    assert (endpoint["spec"]["address"], endpoint["spec"]["mac"]) == ("10.20.0.15", "52:57:0a:14:00:0f")
    with pytest.raises(InUse) as caught:
        vms.client.create(make_vm("other", networks=["blue:10.20.0.15"]))
    assert (caught.value.token, caught.value.field) == ("addressInUse", "spec.networks[0]")
    assert caught.value.message == "10.20.0.15 in network blue is taken by vm/web"
    vms.client.create(make_vm("other", networks=["default"]))
    with pytest.raises(InUse, match="taken by vm/web"):
        vms.client.put(make_vm("other", networks=["default", "blue:10.20.0.15"]))
    vms.client.put(make_vm("web", networks=["blue:10.20.0.15"], memory="512M"))  # its own is no obstacle
    vms.client.put(make_vm("web", networks=["blue:10.20.0.16"]))
    # A guest may still have the old one: the controller of addresses lets go of it.
    assert [e["spec"]["address"] for e in vms.client.list("endpoint").items] == ["10.20.0.15", "10.20.0.16"]


@pytest.mark.parametrize(
    ("written", "reason", "said"),
    [
        ("blue:10.21.0.5", "addressOutOfRange", "10.21.0.5 is not in network blue (10.20.0.0/24)"),
        ("blue:10.20.0.1", "addressOutOfRange", "10.20.0.1 is the gateway's"),
        ("blue:10.20.0.255", "addressOutOfRange", "10.20.0.255 can't be used by a workload"),
        ("blue:10.20.0.0", "addressOutOfRange", "10.20.0.0 can't be used by a workload"),
        ("blue:10.20.0.999", "invalidInput", "'10.20.0.999' is not an IPv4 address"),
        ("blue:", "invalidInput", "'' is not an IPv4 address"),
        ("Blue:10.20.0.9", "invalidInput", "Blue"),
    ],
)
def test_an_address_that_no_guest_can_have_is_refused_with_those_it_can(
    vms: ApiLab, written: str, reason: str, said: str
) -> None:
    vms.client.create({"kind": "network", "name": "blue", "spec": {"cidr": "10.20.0.0/24"}})
    with pytest.raises(InvalidInput) as caught:
        vms.client.create(make_vm("web", networks=["default", written]))
    assert (caught.value.token, caught.value.field) == (reason, "spec.networks[1]")
    assert said in caught.value.message and caught.value.hint
    if reason == "addressOutOfRange":
        assert caught.value.hint == "choose one from 10.20.0.2 to 10.20.0.254"


def test_a_network_is_joined_once_whatever_the_address(vms: ApiLab) -> None:
    with pytest.raises(InvalidInput, match="names the same thing twice"):
        vms.client.create(make_vm("web", networks=["default", "default:10.214.0.9"]))
    with pytest.raises(NotFound, match="nowhere"):
        vms.client.create(make_vm("web", networks=["nowhere:10.214.0.9"]))


def test_a_port_that_another_program_holds_is_refused(tmp_path: Path) -> None:
    lab = ApiLab(tmp_path, publish_address="127.0.0.1")
    try:
        lab.client.create(make_image())
        with take_port() as held:
            port = held.getsockname()[1]
            with pytest.raises(InUse, match="held by another program") as caught:
                lab.client.create(make_vm("web", publish=[f"{port}:80"]))
            assert caught.value.token == "portInUse"
        made = lab.client.create(make_vm("web", publish=[f"{port}:80"]))
        with take_port_again(port):  # as the gateway does, for this published port
            assert lab.client.put(make_vm("web", publish=[f"{port}:80"], grace=3))["uid"] == made["uid"]
    finally:
        lab.close()


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("22:2222", "port 22/tcp is reserved for SSH"),
        ("53:53/udp", "port 53/udp is reserved for DNS"),
        ("67:67/udp", "port 67/udp is reserved for DHCP"),
        ("4789:1/udp", "port 4789/udp is reserved for VXLAN"),
        ("8445:9/udp", "port 8445/udp is reserved for agents"),
        (f"{GATEWAY.rpartition(':')[2]}:80", "is reserved for this fabric's server"),
    ],
)
def test_a_port_that_every_node_needs_is_published_only_by_who_insists(vms: ApiLab, mapping: str, said: str) -> None:
    with pytest.raises(InUse) as caught:
        vms.client.create(make_vm("web", publish=["18085:80", mapping]))
    assert (caught.value.token, caught.value.field) == ("portReserved", "spec.publish[1]")
    assert said in caught.value.message and "--force-publish" in str(caught.value.hint)
    assert vms.client.list("publishedport").items == []
    vms.client.create(make_vm("web", publish=["18085:80", mapping], force_publish=True))
    vms.client.put(make_vm("web", publish=["18085:80", mapping], grace=3))  # what is published stays
    assert len(vms.client.list("publishedport").items) == 2


def take_port_again(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen()
    return sock


def test_what_others_need_cannot_be_deleted_and_is_unharmed_by_the_try(vms: ApiLab) -> None:
    vms.client.create(make_vm("web"))
    before = vms.revision()
    for kind, name in (("image", "tiny"), ("network", "default")):
        with pytest.raises(InUse, match="is in use by") as caught:
            vms.client.delete(kind, name)
        assert "vm/web" in caught.value.details["by"]
    assert vms.revision() == before
    assert vms.client.get("image", "tiny")["deleting_since"] is None


def test_the_hint_for_what_others_need_is_about_their_project(vms: ApiLab) -> None:
    vms.client.create({"kind": "project", "name": "far"})
    vms.client.create({"kind": "network", "name": "lan", "project": "far", "spec": {"cidr": "10.77.0.0/24"}})
    vms.put(VM.make("web", VmSpec(image="tiny", networks=["lan"]), 1.0, project="far"))
    for kind, name in (("network", "lan"), ("project", "far")):
        with pytest.raises(InUse) as used:
            vms.client.delete(kind, name, project="far" if kind == "network" else None)
        assert re.match(r"delete or change that first: weft describe \w+/\w+ --project far(;|$)", str(used.value.hint))
    with pytest.raises(NotFound, match="not found in project far") as missing:
        vms.client.create(make_vm("b", networks=["lan"]) | {"project": "far"})
    assert missing.value.hint == "weft image build tiny --project far"


def test_deleting_and_referring_at_once_never_leaves_a_dangling_name(vms: ApiLab) -> None:
    """One deletes images while others make VMs of them: every VM that was made has its image."""
    outcomes: list[str] = []

    def refer(number: int) -> None:
        client = vms.connect()
        for count in range(12):
            name = f"i{count}"
            try:
                client.create(make_vm(f"v{number}-{count}", image=name))
                outcomes.append("made")
            except NotFound:
                outcomes.append("refused")

    for count in range(12):
        vms.client.create(make_image(f"i{count}"))
    threads = [threading.Thread(target=refer, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for count in range(12):
        try:
            vms.client.delete("image", f"i{count}")
            outcomes.append("deleted")
        except InUse:
            outcomes.append("kept")
    for thread in threads:
        thread.join()
    images = {image["name"]: image["deleting_since"] for image in vms.client.list("image").items}
    for vm in vms.client.list("vm").items:
        assert images[vm["spec"]["image"]] is None
    assert len(outcomes) == 48


def test_an_empty_project_can_be_deleted(vms: ApiLab) -> None:
    vms.client.create({"kind": "project", "name": "shop"})
    vms.client.delete("project", "shop")
    assert [p["name"] for p in vms.client.list("project").items] == ["default", "fabric"]


def test_a_vm_is_marked_and_held_by_its_finalizer_and_its_name_stays_taken(vms: ApiLab) -> None:
    vms.client.create(make_vm("web"))
    gone = vms.client.delete("vm", "web")
    assert gone["deleting_since"] and gone["finalizers"] == ["workload"]
    assert vms.client.delete("vm", "web")["deleting_since"] == gone["deleting_since"]
    wait = "weft wait vm/web --for=delete"
    for act in (lambda: vms.client.put(make_vm("web", cpu=2)), lambda: vms.client.verb("vm", "web", "hold")):
        with pytest.raises(IllegalTransition, match="is being deleted") as caught:
            act()
        assert caught.value.token == "beingDeleted" and wait in str(caught.value.hint)
    with pytest.raises(AlreadyExists, match=r'VM "web" is still being deleted \(requested 0s ago\)') as taken:
        vms.client.create(make_vm("web"))
    assert taken.value.token == "beingDeleted" and wait in str(taken.value.hint)
    vms.client.create(make_vm("other"))
    with pytest.raises(AlreadyExists, match="exists already") as twice:
        vms.client.create(make_vm("other"))
    assert twice.value.token == "alreadyExists"


def test_a_volume_that_a_vm_has_is_refused_to_another_and_not_to_itself(vms: ApiLab) -> None:
    vms.client.create({"kind": "volume", "name": "data", "spec": {"size": "1G"}})
    vms.client.create(make_vm("db", volumes=["data"]))
    holder, volume = vms.stored("/vm/default/db"), vms.stored("/volume/default/data")
    assert holder is not None and volume is not None
    volume.status = msgspec.Raw(msgspec.json.encode(VolumeStatus(phase="Attached", attached_to=holder.ref)))
    vms.put(volume)
    vms.client.create(make_vm("web"))
    for act in (
        lambda: vms.client.create(make_vm("thief", volumes=["data"])),
        lambda: vms.client.patch("vm", "web", {"spec": {"volumes": ["data"]}}),
    ):
        with pytest.raises(InUse, match='volume "data" is attached to vm/db') as caught:
            act()
        assert caught.value.field == "spec.volumes"
    vms.client.patch("vm", "db", {"spec": {"volumes": []}})
    vms.client.patch("vm", "db", {"spec": {"volumes": ["data"]}})
    vms.client.delete("vm", "db")  # goes: who comes next waits for it
    vms.client.create(make_vm("next", volumes=["data"]))


def test_a_volume_grows_and_never_shrinks(lab: ApiLab) -> None:
    lab.client.create({"kind": "volume", "name": "data", "spec": {"size": "1G"}})
    used = lab.stored("/volume/default/data")
    assert used is not None
    used.status = msgspec.Raw(msgspec.json.encode(VolumeStatus(node="n1", node_uid="n", size=2**30)))
    lab.put(used)
    with pytest.raises(InvalidInput, match=r"can't shrink from 1\.0 GiB to 512 MiB") as caught:
        lab.client.patch("volume", "data", {"spec": {"size": "512M"}})
    assert caught.value.field == "spec.size"
    assert lab.client.patch("volume", "data", {"spec": {"size": "2G"}})["spec"]["size"] == 2 << 30


def test_nothing_can_be_made_that_refers_to_what_is_being_deleted(vms: ApiLab) -> None:
    vms.client.create({"kind": "volume", "name": "data", "spec": {"size": "1G"}})
    vms.client.delete("volume", "data")
    with pytest.raises(NotFound, match='volume "data" is being deleted'):
        vms.client.create(make_vm("web", volumes=["data"]))


def test_less_memory_than_its_image_needs_is_refused_and_what_has_it_already_may_be_changed_otherwise(
    vms: ApiLab,
) -> None:
    vms.client.create(make_vm("small", memory="64M"))
    image = vms.stored("/image/default/tiny")
    assert image is not None
    image.status = msgspec.Raw(msgspec.json.encode(ImageStatus(phase="Available", min_memory=128 << 20)))
    vms.put(image)
    vms.client.create(make_vm("web", memory="128M"))
    for act in (
        lambda: vms.client.create(make_vm("other", memory="96M")),
        lambda: vms.client.create(make_vm("other", memory="96M"), dry_run=True),
        lambda: vms.client.patch("vm", "web", {"spec": {"memory": "96M"}}),
        lambda: vms.client.patch("vm", "small", {"spec": {"memory": "65M"}}),
    ):
        with pytest.raises(InvalidInput, match=r"(96|65) MiB is too little for image tiny: it needs 128 MiB") as caught:
            act()
        assert (caught.value.token, caught.value.field) == ("tooLittleMemory", "spec.memory")
        assert caught.value.hint == "give at least 128M"
    vms.client.patch("vm", "small", {"spec": {"grace": "5s"}})
    vms.client.verb("vm", "small", "hold")
    vms.client.patch("vm", "small", {"spec": {"memory": "128M"}})


@pytest.mark.parametrize(
    ("kind", "field", "of", "spec"),
    [
        ("vm", "spec.image", "oci", {"image": "tiny"}),
        ("vm", "spec.iso", "oci", {"image": "disk", "iso": "tiny"}),
        ("container", "spec.image", "qcow2", {"image": "tiny"}),
        ("function", "spec.image", "qcow2", {"image": "tiny"}),
        ("job", "spec.task.image", "raw", {"task": {"image": "tiny"}}),
        ("deployment", "spec.template.image", "oci", {"workload": "vm", "template": {"image": "tiny"}}),
    ],
)
def test_an_image_that_can_never_be_run_so_is_refused_at_once(
    vms: ApiLab, kind: str, field: str, of: str, spec: dict[str, Any]
) -> None:
    vms.client.create(make_image("disk"))
    image = vms.stored("/image/default/tiny")
    assert image is not None

    def refuse(status: ImageStatus, token: str, said: str) -> None:
        vms.put(msgspec.structs.replace(image, status=msgspec.Raw(msgspec.json.encode(status))))
        with pytest.raises(InvalidInput, match=said) as caught:
            vms.client.create({"kind": kind, "name": "wrong", "spec": spec})
        assert (caught.value.token, caught.value.field) == (token, field) and caught.value.hint

    refuse(ImageStatus(phase="Available", format=of), "wrongImage", f"{field}: image tiny is a ")
    refuse(
        ImageStatus(phase="Failed", reason="notAnImage", message="is a text"), "imageFailed", "tiny failed: is a text"
    )
    with pytest.raises(NotFound):
        vms.client.get(kind, "wrong")
    waits = ImageStatus(phase="Failed", reason="fetchFailed", message="is tried again")
    vms.put(msgspec.structs.replace(image, status=msgspec.Raw(msgspec.json.encode(waits))))
    vms.client.create({"kind": kind, "name": "waits", "spec": spec})


def test_a_network_whose_domain_or_range_is_refused_by_now_stays_and_may_be_changed_otherwise(lab: ApiLab) -> None:
    lab.client.create({"kind": "network", "name": "old", "spec": {"cidr": "10.9.0.0/24"}})
    network = lab.stored("/network/default/old")
    assert network is not None
    spec = {"cidr": "240.0.0.0/24", "nat": True, "mtu": 1450, "domain": "de"}
    network.spec = msgspec.Raw(msgspec.json.encode(spec))
    lab.put(network)
    assert lab.client.patch("network", "old", {"spec": {"nat": False}})["spec"] == {
        **spec,
        "nat": False,
        "open": [],
        "shared_with": [],
    }
    whole = {"kind": "network", "name": "old", "labels": {"tier": "db"}, "spec": spec}
    assert lab.client.put(whole)["labels"] == {"tier": "db"}
    for change in ({"domain": "fr"}, {"cidr": "0.0.0.0/24"}):
        with pytest.raises(InvalidInput, match=f"spec.{next(iter(change))}"):
            lab.client.patch("network", "old", {"spec": change})
    with pytest.raises(InvalidInput, match="de is a country's"):
        lab.client.create({**whole, "name": "new", "spec": {"cidr": "10.8.0.0/24", "domain": "de"}})


def test_what_weft_writes_itself_nobody_writes(lab: ApiLab) -> None:
    for kind in ("allocation", "endpoint", "publishedport"):
        answer = lab.client.http.request("POST", f"/v1/{kind}s", {"name": "x", "spec": {}})
        assert (answer.status, answer.json()["reason"]) == (403, "forbidden")


def test_lists_are_paged_at_one_instant_and_selected_by_labels_and_fields(vms: ApiLab) -> None:
    for i in range(5):
        vms.client.create({**make_vm(f"v{i}"), "labels": {"odd": str(i % 2)}})
    page = vms.client.http.request("GET", "/v1/projects/default/vms?limit=2").json()
    vms.client.create(make_vm("v1a"))
    rest = vms.client.http.request("GET", f"/v1/projects/default/vms?limit=9&continue={page['continue']}").json()
    assert [v["name"] for v in page["items"] + rest["items"]] == ["v0", "v1", "v2", "v3", "v4"]
    assert [v["name"] for v in vms.client.list("vm", labels="odd=1").items] == ["v1", "v3"]
    assert [v["name"] for v in vms.client.list("vm", fields="name=v1").items] == ["v1"]
    assert [v["name"] for v in vms.client.list("vm", fields="image=tiny,name!=v1").items] == [
        "v0",
        "v1a",
        "v2",
        "v3",
        "v4",
    ]
    assert len(vms.client.list("vm", all_projects=True).items) == 6
    with pytest.raises(InvalidInput):
        vms.client.list("vm", labels="a in (")
    with pytest.raises(NotFound, match='project "nope" not found'):
        vms.client.list("vm", project="nope")


def test_a_field_that_no_object_can_have_is_refused_and_values_may_be_written_as_people_do(vms: ApiLab) -> None:
    vms.client.create(make_vm("web", memory="64M", cpu=1))
    for fields in ("memory=64M", "spec.memory = 0.0625G", "cpu=1", "phase=pending", "state in (Pending, running)"):
        assert [vm["name"] for vm in vms.client.list("vm", fields=fields).items] == ["web"], fields
    for fields, says in (
        ("nodee=n1", "'nodee' is not a field of vms"),
        ("!status.nodee", "'status.nodee' is not a field of vms"),
        ("phase=Runing", "phase can't be 'Runing': it is one of Pending, "),
        ("phase in (Running, Stoped)", "phase can't be 'Stoped'"),
        ("hold=maybe", "hold can't be 'maybe': it is one of true, false"),
        ("memory>=1", "'memory>' is not a field"),
    ):
        with pytest.raises(InvalidInput, match=re.escape(says)):
            vms.client.list("vm", fields=fields)
        with pytest.raises(InvalidInput, match=re.escape(says)):
            next(vms.client.watch_forever("vm", fields=fields))


def test_what_someone_did_stands_in_the_journal(vms: ApiLab) -> None:
    by = vms.client.create(make_vm("web"))["created_by"]
    assert by.startswith("token:admin-")
    vms.client.verb("vm", "web", "hold")
    vms.client.put(make_vm("web", grace=3))
    vms.client.patch("vm", "web", {"labels": {"tier": "db"}})
    vms.client.delete("vm", "web")
    vms.client.http.request("POST", "/v1/projects/default/vms:batch", {"objects": [make_vm("also")]})
    vms.client.apply([make_vm("applied")])
    vms.journal.flush()
    (applied,) = vms.client.events(about="vm/default/applied")
    assert applied["reason"] == "Created"
    (also,) = vms.client.events(about="vm/default/also")
    assert (also["reason"], also["message"]) == ("Created", f"created by {by}")
    told = [(e["reason"], e["message"], e["object"]["name"]) for e in vms.client.events(about="vm/default/web")]
    assert told == [
        ("Created", f"created by {by}", "web"),
        ("Asked", f"hold requested by {by}", "web"),
        ("Changed", f"spec.grace changed by {by}", "web"),
        ("Changed", f"labels changed by {by}", "web"),
        ("Deleting", f"requested by {by}", "web"),
    ]


def test_an_object_too_large_for_the_store_is_refused_not_broken(vms: ApiLab) -> None:
    with pytest.raises(WeftError) as caught:
        vms.client.create(make_vm("web", user_data="#!" + "x" * 70_000))
    assert caught.value.field == "spec.user_data"
    with pytest.raises(InvalidInput, match="too many"):
        vms.client.create(make_vm("web", publish=[f"{20000 + i}:80" for i in range(61)]))


def test_a_list_longer_than_a_page_comes_whole_and_in_order(vms: ApiLab) -> None:
    names = [f"v{i:04}" for i in range(1100)]
    for start in range(0, len(names), 550):
        objects = [make_vm(name, networks=[]) for name in names[start : start + 550]]
        vms.client.http.request("POST", "/v1/projects/default/vms:batch", {"objects": objects})
    listing = vms.client.list("vm")
    assert [vm["name"] for vm in listing.items] == names
    assert [raw[:12] for raw in map(bytes, listing.raws)] == [b'{"kind":"vm"'] * len(names)
    assert vms.client.list("vm", read=len).pages == [1000, 100]
    assert [vm["name"] for vm in vms.client.list("vm", fields="name=v1099").items] == ["v1099"]


def test_a_security_group_that_is_named_must_be_there_and_stays(vms: ApiLab) -> None:
    def group(name: str, *ingress: str) -> dict[str, object]:
        return {"kind": "securitygroup", "name": name, "spec": {"ingress": list(ingress)}}

    vms.client.create(group("web", "tcp:80", "any from group:self"))
    with pytest.raises(NotFound) as caught:
        vms.client.create(group("db", "tcp:5432 from group:wbe"))
    assert caught.value.field == "spec.ingress" and "did you mean web" in (caught.value.hint or "")
    made = vms.client.create(group("db", "tcp:5432 from group:web"))
    assert made["spec"]["egress"] == ["any"]
    with pytest.raises(NotFound, match="nowhere"):
        vms.client.create(make_vm("x", security_groups=["nowhere"]))
    vms.client.create(make_vm("x", security_groups=["db"]))
    for name, user in (("web", "securitygroup/db"), ("db", "vm/x")):
        with pytest.raises(InUse, match=user):
            vms.client.delete("securitygroup", name)
    vms.client.put(make_vm("x", security_groups=[]))
    vms.client.delete("securitygroup", "db")
    vms.client.delete("securitygroup", "web")


def test_a_vm_without_networks_waits_for_no_address_from_the_first_moment(vms: ApiLab) -> None:
    bare = vms.client.create(make_vm("bare", networks=[]))
    said = [(c["type"], c["status"], c["message"], c["generation"]) for c in bare["conditions"]]
    assert said == [("Addressed", "True", "no networks", 1)]
    assert bare["conditions"][0]["since"] == bare["created_at"]
    assert vms.client.create(make_vm("web"))["conditions"] == [], "an address is the controller's to give"
