"""Secrets: taken in and never shown; sealed in the store; told to the node that runs what names them, and to nobody else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api.test_api_egress_endpoints import make_function
from tests.scenario.api_lab import ApiLab, JoinedNode, make_allocation

from weft.client.answer import raise_problem
from weft.kinds.allocation import AllocatedContainer, AllocationSpec
from weft.kinds.function import FunctionSpec, FunctionStatus
from weft.objects.envelope import decode_part, merge_part
from weft.objects.errors import (
    Forbidden,
    IllegalTransition,
    InUse,
    InvalidInput,
    NotAuthenticated,
    NotFound,
    WeftError,
)
from weft.trust.seal import SealKeys
from weft.trust.tickets import sign_blob_ticket, sign_secret_ticket

WORDS = ("hunter2-one", "hunter2-two", "hunter2-three")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    yield lab
    lab.close()


def make(lab: ApiLab, name: str = "db", registry: str = "", **values: str) -> dict[str, Any]:
    return lab.client.create({"kind": "secret", "name": name, "spec": {"registry": registry, "values": values}})


@pytest.mark.parametrize("values", [{"key": "hunter2"}, {"key": ""}, {"access_key": "", "secret_key": "x"}])
def test_a_value_that_means_nothing_to_its_kind_is_refused_before_it_is_sealed(
    lab: ApiLab, values: dict[str, str]
) -> None:
    spec = {"url": "dir:///srv/backups", "values": values}
    with pytest.raises(InvalidInput) as refused:
        lab.client.create({"kind": "backuprepository", "name": "safe", "spec": spec})
    assert refused.value.field == f"spec.values.{next(iter(values))}" and "hunter2" not in str(refused.value)


def run(lab: ApiLab, node: JoinedNode, **container: Any) -> str:
    """A container with an allocation on ``node``; its allocation's name."""
    made = lab.client.create(
        {"kind": "container", "name": "web", "spec": {"image": "r.example.org/web:1", "memory": "64M", **container}}
    )
    allocation = make_allocation(node, made, network_uid=lab.client.get("network", "default")["uid"])
    spec = decode_part(allocation.spec, AllocationSpec)
    spec.container = AllocatedContainer(image="r.example.org/web:1", **container)
    allocation.spec = merge_part(allocation.spec, spec)
    lab.put(allocation)
    return allocation.name


def ask(node: JoinedNode, allocation: str, name: str = "") -> dict[str, Any]:
    answer = node.client.http.request("POST", f"/v1/nodes/{name or node.name}:secrets", {"allocation": allocation})
    raise_problem(answer)
    return dict(answer.json())


def test_what_it_holds_is_in_no_answer_and_sealed_in_the_store(lab: ApiLab) -> None:
    made = make(lab, password=WORDS[0], user="shop")
    assert made["spec"]["values"] == {} and set(made["spec"]["sealed"]) == {"password", "user"}
    patched = lab.client.patch("secret", "db", {"spec": {"values": {"password": WORDS[1]}}})
    assert patched["generation"] == 2
    assert patched["spec"]["sealed"]["user"] == made["spec"]["sealed"]["user"]
    manifest = {"kind": "secret", "name": "db", "spec": {"values": {"password": WORDS[1], "user": "shop"}}}
    assert [one["action"] for one in lab.client.apply([manifest])] == ["unchanged"]
    changed = {**manifest, "spec": {"values": {"password": WORDS[2]}}}
    [plan] = lab.client.apply([changed], dry_run=True)
    assert [(one["path"], one["old"], one["new"]) for one in plan["changes"]] == [
        ("spec.values.password", "(sealed)", "(sealed again)")
    ]
    lab.client.apply([changed])
    said = [
        json.dumps(one)
        for one in (made, patched, plan, lab.client.list("secret").items, lab.client.get("secret", "db"))
    ]
    stored = lab.stored("/secret/default/db")
    assert stored is not None
    said += [msgspec.json.encode(stored).decode()]
    assert not [text for text in said for word in WORDS if word in text]
    assert not [
        path for path in lab.folder.rglob("*") if path.is_file() and any(w.encode() in path.read_bytes() for w in WORDS)
    ]


def test_what_was_read_can_be_sent_back_whole_or_without_a_key_and_not_otherwise(lab: ApiLab) -> None:
    made = make(lab, a="1", b="2")
    again = {key: made[key] for key in ("kind", "name", "spec")}
    assert [one["action"] for one in lab.client.apply([again])] == ["unchanged"]
    again["spec"] = {"sealed": {"a": made["spec"]["sealed"]["a"]}}
    lab.client.apply([again])
    assert set(lab.client.get("secret", "db")["spec"]["sealed"]) == {"a"}
    for sealed in ({"a": made["spec"]["sealed"]["b"]}, {"c": "x"}, {"a": None}, "x"):
        with pytest.raises(InvalidInput) as caught:
            lab.client.apply([{**again, "spec": {"sealed": sealed}}])
        assert caught.value.field is not None and caught.value.field.startswith("spec.sealed")


@pytest.mark.parametrize(
    "spec",
    [
        {"values": {"pin": 4711}},
        {"values": ["hunter2-one"]},
        {"values": {"a b": "hunter2-one"}},
        {"values": {"k": "hunter2-one" * 10000}},
        {"values": {"password": "hunter2-one"}, "registry": "r.example.org"},
        {"values": {"username": "u", "password": "hunter2-one"}, "registry": "r.example.org/path"},
        {"values": {"username": "u", "password": "hunter2-one"}, "registry": "https://r.example.org"},
        {"values": {"password": "hunter2-one"}, "valuse": {}},
    ],
)
def test_what_is_wrong_with_one_is_said_without_what_it_holds(lab: ApiLab, spec: dict[str, Any]) -> None:
    with pytest.raises(WeftError) as caught:
        lab.client.create({"kind": "secret", "name": "bad", "spec": spec})
    told = json.dumps(caught.value.to_dict())
    assert "spec." in told and "hunter2" not in told and "4711" not in told
    with pytest.raises(NotFound):
        lab.client.get("secret", "bad")


def test_a_node_is_told_what_its_own_allocations_name_and_no_more(lab: ApiLab) -> None:
    node, other = lab.join("n1"), lab.join("n2")
    make(lab, "db", password=WORDS[0], admin=WORDS[2])
    make(lab, "reg", "r.example.org", username="puller", password=WORDS[1], note="x")
    make(lab, "unnamed", word="x")
    name = run(lab, node, env_secrets={"DB": "db/password"}, registry_secret="reg")
    told = ask(node, name)
    assert told == {
        "secrets": {"db": {"password": WORDS[0]}, "reg": {"username": "puller", "password": WORDS[1]}},
        "registries": {"reg": "r.example.org"},
        "volumes": {},
        "offline": [],
    }
    lab.client.patch("secret", "db", {"spec": {"offline": True}})
    assert ask(node, name)["offline"] == ["db"]
    lab.client.patch("secret", "db", {"spec": {"values": {"password": WORDS[1]}}})
    assert ask(node, name)["secrets"]["db"] == {"password": WORDS[1]}
    for who, allocation, called, error in (
        (other, name, "", NotFound),
        (other, name, "n1", Forbidden),
        (node, f"{node.uid}.none", "", NotFound),
        (node, "", "", NotFound),
    ):
        with pytest.raises(error):
            ask(who, allocation, called)
    with pytest.raises(Forbidden):
        node.client.get("secret", "db")
    with pytest.raises(Forbidden):
        raise_problem(lab.client.http.request("POST", "/v1/nodes/n1:secrets", {"allocation": name}))
    with pytest.raises(InUse):
        lab.client.delete("secret", "db")


def test_a_secret_or_key_that_is_not_there_is_named(lab: ApiLab) -> None:
    node = lab.join("n1")
    with pytest.raises(NotFound, match='"db"'):
        run(lab, node, env_secrets={"DB": "db/password"})
    make(lab, "db", user="shop")
    name = run(lab, node, env_secrets={"DB": "db/password"})
    with pytest.raises(NotFound, match="no key password") as caught:
        ask(node, name)
    assert (caught.value.token, caught.value.hint) == ("secretNotFound", "it has: user")


@pytest.mark.parametrize("place", ["db", "db/", "/x", "db/a/b", "D B/x"])
def test_a_variable_names_a_secret_and_its_key(lab: ApiLab, place: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        run(lab, lab.join("n1"), env_secrets={"DB": place})
    assert caught.value.field == "spec.env_secrets.DB"


def test_with_another_key_nothing_is_opened_and_a_new_value_helps(lab: ApiLab) -> None:
    node = lab.join("n1")
    make(lab, "db", password=WORDS[0])
    name = run(lab, node, env_secrets={"DB": "db/password"})
    lab.api.settings = dataclasses.replace(lab.api.settings, seal_keys=SealKeys.of(b"t" * 32))
    with pytest.raises(WeftError) as caught:
        ask(node, name)
    assert caught.value.token == "sealedByAnother"
    lab.client.patch("secret", "db", {"spec": {"values": {"password": WORDS[0]}}})
    assert ask(node, name)["secrets"]["db"] == {"password": WORDS[0]}


def test_a_node_with_a_ticket_is_told_who_pulls_a_function_s_image_and_nothing_else(lab: ApiLab) -> None:
    node, other = lab.join("n1"), lab.join("n2")
    make(lab, "reg", "r.example.org", username="puller", password=WORDS[1], note="x")
    make(lab, "db", password=WORDS[0])
    key, now = lab.api.settings.ticket_key, lab.api.clock.now()

    def ask_with(who: JoinedNode, ticket: str) -> dict[str, Any]:
        answer = who.client.http.request("POST", f"/v1/nodes/{who.name}:secrets", {"ticket": ticket})
        raise_problem(answer)
        return dict(answer.json())

    ticket = sign_secret_ticket(key, "default", "reg", node.uid, now)
    assert ask_with(node, ticket) == {
        "secrets": {"reg": {"username": "puller", "password": WORDS[1]}},
        "registries": {"reg": "r.example.org"},
        "volumes": {},
        "offline": [],
    }
    assert ask_with(node, sign_secret_ticket(key, "default", "db", node.uid, now))["secrets"] == {"db": {}}
    blob = sign_blob_ticket(key, "0" * 64, node.uid, now)
    for who, shown, error in (
        (other, ticket, Forbidden),
        (node, blob, Forbidden),
        (node, sign_secret_ticket(b"x" * 32, "default", "reg", node.uid, now), NotAuthenticated),
        (node, sign_secret_ticket(key, "default", "reg", node.uid, now - 4 * 3600), NotAuthenticated),
        (node, sign_secret_ticket(key, "default", "gone", node.uid, now), NotFound),
    ):
        with pytest.raises(error):
            ask_with(who, shown)


def test_a_secret_that_opens_a_function_s_registry_cannot_be_deleted(lab: ApiLab) -> None:
    make(lab, "reg", "r.example.org", username="puller", password=WORDS[1])
    spec = {"image": "r.example.org/own:1", "registry_secret": "reg"}
    with pytest.raises(NotFound):
        lab.client.create({"kind": "function", "name": "own", "spec": {**spec, "registry_secret": "nothing"}})
    lab.client.create({"kind": "function", "name": "own", "spec": spec})
    with pytest.raises(InUse, match="function/own"):
        lab.client.delete("secret", "reg")
    pulled = lab.client.verb("function", "own", "pull", {})
    assert pulled["actions"]["pulls"] == 1
    lab.client.patch("function", "own", {"spec": {"image": f"r.example.org/own:1@sha256:{'1' * 64}"}})
    with pytest.raises(IllegalTransition, match="pinned"):
        lab.client.verb("function", "own", "pull", {})


def use(lab: ApiLab, node: JoinedNode, volume: dict[str, Any]) -> str:
    """A VM that uses the volume, with an allocation on ``node``; its allocation's name."""
    lab.client.create({"kind": "image", "name": "tiny", "spec": {"url": "file:///srv/tiny.tar"}})
    vm = lab.client.create({"kind": "vm", "name": "vault", "spec": {"image": "tiny", "volumes": [volume["name"]]}})
    allocation = make_allocation(node, vm, volume_uid=volume["uid"])
    spec = decode_part(allocation.spec, AllocationSpec)
    spec.volumes = [msgspec.structs.replace(one, name=volume["name"], encrypted=True) for one in spec.volumes]
    allocation.spec = merge_part(allocation.spec, spec)
    lab.put(allocation)
    return allocation.name


def test_the_server_draws_a_volume_s_key_and_tells_it_to_its_node_alone(lab: ApiLab) -> None:
    node, other = lab.join("n1"), lab.join("n2")
    made = lab.client.create({"kind": "volume", "name": "vault", "spec": {"size": 1 << 24, "encrypted": True}})
    assert made["spec"]["values"] == {} and set(made["spec"]["sealed"]) == {"key"}
    plain = lab.client.create({"kind": "volume", "name": "plain", "spec": {"size": 1 << 24}})
    assert plain["spec"]["sealed"] == {}
    name = use(lab, node, made)
    key = ask(node, name)["volumes"][made["uid"]]
    assert len(bytes.fromhex(key)) == 32
    assert key not in json.dumps(lab.client.get("volume", "vault")) + str(lab.stored("/volume/default/vault"))
    for who, called, error in ((other, "", NotFound), (other, "n1", Forbidden)):
        with pytest.raises(error):
            ask(who, name, called)
    again = lab.client.create({"kind": "volume", "name": "other", "spec": {"size": 1 << 24, "encrypted": True}})
    assert again["spec"]["sealed"] != made["spec"]["sealed"]
    for change in ({"encrypted": False}, {"values": {"key": "00" * 32}}, {"sealed": {"key": None}}):
        with pytest.raises((InvalidInput, IllegalTransition)):
            lab.client.patch("volume", "vault", {"spec": change})
    with pytest.raises(InvalidInput):
        lab.client.create({"kind": "volume", "name": "odd", "spec": {"size": 1 << 24, "values": {"key": "00" * 32}}})


def test_a_volume_whose_key_is_lost_says_so(lab: ApiLab) -> None:
    node = lab.join("n1")
    made = lab.client.create({"kind": "volume", "name": "vault", "spec": {"size": 1 << 24, "encrypted": True}})
    name = use(lab, node, made)
    lab.api.settings = dataclasses.replace(lab.api.settings, seal_keys=SealKeys.of(b"t" * 32))
    with pytest.raises(NotFound, match="the key of volume vault is lost") as caught:
        ask(node, name)
    assert caught.value.token == "keyLost"


def test_a_node_reads_the_token_of_a_function_that_names_it_and_tells_of_that_alone(lab: ApiLab) -> None:
    here, other = lab.join("n1"), lab.join("n2")
    make(lab, "door", token=WORDS[0], more=WORDS[1])
    function = make_function(None)
    spec = decode_part(function.spec, FunctionSpec)
    spec.local_nodes, spec.local_secret = ["n1"], "door"
    function.spec = merge_part(function.spec, spec)
    lab.put(function)

    def open_it(node: JoinedNode, named: str) -> dict[str, Any]:
        answer = node.client.http.request("POST", f"/v1/nodes/{node.name}:secrets", {"function": named})
        raise_problem(answer)
        return dict(answer.json())

    opened = open_it(here, "default/f")
    assert opened["secrets"] == {"door": {"token": WORDS[0]}} and not opened.get("offline")
    lab.client.patch("secret", "door", {"spec": {"offline": True}})
    assert open_it(here, "default/f")["offline"] == ["door"]
    for node, named in ((other, "default/f"), (here, "other/f"), (here, "default/g"), (here, "default")):
        with pytest.raises(NotFound) as caught:
            open_it(node, named)
        assert WORDS[0] not in str(caught.value)
        assert caught.value.token == "functionNotHere", "the node forgets the token for this reason alone"
    about = {"kind": "function", "name": "f", "uid": "f-uid", "project": "default"}
    event = {"type": "Normal", "reason": "InvokedAtNode", "message": "3 invocations", "object": about, "n": 1}
    for node in (other, here):
        assert (
            node.report(events=[event, {**event, "object": {**about, "uid": "no"}, "n": 2}], outbox="b")["through"] == 2
        )

    def read_told() -> list[tuple[str, str, int]]:
        lab.journal.flush()
        told = [one for one in lab.client.events(about="function") if one["reason"] == "InvokedAtNode"]
        return [(one["source"], one["object"]["name"], one["count"]) for one in told]

    assert read_told() == [("node/n1", "f", 1)]
    function = lab.stored(function.key) or function
    spec.local_nodes, spec.local_secret = [], None
    function.spec, function.status = (
        merge_part(function.spec, spec),
        merge_part(function.status, FunctionStatus(named_nodes=["n1"])),
    )
    lab.put(function)
    for node in (other, here):  # what ran before the function stopped naming the node
        assert node.report(events=[{**event, "n": 3}], outbox="b")["through"] == 3
    assert read_told() == [("node/n1", "f", 2)]
