"""Every commit of the API servers and of the gateway relies on what its preconditions say: each of them is made wrong in turn, just
before the commit lands. The store must refuse it, and what was asked for must come about all the same.

``RELIES_ON`` is what each request says it relies on, by the site of its commits and by kind ("and goes": and takes away);
after "|" what is written without a word about it, for which another one stands. A precondition that is dropped is missing among
those that were refused.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
from tests.node_key import make_node_key
from tests.onnx_files import digest, linear
from tests.scenario.api.test_api_conversions import IMAGE, make_container
from tests.scenario.api.test_api_egress_endpoints import ask, make_function, make_network
from tests.scenario.api.test_api_nodes import place_vm
from tests.scenario.api.test_api_quotas import grant
from tests.scenario.api.test_project_history import migrated
from tests.scenario.api_lab import ApiLab, JoinedNode, make_allocation, make_image, make_vm
from tests.scenario.between import SOURCE, MeddlingStore, find_calls, is_store_commit
from tests.scenario.dashboard_lab import Browser, add_user
from tests.scenario.functions_lab import functions_lab
from tests.unit.kinds.test_upgrades import KIND, stored

from weft.api.bootstrap import bootstrap
from weft.api.rotation import seal as seal_rotation
from weft.api.state import token_use
from weft.api.upgrade import upgrade_objects
from weft.client import Client
from weft.client.answer import raise_problem
from weft.client.function_code import upload_code
from weft.client.http import Http
from weft.contracts.clock import SystemClock
from weft.contracts.store import Delete, Put
from weft.kinds.allocation import AllocatedContainer, AllocationSpec, Resources
from weft.kinds.function import FunctionSpec
from weft.kinds.image import ImageStatus
from weft.kinds.reservation import ReservationStatus
from weft.kinds.secret import place_of
from weft.kinds.token import TokenStatus
from weft.objects.envelope import decode_envelope, decode_part, encode_envelope
from weft.objects.errors import Unavailable
from weft.objects.identity import object_key
from weft.protocol.link import PROJECT_HEADER
from weft.protocol.server.presence import Presence, encode_presence
from weft.protocol.server.rotation import SEAL, read_rotation, rotation_key
from weft.store.memory import MemoryStore
from weft.trust.enrolment import enrolment_key

OWNER = "/fabric/-/ca"  # whose store it is
FIRST_RULE = "/alertrule/fabric/backup-failed"  # the others stay, so that one commit is enough for all
VMS = "/v1/projects/default/vms"
SETTLE = "api/admission/commit.py settle"
RELIES_ON = {
    "create_a_vm": {
        SETTLE: "image at, network at, project at, publishedport absent, quota absent, volume at, workload absent",
    },
    "change_a_vm": {SETTLE: "image at, publishedport absent, publishedport at, quota absent, workload at"},
    "raise_a_priority": {SETTLE: "priorityclass at, project at, quota absent, workload at"},
    "create_on_a_shared_image": {SETTLE: "image at, project at, quota absent, workload absent"},
    "patch_labels": {SETTLE: "image at"},
    "hold_a_vm": {SETTLE: "quota absent, workload at"},
    "give_an_own_role_to_more": {SETTLE: "role at, rolebinding at, token present"},
    "make_a_token_of_ones_own": {SETTLE: "token absent, token present, user at"},
    "log_in": {SETTLE: "token absent, user at"},
    "create_in_place_of_a_refused_one": {SETTLE: "project at, quota absent, reservation at"},
    "set_a_password_and_end_all_tokens": {
        SETTLE: "user at | token",
        "api/auth/password.py set_password": "| token",  # whatever they have become
    },
    "end_a_session": {"api/auth/session.py end": "| token"},  # whatever it has become
    "use_a_token": {"api/state/token_use.py _write": "token at"},
    "rotate_the_sealing_key": {
        "api/rotation/seal.py _write": "rotation absent, rotation at",
        "api/rotation/reseal.py _write": "secret at, user at",
    },
    "convert_a_container": {SETTLE: "conversion absent, project at, workload at"},
    "migrate_a_vm": {SETTLE: "migration absent, project at, workload at"},
    "publish_a_function": {SETTLE: "function at, functionversion absent, project at, quota absent"},
    "create_many": {"api/object/bulk.py _commit": "image at, network at, project at, quota absent, workload absent"},
    "apply_some": {
        "api/object/bulk.py _commit": "image at, network at, project at, quota absent, workload absent, workload at"
    },
    "create_within_a_quota": {SETTLE: "image at, project at, quota at, workload absent"},
    "apply_more_than_one_commit": {
        "api/object/bulk.py _commit": "image at, project at, quota absent, quota at, workload absent"
    },
    "delete_a_vm": {"api/object/delete.py _write": "workload at"},
    "delete_a_volume": {"api/object/delete.py _write": "volume at"},
    "delete_a_project_with_history": {
        "api/object/delete.py _write": "project at",
        "api/object/delete.py _remove_past": "decision at and goes, migration at and goes, project at",
        "api/object/delete.py _finish 2": "project at and goes",
    },
    "delete_a_network": {
        "api/object/delete.py _write": "network at",
        "api/object/delete.py _finish 2": "network at and goes",
    },
    "join_a_new_node": {
        SETTLE: "token absent, token present",
        "api/node/join.py _enrol": "enrolment absent, node absent, token at",
        "api/node/report.py attempt": "node at",
    },
    "join_a_node_anew_twice": {
        "api/node/join.py _enrol": "enrolment at, node at, token at",
        "api/node/join.py _repeat": "enrolment at",
        "api/node/report.py attempt": "node at",
    },
    "join_a_server": {
        SETTLE: "token absent, token present",
        "api/servers/join.py _use": "server absent, token at",
    },
    "renew_and_use_another_key": {"api/auth/enrolments.py attempt": "enrolment at"},
    "report_of_itself_and_of_its_places": {
        "api/node/report.py attempt": "node at",
        "api/node/report.py _write_chunk": "allocation at",
    },
    "report_of_devices_and_of_one_that_was_found": {
        "api/node/devices.py commit": "device at, model at, rule at",
        "api/node/devices.py _take_within": "device absent, founddevices absent, founddevices at",
    },
    "come_back_to_a_store_that_knows_nothing": {
        "api/node/report.py _take_back": "enrolment absent, node absent",
        "api/node/report.py attempt": "node at",
    },
    "give_up_a_node_twice": {
        "api/node/force_delete.py _forget_some": (
            "allocation at and goes, enrolment absent, enrolment at, node at and goes, workload at"
        ),
        "api/node/report.py _take_back": "enrolment at, node absent",
    },
    "delete_a_node_where_one_has_ended": {
        "api/node/ended.py release_ended": "allocation at and goes, workload at",
        "api/object/delete.py _finish 2": "node at and goes | enrolment",
        "api/object/delete.py _write": "node at",
    },
    "come_back_with_a_root_disk_of_a_vm_that_was_placed_elsewhere": {
        "api/node/orphans.py _make_volume": "volume absent",
        "api/node/report.py _take_back": "enrolment at, node absent",
        "api/node/report.py attempt": "node at",
    },
    "come_back_and_have_heard": {
        "api/node/report.py _take_back": "enrolment at, node absent",
        "api/node/report.py attempt": "node at | enrolment",
    },
    "stand_in_a_network": {"api/node/egress_endpoints.py _ensure": "endpoint absent, network present, node present"},
    "link_another_cluster": {
        "api/cluster/link.py attempt": "cluster absent, cluster at, linkname absent, linkname at, token absent | token"
    },
    "be_linked_by_another_cluster": {
        "api/cluster/accept.py _take_in": (
            "cluster absent, cluster at, linkname absent, linkname at, token absent, token at | token"
        )
    },
    "let_a_vm_of_a_linked_cluster_in": {
        SETTLE: "arrival absent, endpoint absent, image at, network at, project at, quota absent, volume absent, workload absent"
    },
    "begin_anew_with_an_empty_store": {
        SETTLE: "token absent",
        "api/bootstrap.py _commit": "alertrule absent, defaultrules absent, network absent, project absent",
        "api/bootstrap.py _mark_store": "fabric absent",
        "api/bootstrap.py _drop_old": "| token",  # whatever held it is gone
    },
    "begin_with_a_newer_rule": {
        SETTLE: "token absent",
        "api/bootstrap.py _commit": "alertrule absent, defaultrules at, project at",
        "api/bootstrap.py _mark_store": "fabric at",
        "api/bootstrap.py _drop_old": "| token",
    },
    "find_objects_of_an_older_weft": {"api/upgrade.py _upgrade_entry": "elder at"},
    "get_a_function_ready": {"gateway/function/readiness.py _write": "function at"},
}

# All they write is about no object, under a gateway's lease or in the place of what was read: test_schedule_state.py and
# test_queued_copies.py in tests/scenario/gateway have several of them.
FENCED = ("gateway/function_events/schedule_state.py", "gateway/event_copies/record.py")

Request = Callable[[ApiLab, int], object]


def send(lab: ApiLab, method: str, path: str, body: Any = None) -> dict[str, Any]:
    answer = lab.client.http.request(method, path, body)
    raise_problem(answer)
    return dict(answer.json())


def create_a_vm(lab: ApiLab, number: int) -> None:
    lab.client.create(make_vm(f"a{number}", volumes=["data"], publish=[f"{20000 + number}:80"]))


def change_a_vm(lab: ApiLab, number: int) -> None:
    """It names another image, and its port leads elsewhere."""
    quietly(lab, lambda: lab.client.create(make_vm(f"b{number}", publish=[f"{21000 + number}:80"])))
    spec = {"image": "other", "publish": [f"{21000 + number}:81", f"{22000 + number}:80"]}
    send(lab, "PUT", f"{VMS}/b{number}", {"kind": "vm", "name": f"b{number}", "spec": spec})
    assert lab.client.get("publishedport", f"tcp-{21000 + number}")["spec"]["target_port"] == 81


def give_an_own_role_to_more(lab: ApiLab, number: int) -> None:
    """The role may be widened meanwhile, beyond what who gives it has."""

    def prepare() -> None:
        lab.client.create({"kind": "role", "name": f"r{number}", "spec": {"rules": {"vm": ["get"]}}})
        lab.client.create({"kind": "rolebinding", "name": f"r{number}", "spec": {"role": f"r{number}"}})

    quietly(lab, prepare)
    changed = send(lab, "PATCH", f"/v1/rolebindings/r{number}", {"spec": {"claims": ["staff"]}})
    assert changed["spec"]["claims"] == ["staff"]


def make_a_token_of_ones_own(lab: ApiLab, number: int) -> None:
    """Who makes it may be disabled meanwhile, and the token that makes it deleted."""

    def prepare() -> Client:
        log_in(lab, 2000 + number)
        login = send(lab, "POST", "/v1/login", {"user": f"u{2000 + number}", "password": "correct horse"})
        return lab.connect(msgspec.structs.replace(lab.context, token=login["secret"]))

    mine = quietly(lab, prepare)
    mine.create({"kind": "token", "name": f"mine-{number}", "spec": {"use": "access", "role": ""}})


def raise_a_priority(lab: ApiLab, number: int) -> None:
    """To that of a class, below a ceiling that may be lowered meanwhile."""

    def prepare() -> None:
        lab.client.create(make_vm(f"w{number}", networks=[], lease={}))
        lab.client.create({"kind": "priorityclass", "name": f"w{number}", "spec": {"value": 5}})

    quietly(lab, prepare)
    changed = send(lab, "PATCH", f"{VMS}/w{number}", {"spec": {"lease": {"priority_class": f"w{number}"}}})
    assert changed["spec"]["lease"]["priority"] == 5


def create_on_a_shared_image(lab: ApiLab, number: int) -> None:
    image = make_image() | {"project": f"o{number}"}
    image["spec"]["shared_with"] = ["*"]
    quietly(lab, lambda: lab.client.create({"kind": "project", "name": f"o{number}", "spec": {}}))
    quietly(lab, lambda: lab.client.create(image))
    lab.client.create(make_vm(f"o{number}", image=f"o{number}/tiny", networks=[]))


def patch_labels(lab: ApiLab, number: int) -> None:
    send(lab, "PATCH", "/v1/projects/default/images/tiny", {"labels": {"number": str(number)}})
    assert lab.client.get("image", "tiny")["labels"] == {"number": str(number)}


def hold_a_vm(lab: ApiLab, number: int) -> None:
    quietly(lab, lambda: lab.client.create(make_vm(f"c{number}")))
    assert lab.client.verb("vm", f"c{number}", "hold")["spec"]["hold"]


def log_in(lab: ApiLab, number: int) -> None:
    def prepare() -> None:
        lab.client.create({"kind": "user", "name": f"u{number}", "spec": {}})
        send(lab, "POST", f"/v1/users/u{number}:passwd", {"password": "correct horse"})

    quietly(lab, prepare)
    made = send(lab, "POST", "/v1/login", {"user": f"u{number}", "password": "correct horse"})
    assert lab.client.get("token", made["token"])["owner"]["name"] == f"u{number}"


def create_in_place_of_a_refused_one(lab: ApiLab, number: int) -> None:
    name, spec = f"r{number}", {"cpu": 1, "memory": "1G", "duration": "1h"}

    def prepare() -> None:
        lab.client.create({"kind": "reservation", "name": name, "spec": {**spec, "cpu": 2}})
        envelope = lab.stored(f"/reservation/default/{name}")
        assert envelope is not None
        envelope.status = msgspec.Raw(msgspec.json.encode(ReservationStatus(state="Rejected")))
        lab.put(envelope)

    quietly(lab, prepare)
    lab.client.create({"kind": "reservation", "name": name, "spec": spec})
    assert lab.client.get("reservation", name)["spec"]["cpu"] == 1


def set_a_password_and_end_all_tokens(lab: ApiLab, number: int) -> None:
    def prepare() -> Client:
        log_in(lab, 1000 + number)
        login = send(lab, "POST", "/v1/login", {"user": f"u{1000 + number}", "password": "correct horse"})
        mine = lab.connect(msgspec.structs.replace(lab.context, token=login["secret"]))
        mine.create({"kind": "token", "name": f"own-{number}", "spec": {"use": "access", "role": ""}})
        return mine

    quietly(lab, prepare)
    given = {"password": "another word", "end_tokens": True}
    assert send(lab, "POST", f"/v1/users/u{1000 + number}:passwd", given)["tokens"] == []
    assert lab.stored(f"/token/-/own-{number}") is None


def end_a_session(lab: ApiLab, number: int) -> None:
    def prepare() -> Browser:
        add_user(lab, f"s{number}", "", None)
        return Browser(lab).login(f"s{number}")

    assert quietly(lab, prepare).send("DELETE", "/v1/session").status == 204


def use_a_token(lab: ApiLab, number: int) -> None:
    key = object_key("token", None, quietly(lab, lambda: lab.with_token(use="access")).context.token.split("_")[1])
    lab.api.token_use.note(key, None, float(number + 1))
    for _ in range(2):  # one that was changed meanwhile is written the next time
        lab.run(lab.api.token_use.write())
    token = lab.stored(key)
    assert token is not None and decode_part(token.status, TokenStatus).used_at == float(number + 1)


def rotate_the_sealing_key(lab: ApiLab, number: int) -> None:
    key = rotation_key(SEAL)

    def prepare() -> None:
        lab.client.create({"kind": "secret", "name": f"r{number}", "spec": {"values": {"a": "one"}}})

    def announce() -> None:
        own = Presence("uid-s1", release="0.1.0", seal_keys=lab.api.settings.seal_keys.ids)
        lab.run(lab.store.grant("server/s1", "s1", 60.0, encode_presence(own)))

    quietly(lab, prepare)
    announce()
    while lab.client.http.request("POST", "/v1/rotations", {"part": SEAL}).status != 200:  # somebody else began one
        quietly(lab, lambda: lab.run(lab.store.commit([Delete(key)])))
    with mock.patch.object(seal_rotation, "SETTLE_SECONDS", 0.0):
        for _ in range(40):
            announce()
            lab.run(seal_rotation.SealRotation(lab.api).turn())
            entry = lab.run(lab.store.get(key))
            if entry is not None and read_rotation(entry.value).step == "done":
                break
    lab.run(lab.store.release("server/s1", "s1"))
    assert entry is not None and read_rotation(entry.value).step == "done"


def act_on_the_one_that_was_read(lab: ApiLab, path: str, verb: str, given: dict[str, Any]) -> None:
    """Whoever means one revision is told of a later one, and asks anew."""
    for _ in range(2):
        revision = send(lab, "GET", path)["revision"]
        answer = lab.client.http.request("POST", f"{path}:{verb}", given, headers={"If-Match": f'"{revision}"'})
        if answer.status != 412:
            break
    raise_problem(answer)


def convert_a_container(lab: ApiLab, number: int) -> None:
    quietly(lab, lambda: lab.client.create(make_container(f"d{number}")))
    path = f"/v1/projects/default/containers/d{number}"
    act_on_the_one_that_was_read(lab, path, "convert", {"to": "vm", "memory": "512M"})


def migrate_a_vm(lab: ApiLab, number: int) -> None:
    def prepare() -> None:
        node = lab.join(f"s{number}")
        place_vm(lab, node, lab.client.create(make_vm(f"s{number}")))

    quietly(lab, prepare)
    act_on_the_one_that_was_read(lab, f"{VMS}/s{number}", "migrate", {})


def publish_a_function(lab: ApiLab, number: int) -> None:
    spec = FunctionSpec(image=IMAGE, isolation="container")
    function = make_function(None)
    function.name, function.uid, function.spec = f"e{number}", f"e{number}", msgspec.Raw(msgspec.json.encode(spec))
    function.status = msgspec.Raw(b'{"phase":"Ready","observed_generation":9}')
    lab.put(function)
    assert lab.client.verb("function", f"e{number}", "publish")["spec"]["number"] == 1


def create_many(lab: ApiLab, number: int) -> None:
    given = {"objects": [make_vm(f"f{number}-{n}") for n in range(2)]}
    results = send(lab, "POST", f"{VMS}:batch", given)["results"]
    assert [result["object"]["name"] for result in results] == [f"f{number}-0", f"f{number}-1"]


def apply_some(lab: ApiLab, number: int) -> None:
    quietly(lab, lambda: lab.client.create(make_vm(f"g{number}")))
    lab.client.apply([make_vm(f"g{number}", cpu=2), make_vm(f"g{number}-new")])
    assert lab.client.get("vm", f"g{number}")["spec"]["cpu"] == 2


def create_within_a_quota(lab: ApiLab, number: int) -> None:
    quietly(lab, lambda: grant(lab, f"u{number}", instances=1))
    lab.client.create({**make_vm("web", networks=[]), "project": f"u{number}"})


def apply_more_than_one_commit(lab: ApiLab, number: int) -> None:
    """The quota is among what is applied."""
    quietly(lab, lambda: grant(lab, f"v{number}"))
    quota = {"kind": "quota", "name": "project", "spec": {"instances": 110}}
    objects = [quota, *(make_vm(f"v{n}", networks=[]) for n in range(110))]
    lab.client.apply([{**one, "project": f"v{number}"} for one in objects])


def delete_a_vm(lab: ApiLab, number: int) -> None:
    quietly(lab, lambda: lab.client.create(make_vm(f"h{number}")))
    lab.client.delete("vm", f"h{number}")
    assert lab.client.get("vm", f"h{number}")["deleting_since"]


def delete_a_network(lab: ApiLab, number: int) -> None:
    quietly(lab, lambda: lab.put(make_network(f"i{number}", "10.77.0.0/24")))
    lab.client.delete("network", f"i{number}")
    assert lab.stored(f"/network/default/i{number}") is None


def delete_a_volume(lab: ApiLab, number: int) -> None:
    quietly(lab, lambda: lab.client.create({"kind": "volume", "name": f"t{number}", "spec": {"size": "1G"}}))
    lab.client.delete("volume", f"t{number}")
    assert lab.client.get("volume", f"t{number}")["deleting_since"]


def delete_a_project_with_history(lab: ApiLab, number: int) -> None:
    name = f"past{number}"
    quietly(lab, lambda: lab.client.create({"kind": "project", "name": name}))
    kept = migrated("web-1", project=name)
    lab.put(*kept)
    lab.client.delete("project", name)
    assert not any(lab.stored(one.key) for one in kept)


def join_a_new_node(lab: ApiLab, number: int) -> None:
    lab.join(f"j{number}").report(node={"cpu": 4})


def join_a_node_anew_twice(lab: ApiLab, number: int) -> None:
    """The second time it says again what it has said: the answer was lost."""
    made: dict[str, Any] = {}

    def prepare() -> None:
        lab.join(f"k{number}")
        made.update(
            lab.client.create({"kind": "token", "name": f"k{number}", "spec": {"use": "join", "node": f"k{number}"}})
        )

    quietly(lab, prepare)
    first = lab.join_with(made["secret"], f"k{number}")
    again = lab.join_with(made["secret"], f"k{number}", first.key)
    again.report(node={"cpu": 4})


def join_a_server(lab: ApiLab, number: int) -> None:
    made = lab.client.create({"kind": "token", "name": f"server{number}", "spec": {"use": "server"}})
    http = Http(msgspec.structs.replace(lab.context, token=made["secret"]))
    answer = http.request("POST", "/v1/servers:join", {"name": f"s{number + 2}", "uid": f"u{number}"})
    http.close()
    raise_problem(answer)


def renew_and_use_another_key(lab: ApiLab, number: int) -> None:
    node = quietly(lab, lambda: lab.join(f"l{number}"))
    key = lab.folder / f"l{number}.new"
    answer = node.client.http.request("POST", f"/v1/nodes/{node.name}:renew", {"csr": make_node_key(key)})
    raise_problem(answer)
    certificate = key.with_suffix(".crt")
    certificate.write_text(answer.json()["certificate"])
    context = msgspec.structs.replace(node.context, certificate=str(certificate), key=str(key))
    assert JoinedNode(node.name, node.uid, lab.connect(context), key, context).report()["refused"] == {}


def report_of_itself_and_of_its_places(lab: ApiLab, number: int) -> None:
    def prepare() -> tuple[JoinedNode, str]:
        node = lab.join(f"m{number}")
        return node, place_vm(lab, node, lab.client.create(make_vm(f"m{number}")))

    node, place = quietly(lab, prepare)
    told = node.report(node={"cpu": 4}, allocations={place: {"incarnation": 1, "state": "running"}})
    assert told["refused"] == {} and lab.client.get("node", node.name)["report"]["cpu"] == 4
    assert lab.client.list("allocation", query={"node": node.uid}).items[0]["report"]["state"] == "running"


def make_model(lab: ApiLab, name: str) -> dict[str, Any]:
    file = linear([2.0])
    upload_code(lab.client, digest(file), file, "onnx")
    spec = {"file": digest(file), "inputs": ["t"], "result": {"event": "frost", "threshold": 0.5}}
    return lab.client.create({"kind": "model", "name": name, "spec": spec})


def report_of_devices_and_of_one_that_was_found(lab: ApiLab, number: int) -> None:
    def prepare() -> tuple[JoinedNode, dict[str, Any], dict[str, Any]]:
        node = lab.join(f"dev{number}")
        device = lab.client.create({"kind": "device", "name": node.name, "spec": {"node": node.name}})
        rule = {"when": "t>1", "then": [{"event": "warm"}]}
        warm = lab.client.create({"kind": "rule", "name": node.name, "spec": rule})
        return node, device, warm, make_model(lab, node.name)

    node, device, rule, model = quietly(lab, prepare)
    told = {
        "devices": [{"uid": device["uid"], "phase": "Online", "seen_seconds_ago": 0.0, "reported": {"t": 1}}],
        "found": [{"protocol": "mqtt", "address": f"acme/{number}", "name": f"lamp{number}"}],
        "rules": [{"uid": rule["uid"], "fired": 1, "seconds_ago": 0.0}],
        "models": [{"uid": model["uid"], "runs": 1}],
    }
    another = {"found": [{"protocol": "mqtt", "address": f"acme/{number}/2", "name": f"door{number}"}]}
    for each in (told, another):
        answer = node.client.http.request("POST", f"/v1/nodes/{node.name}:devices", each)
        raise_problem(answer)
        assert not answer.json().get("refused") and not answer.json().get("not_kept"), answer.json()
    assert lab.client.get("device", node.name)["report"]["reported"] == {"t": 1}
    assert lab.client.get("device", f"lamp{number}")["spec"]["approved"] is False
    assert lab.client.get("rule", node.name)["report"]["nodes"][node.name]["fired"] == 1
    assert lab.client.get("model", node.name)["report"]["nodes"][node.name]["runs"] == 1


def come_back_to_a_store_that_knows_nothing(lab: ApiLab, number: int) -> None:
    node = quietly(lab, lambda: lab.join(f"n{number}"))
    lab.run(lab.store.commit([Delete(f"/node/-/n{number}"), Delete(enrolment_key(node.uid))]))
    assert node.report(node={"cpu": 4})["refused"] == {}
    assert lab.client.get("node", f"n{number}")["uid"] == node.uid


def give_up_a_node_twice(lab: ApiLab, number: int) -> None:
    """It comes back in between, once it has heard of that; what it has said by then is forgotten."""

    def prepare() -> JoinedNode:
        node = lab.join(f"o{number}")
        for name in ("a", "b"):
            lab.client.create(make_vm(f"o{number}{name}"))
        return node

    node = quietly(lab, prepare)
    for name in ("a", "b"):
        place = quietly(lab, lambda: place_vm(lab, node, lab.client.get("vm", f"o{number}{name}")))  # noqa: B023
        if name == "a":  # it had ended, and stays stopped
            ended = lab.stored(f"/allocation/-/{place}")
            assert ended is not None
            ended.report = msgspec.Raw(b'{"ended":true}')
            lab.put(ended)
        envelope = lab.stored(f"/node/-/{node.name}")
        assert envelope is not None
        envelope.status = msgspec.Raw(b'{"phase":"NotReady"}')
        lab.put(envelope)
        lab.client.delete("node", node.name, force=True)
        assert lab.stored(f"/node/-/{node.name}") is None
        node.report()


def delete_a_node_where_one_has_ended(lab: ApiLab, number: int) -> None:
    def prepare() -> JoinedNode:
        node = lab.join(f"e{number}")
        ended = lab.stored(f"/allocation/-/{place_vm(lab, node, lab.client.create(make_vm(f'e{number}')))}")
        assert ended is not None
        spec = decode_part(ended.spec, AllocationSpec)
        ended.spec = msgspec.Raw(
            msgspec.json.encode(msgspec.structs.replace(spec, container=AllocatedContainer(image="i:1")))
        )
        ended.report = msgspec.Raw(b'{"ended":true,"state":"failed","incarnation":1}')
        lab.put(ended)
        return node

    node = quietly(lab, prepare)
    lab.client.delete("node", node.name)
    assert lab.client.get("vm", f"e{number}")["spec"]["run"] == "stop"


def come_back_and_have_heard(lab: ApiLab, number: int) -> None:
    def prepare() -> JoinedNode:
        node = lab.join(f"p{number}")
        place_vm(lab, node, lab.client.create(make_vm(f"p{number}")))
        envelope = lab.stored(f"/node/-/{node.name}")
        assert envelope is not None
        envelope.status = msgspec.Raw(b'{"phase":"NotReady"}')
        lab.put(envelope)
        lab.client.delete("node", node.name, force=True)
        return node

    node = quietly(lab, prepare)
    with contextlib.suppress(Unavailable):  # more went meanwhile, which it hasn't heard
        node.report(node={"cpu": 4}, heard=lab.client.list("node").cursor)
    assert node.report(node={"cpu": 4, "memory": 1}, heard=lab.client.list("node").cursor)["refused"] == {}
    assert lab.stored(f"{enrolment_key(node.uid)}.given-up") is None, "it is remembered no more"


def come_back_with_a_root_disk_of_a_vm_that_was_placed_elsewhere(lab: ApiLab, number: int) -> None:
    def prepare() -> tuple[JoinedNode, str]:
        node = lab.join(f"kept{number}")
        vm = lab.client.create(make_vm(f"kept{number}"))
        place = make_allocation(node, vm)
        spec = msgspec.structs.replace(
            decode_part(place.spec, AllocationSpec), resources=Resources(cpu=1, disk=1 << 30)
        )
        place.spec = msgspec.Raw(msgspec.json.encode(spec))
        lab.put(place)
        for key, status in (
            (f"/node/-/{node.name}", {"phase": "NotReady"}),
            (f"/vm/default/kept{number}", {"active_incarnation": 2}),
        ):
            envelope = lab.stored(key)
            assert envelope is not None
            envelope.status = msgspec.Raw(msgspec.json.encode(status))
            lab.put(envelope)
        lab.client.delete("node", node.name, force=True)
        return node, msgspec.json.encode({"uid": place.uid, "spec": spec}).decode()

    node, copy = quietly(lab, prepare)
    told = {"cpu": 4, "orphan_allocations": [copy], "capabilities": ["kept-disks"]}
    for _ in range(3):
        with contextlib.suppress(Unavailable):
            node.report(node=told)
    kept = [
        one
        for one in quietly(lab, lambda: lab.client.list("volume").items)
        if one["name"].startswith(f"kept{number}-root-")
    ]
    assert len(kept) == 1


def link_another_cluster(lab: ApiLab, number: int) -> None:
    """And again, which renews the link."""
    with another_cluster(lab, f"links{number}") as other:
        for _ in range(2):
            link(lab, "there", other, link_token(other, "here"))
        quietly(lab, lambda: lab.client.delete("cluster", "there"))


def be_linked_by_another_cluster(lab: ApiLab, number: int) -> None:
    with another_cluster(lab, f"linked{number}") as other:
        for _ in range(2):
            link(other, "here", lab, quietly(lab, lambda: link_token(lab, "near")))
        quietly(lab, lambda: lab.client.delete("cluster", "near"))


def let_a_vm_of_a_linked_cluster_in(lab: ApiLab, number: int) -> None:
    """The VM, its volume and its address, with the arrival."""
    with another_cluster(lab, f"arrives{number}") as other:

        def prepare() -> Client:
            terms = {"name": f"near{number}", "grants": ["migrate"], "projects": {"default": "default"}}
            token = lab.client.create({"kind": "token", "spec": {"use": "link", "link": terms}})["secret"]
            link(other, "here", lab, str(token))
            image = lab.stored("/image/default/tiny")
            assert image is not None
            image.status = msgspec.Raw(msgspec.json.encode(ImageStatus(phase="Available", sha256="ab" * 32)))
            lab.put(image)
            spec = other.client.get("cluster", "here")["spec"]
            secret = other.settings.seal_keys.unseal(
                spec["sealed"]["token"], place_of(None, "here", "token", "cluster")
            )
            client = lab.connect(msgspec.structs.replace(lab.context, token=secret.decode()))
            client.http.on_request = lambda request: request.headers.update({PROJECT_HEADER: "default"})
            return client

        client = quietly(lab, prepare)
        nic = {
            "network": "blue",
            "cidr": "10.20.0.0/24",
            "mac": f"52:54:00:00:00:{number:02x}",
            "address": f"10.20.0.{100 + number}",
        }
        spec = {
            **{"of": f"vm/x{number}", "origin": "o", "key": "k", "node": "e1", "node_uid": "n", "allocation": "a"},
            **{"workload": {"image": "tiny"}, "volumes": {f"x{number}": 1 << 20}, "nics": [nic], "image": "ab" * 32},
        }
        made = client.create({"kind": "arrival", "name": f"x{number}", "project": "default", "spec": spec})
        assert made["created_by"] == f"cluster:near{number}"
        assert quietly(lab, lambda: lab.client.get("vm", f"x{number}"))["marks"]["arrives"] == f"x{number}"
        quietly(lab, lambda: lab.client.delete("cluster", f"near{number}"))


def link_token(lab: ApiLab, name: str) -> str:
    made = lab.client.create({"kind": "token", "spec": {"use": "link", "link": {"name": name}}})
    return str(made["secret"])


def link(lab: ApiLab, name: str, other: ApiLab, token: str) -> None:
    body = {"url": other.context.server, "token": token, "own_url": lab.context.server}
    assert send(lab, "POST", f"/v1/clusters/{name}:link", body)["status"]["phase"] == "Linked"


@contextlib.contextmanager
def another_cluster(lab: ApiLab, name: str) -> Iterator[ApiLab]:
    folder = lab.folder / name
    folder.mkdir()
    other = ApiLab(folder)
    try:
        yield other
    finally:
        other.close()


def stand_in_a_network(lab: ApiLab, number: int) -> None:
    node = quietly(lab, lambda: lab.join(f"q{number}"))
    assert ask(node)["network"] == "blue"


def begin_anew_with_an_empty_store(lab: ApiLab, number: int) -> None:
    shutil.rmtree(lab.folder / "lost", ignore_errors=True)
    lab.run(lab.store.commit([Delete("/project/-/default"), Delete("/network/default/default")]))
    lab.run(
        lab.store.commit([Delete(key) for key in ("/defaultrules/-/given", OWNER, "/project/-/fabric", FIRST_RULE)])
    )
    _keep_token(lab)
    lab.run(bootstrap(lab.api, lab.folder / "lost" / "context.json", lab.context.server))
    assert lab.stored("/network/default/default") is not None


def begin_with_a_newer_rule(lab: ApiLab, number: int) -> None:
    shutil.rmtree(lab.folder / "lost", ignore_errors=True)
    lab.run(lab.store.commit([Put("/defaultrules/-/given", b"[]"), Put(OWNER, b"former"), Delete(FIRST_RULE)]))
    lab.run(bootstrap(lab.api, lab.folder / "lost" / "context.json", lab.context.server))
    assert lab.stored(FIRST_RULE) is not None


def _keep_token(lab: ApiLab) -> None:
    """Have the lab's own token outlive another administrator's."""
    key = object_key("token", None, lab.context.token.split("_")[1])
    entry = lab.run(lab.store.get(key))
    assert entry is not None
    envelope = decode_envelope(entry.value)
    envelope.labels = {}
    lab.run(lab.store.commit([Put(key, encode_envelope(envelope))]))


def find_objects_of_an_older_weft(lab: ApiLab, number: int) -> None:
    key, kind = f"/elder/default/r{number}", msgspec.structs.replace(KIND, name="elder")
    lab.run(lab.store.commit([Put(key, msgspec.json.encode(stored(f"r{number}", 1, size=1)))]))
    assert lab.run(upgrade_objects(lab.api.store, [kind])) == 1
    entry = lab.run(lab.store.get(key))
    assert entry is not None and msgspec.json.decode(entry.value)["schema"] == 3
    lab.run(lab.store.commit([Delete(key)]))


REQUESTS: tuple[Request, ...] = (
    give_an_own_role_to_more,
    make_a_token_of_ones_own,
    create_a_vm,
    change_a_vm,
    raise_a_priority,
    create_on_a_shared_image,
    patch_labels,
    hold_a_vm,
    log_in,
    create_in_place_of_a_refused_one,
    set_a_password_and_end_all_tokens,
    end_a_session,
    use_a_token,
    rotate_the_sealing_key,
    convert_a_container,
    migrate_a_vm,
    publish_a_function,
    create_many,
    apply_some,
    create_within_a_quota,
    apply_more_than_one_commit,
    delete_a_vm,
    delete_a_network,
    delete_a_volume,
    delete_a_project_with_history,
    join_a_new_node,
    join_a_node_anew_twice,
    join_a_server,
    renew_and_use_another_key,
    report_of_itself_and_of_its_places,
    report_of_devices_and_of_one_that_was_found,
    come_back_to_a_store_that_knows_nothing,
    give_up_a_node_twice,
    delete_a_node_where_one_has_ended,
    come_back_with_a_root_disk_of_a_vm_that_was_placed_elsewhere,
    come_back_and_have_heard,
    stand_in_a_network,
    link_another_cluster,
    be_linked_by_another_cluster,
    let_a_vm_of_a_linked_cluster_in,
    begin_anew_with_an_empty_store,
    begin_with_a_newer_rule,
    find_objects_of_an_older_weft,
)
MOST_ROUNDS = 20
# One that asks whether a key was used: the two exclude each other, and nothing is written.
NEVER_WRONG = {"api/admission/commit.py was_done 1", "api/admission/commit.py was_done 2"}
REMEDY = (
    "add to REQUESTS in tests/scenario/api/test_api_commits.py a request that makes this commit, "
    "and to RELIES_ON what it relies on"
)


def meddling(lab: ApiLab) -> MeddlingStore:
    assert isinstance(lab.store, MeddlingStore)
    return lab.store


def quietly(lab: ApiLab, prepare: Callable[[], Any]) -> Any:
    """What comes before the request that is meant: nobody writes in between."""
    store = meddling(lab)
    asked, store.asked = store.asked, ""
    try:
        return prepare()
    finally:
        store.asked = asked


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiLab]:
    monkeypatch.setattr(token_use, "WRITE_SECONDS", 1e6)  # by itself it would write into the middle of another request
    lab = ApiLab(tmp_path, MeddlingStore(MemoryStore(SystemClock()), ["api"]))  # type: ignore[arg-type]
    lab.client.create(make_image())
    lab.client.create(make_image("other"))
    lab.client.create({"kind": "volume", "name": "data", "spec": {"size": "1G"}})
    lab.put(make_network("blue", "10.20.0.0/24"), make_function("blue"))
    yield lab
    lab.close()


def check(store: MeddlingStore) -> None:
    """All that was asked of ``store`` relied on what it says, and nothing in its rooms was left out."""
    assert not store.wrong, "written though somebody had been there before"
    seen: dict[str, dict[str, str]] = defaultdict(dict)
    for (asked, site), loose in store.loose.items():
        if relied := ", ".join(sorted(store.refused[asked, site])) + " | " * bool(loose) + ", ".join(sorted(loose)):
            seen[asked][site] = relied.strip()
    for asked in seen:
        assert seen[asked] == RELIES_ON.get(asked), asked
    unseen = {site for site in store.sites.values() if site.partition(" ")[0] not in FENCED} - {
        site for _, site in store.loose
    }
    assert not unseen, f"nothing that is asked here commits at {unseen}: {REMEDY}"
    unseen = {place for place in store.places.values() if place.partition(" ")[0] not in FENCED}
    unseen -= store.made_at | NEVER_WRONG
    assert not unseen, f"preconditions that are made at {unseen} were never wrong: {REMEDY}"


def test_every_precondition_of_every_request_is_refused_when_it_is_wrong_and_the_request_comes_about(
    lab: ApiLab,
) -> None:
    store = meddling(lab)
    with store.watch_makers():
        for request in REQUESTS:
            for number in itertools.count():
                assert number < MOST_ROUNDS, f"{request.__name__}: it relies on something else each time"
                store.asked, store.meddled = request.__name__, False
                request(lab, number)
                store.asked = ""
                if not store.meddled:
                    break
    check(store)


async def test_what_the_gateway_writes_of_a_function_is_refused_when_somebody_has_changed_it(tmp_path: Path) -> None:
    store = MeddlingStore(MemoryStore(SystemClock()), ["gateway"])
    with store.watch_makers():
        async with functions_lab(tmp_path, store) as lab:
            await lab.base()
            await lab.agent("n1")
            store.asked = "get_a_function_ready"
            await lab.function("hello")
    check(store)


def test_whoever_writes_to_the_store_is_walked_by_these_tests() -> None:
    files = {str(Path(file).relative_to(SOURCE)) for file, _ in find_calls(("",), is_store_commit)}
    others = {file for file in files if file.partition("/")[0] not in ("api", "gateway")}
    others -= {
        "informer/leader_lease.py",
        "store/remote/server.py",
        "store/switch.py",
    }  # the controllers' own, and what passes on
    assert not others, f"{others}: a MeddlingStore must see their commits; {REMEDY}"
