"""The API servers' pure parts: targets, manifests, merge patches, problems, addresses."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.api.context import Settings
from weft.api.object.write import merge_patch
from weft.api.request.manifest import read_manifest
from weft.api.request.problem import STATUS, describe_problem, status_of
from weft.api.request.target import read_target
from weft.api.server import parse_address
from weft.api.state.published_ports import probe_port
from weft.kinds.registry import KINDS
from weft.objects.errors import InvalidInput, NotFound, UnknownField, WeftError


def all_errors(cls: type[WeftError] = WeftError) -> list[type[WeftError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in all_errors(sub))]


@pytest.mark.parametrize(
    "cls",
    [c for c in all_errors() if c is not WeftError and not c.__module__.startswith("weft.cli.")],
    ids=lambda c: c.__name__,
)
def test_every_error_has_a_status_of_its_own(cls: type[WeftError]) -> None:
    assert cls.reason in STATUS
    assert status_of(WeftError("x", reason=cls.reason)) == STATUS[cls.reason]


def test_a_reason_nobody_knows_takes_the_status_of_its_class() -> None:
    assert status_of(NotFound("x", reason="noContext")) == 404
    assert status_of(WeftError("x", reason="odd")) == 500


def test_a_problem_says_all_there_is() -> None:
    error = InvalidInput("spec.cpu: 'x' is not a number", field="spec.cpu", hint="write 2", details={"a": 1})
    problem = describe_problem(error, "id-1")
    assert problem["status"] == 400 and problem["request_id"] == "id-1"
    assert {"reason", "message", "field", "hint", "details", "title", "detail"} <= problem.keys()


@pytest.mark.parametrize(
    ("path", "key", "verb"),
    [
        ("projects/default/vms/web", "/vm/default/web", None),
        ("projects/default/vms/web:stop", "/vm/default/web", "stop"),
        ("nodes/n1", "/node/-/n1", None),
        ("projects/default", "/project/-/default", None),
        ("allocations/u.v", "/allocation/-/u.v", None),
    ],
)
def test_a_path_leads_to_a_key(path: str, key: str, verb: str | None) -> None:
    target = read_target(path.split("/"))
    assert (target.key, target.verb) == (key, verb)


def test_collections_are_prefixes_that_hold_their_own_kind_only() -> None:
    assert read_target(["vms"]).prefix == "/vm/"
    assert read_target(["projects", "p", "vms"]).prefix == "/vm/p/"
    assert read_target(["nodes"]).prefix == "/node/-/"
    assert read_target(["projects", "p", "vms:batch"]).verb == "batch"


@pytest.mark.parametrize("path", ["", "a/b/c/d/e", "vm", "vms/web", "projects/p/nodes", "projects/P!/vms", "nodes/a b"])
def test_a_path_that_leads_nowhere_is_not_found(path: str) -> None:
    with pytest.raises(NotFound):
        read_target(path.split("/"))


def test_what_the_server_puts_into_an_object_is_passed_over_in_a_manifest() -> None:
    whole: dict[str, Any] = {
        "kind": "network", "name": "blue", "project": "p", "uid": "u", "revision": 3, "generation": 2, "schema": 1,
        "created_at": 1.0, "created_by": "ann", "status": {"vni": 1}, "report": {}, "conditions": [], "finalizers": [],
        "owner": None, "deleting_since": None, "labels": {"a": "b"}, "spec": {"cidr": "10.0.0.0/24"},
    }  # fmt: skip
    wish = read_manifest(whole)
    assert read_manifest({**whole, "uid": ""}).uid is None and wish.uid == "u", "no uid means whatever has the name"
    assert (wish.kind.name, wish.project, wish.labels, wish.generation) == ("network", "p", {"a": "b"}, 2)


@pytest.mark.parametrize(
    ("manifest", "field"),
    [
        ({"name": "x"}, "kind"),
        ({"kind": "vn", "name": "x"}, "kind"),
        ({"kind": "vm", "name": "x", "lables": {}}, "lables"),
        ({"kind": "vm", "name": "x", "cpu": 1}, "cpu"),
        ({"kind": "node", "name": "x", "project": "p"}, "project"),
        ({"kind": "vm", "name": "x", "project": "P"}, "project"),
        ({"kind": "vm", "name": "x", "labels": {"a": 1}}, "labels.a"),
        ({"kind": "vm", "name": "x", "labels": {"a b": "c"}}, "labels.a b"),
        ({"kind": "vm", "name": "x", "labels": {f"k{n}": "v" for n in range(65)}}, "labels"),
        ({"kind": "vm", "name": "x", "spec": "s"}, "spec"),
        ({"kind": "vm", "name": "x", "generation": True}, "generation"),
    ],
)
def test_a_manifest_with_a_fault_names_it(manifest: dict[str, Any], field: str) -> None:
    with pytest.raises((InvalidInput, NotFound, UnknownField)) as caught:
        read_manifest(manifest)
    assert caught.value.field == field


def test_a_manifest_must_not_contradict_its_url() -> None:
    vm, node = (next(k for k in KINDS if k.name == name) for name in ("vm", "node"))
    assert read_manifest({}, kind=vm, project="p", name="web").project == "p"
    for manifest, expected in (({"kind": "vm"}, {"kind": node}), ({"name": "a"}, {"kind": vm, "name": "b"}),
                               ({"project": "a"}, {"kind": vm, "project": "b", "name": "x"})):  # fmt: skip
        with pytest.raises(InvalidInput):
            read_manifest(manifest, **expected)  # type: ignore[arg-type]


def test_a_merge_patch_is_as_rfc_7396_has_it() -> None:
    for old, patch, new in (
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ):
        assert merge_patch(old, patch) == new


_json = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(_json, _json)
def test_a_patch_twice_is_a_patch_once(old: Any, patch: Any) -> None:
    once = merge_patch(old, patch)
    assert merge_patch(once, patch) == once


def test_addresses_are_read_and_others_refused() -> None:
    assert parse_address("127.0.0.1:8443") == ("127.0.0.1", 8443)
    assert parse_address("[::1]:0") == ("::1", 0)
    for text in ("", "8443", "localhost:8443", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", "127.0.0.1:-1", "1:2:3"):
        with pytest.raises(InvalidInput):
            parse_address(text)


def test_a_stream_goes_to_the_gateway_at_the_address_the_request_came_to() -> None:
    settings = Settings(Path("/x"), b"", ("127.0.0.1:8444", "10.64.1.1:8444"), "weft-server")
    assert settings.gateway_for("10.64.1.1") == "10.64.1.1:8444"
    assert settings.gateway_for("127.0.0.1") == settings.gateway_for("192.0.2.1") == "127.0.0.1:8444"
    everywhere = Settings(Path("/x"), b"", ("0.0.0.0:8444",), "weft-server")
    assert everywhere.gateway_for("192.0.2.1") == "192.0.2.1:8444"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_someone_holds_is_not_free(protocol: str) -> None:
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as held:
        held.bind(("127.0.0.1", 0))
        if protocol == "tcp":
            held.listen()
        port = held.getsockname()[1]
        assert not probe_port("127.0.0.1", port, protocol)
    assert probe_port("127.0.0.1", port, protocol)
