"""What a container may be specified to be, and what its place is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from weft.kinds.allocation import AllocatedContainer, AllocationSpec, Resources
from weft.kinds.container import (
    CONTAINER,
    WORKLOAD,
    ContainerSpec,
    RestartInput,
    check_container,
)
from weft.kinds.fields.mount import read_mount
from weft.kinds.parts.capabilities import DEFAULT_CAPABILITIES, list_capabilities
from weft.kinds.parts.lease_verbs import LEASE_VERBS
from weft.kinds.parts.migration.verb import MIGRATION_MODES
from weft.kinds.registry import KINDS, WORKLOADS, is_workload
from weft.objects.errors import InvalidInput, WeftError
from weft.objects.identity import Ref
from weft.objects.lifecycle import ALLOWED
from weft.objects.schema import read_strict

IMAGE = "registry.example.org:5000/shop/web:1.4"


def make(**spec: Any) -> ContainerSpec:
    read = read_strict({"image": IMAGE, **spec}, ContainerSpec)
    check_container(read)
    return read


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        "localhost/web",
        "localhost:5000/web",
        "registry.example.org/a/b__c/d.e-f:V1_x",
        f"registry.example.org/web@sha256:{'0a' * 32}",
        f"registry.example.org/web:1@sha256:{'0a' * 32}",
    ],
)
def test_an_image_is_named_with_its_registry(image: str) -> None:
    assert make(image=image).image == image


@pytest.mark.parametrize(
    "image",
    [
        "shop/a/web",
        "shop/",
        "Shop/web",
        "Web",
        "web:1",
        "shop/web:1",
        "registry.example.org/Web",
        "registry.example.org/web:",
        "registry.example.org/web@sha256:12",
        "/etc",
        "oci:/etc",
        "oci-archive:/etc/shadow",
        "registry.example.org/../web",
        "registry.example.org//web",
        "a b.c/d",
        "registry.example.org/web\n",
        "",
    ],
)
def test_what_names_no_image_in_a_registry_is_refused_with_the_remedy(image: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        make(image=image)
    assert caught.value.field == "spec.image"
    assert caught.value.hint


def test_a_name_without_a_registry_is_an_image_that_weft_holds() -> None:
    named = make(image="web")
    assert [name for one in CONTAINER.references if one.kind == "image" for name in one.names(named)] == ["web"]
    assert CONTAINER.workload is not None and CONTAINER.workload.needs(named).images == ("web",)
    assert not CONTAINER.workload.needs(make()).images
    with pytest.raises(InvalidInput) as caught:
        make(image="web", registry_secret="regcred")
    assert caught.value.field == "spec.registry_secret"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"memory": "1M"}, "spec.memory"),
        ({"memory": "64M", "isolation": "vm"}, "spec.memory"),
        ({"registry_secret": "No Name"}, "spec.registry_secret"),
        ({"mounts": ["data"]}, "spec.mounts[0]"),
        ({"mounts": ["data:relative"]}, "spec.mounts[0]"),
        ({"mounts": ["data:/"]}, "spec.mounts[0]"),
        ({"mounts": ["data:/a/../etc"]}, "spec.mounts[0]"),
        ({"mounts": ["data:/proc/sys"]}, "spec.mounts[0]"),
        ({"mounts": ["data:/srv:rx"]}, "spec.mounts[0]"),
        ({"mounts": ["/etc:/srv"]}, "spec.mounts[0]"),
        ({"mounts": ["data:/a", "data:/b"]}, "spec.mounts"),
        ({"mounts": ["a:/srv", "b:/srv"]}, "spec.mounts"),
        ({"env": {"1A": "x"}}, "spec.env"),
        ({"env": {"A": "x\0y"}}, "spec.env"),
        ({"env": {"A": "x" * 65536}}, "spec.env"),
        ({"user": "a b"}, "spec.user"),
        ({"command": [""]}, "spec.command"),
        ({"args": ["a\0b"]}, "spec.args"),
        ({"add_capabilities": ["SYS_MODULE"]}, "spec.add_capabilities"),
        ({"drop_capabilities": ["NOTHING"]}, "spec.drop_capabilities"),
        ({"drop_capabilities": ["net_raw"], "add_capabilities": ["CAP_NET_RAW"]}, "spec.add_capabilities"),
        ({"once": True, "restart": "always"}, "spec.restart"),
        ({"pids": 0}, "spec.pids"),
        ({"health_check": {"command": []}}, "spec.health_check.command"),
        ({"health_check": {"command": ["true"], "interval": 0}}, "spec.health_check.interval"),
        ({"run": "suspend"}, "spec.run"),
        ({"machine": "q35"}, "spec.machine"),
        ({"publish": ["80:80"], "networks": []}, "spec.publish"),
    ],
)
def test_what_can_not_be_is_refused_by_its_field(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(WeftError) as caught:
        make(**spec)
    assert caught.value.field == field
    assert caught.value.hint or "twice" in caught.value.message or field in ("spec.pids", "spec.args")


def test_capabilities_are_the_default_ones_with_what_is_added_and_without_what_is_dropped() -> None:
    def have(**spec: Any) -> set[str]:
        made = WORKLOAD.allocate(make(**spec), None)["container"]
        return {name.removeprefix("CAP_") for name in list_capabilities(made)}

    assert have() == set(DEFAULT_CAPABILITIES)
    assert have(add_capabilities=["cap_net_raw"], drop_capabilities=["chown"]) == {*DEFAULT_CAPABILITIES, "NET_RAW"} - {
        "CHOWN"
    }
    assert have(drop_capabilities=["ALL"], add_capabilities=["NET_RAW"]) == {"NET_RAW"}
    assert not {"SYS_ADMIN", "NET_RAW", "MKNOD"} & have()


def test_a_mount_is_read_as_it_was_written() -> None:
    mount = read_mount("data:/srv/a:ro")
    assert (mount.volume, mount.path, mount.read_only) == ("data", "/srv/a", True)
    assert not read_mount("data:/srv:rw").read_only
    with pytest.raises(InvalidInput, match="can't be mounted over the container's root") as refused:
        read_mount("data:/")
    assert refused.value.hint == "name a folder, like data:/var/lib/data"


def test_what_admission_wrote_out_can_be_sent_back() -> None:
    told = msgspec.to_builtins(make())
    assert msgspec.to_builtins(make(**{name: value for name, value in told.items() if name != "image"})) == told


def test_a_place_has_all_of_the_spec_and_says_what_has_changed_since() -> None:
    old, new = make(args=["a"], mounts=["data:/srv"]), make(args=["b"], mounts=["data:/srv"])
    place = msgspec.convert(
        {"node": "n", "node_uid": "u", "workload": {"kind": "container", "name": "web", "uid": "w"}}
        | {"workload_generation": 1, "incarnation": 1, "resources": {}}
        | {"volumes": [{"name": "data", "uid": "d", "size": 1}]}
        | msgspec.to_builtins(WORKLOAD.allocate(old, None)),
        AllocationSpec,
    )
    assert WORKLOAD.is_same(place, old)
    assert not WORKLOAD.is_same(place, new)
    has, asked = WORKLOAD.compare(place, new)
    assert {name for name in has if has[name] != asked[name]} == {"args"}
    WORKLOAD.resize(place, new, {"args"})
    assert WORKLOAD.is_same(place, new)
    assert WORKLOAD.is_alike(place, old)
    assert not WORKLOAD.is_alike(place, make(image="localhost/other"))


def test_a_place_from_before_there_were_containers_is_a_machine_s() -> None:
    stored = msgspec.json.decode((Path(__file__).parent / "stored" / "allocation.1.json").read_bytes())
    spec = msgspec.convert(stored["spec"], AllocationSpec)
    assert spec.container is None
    assert spec.image is not None


def test_each_kind_of_workload_says_what_it_can_do_and_migrations_know_which_can_move() -> None:
    able = {kind.name for kind in KINDS if kind.verb("migrate") is not None}
    assert able == set(MIGRATION_MODES)
    assert {kind.name for kind in KINDS if is_workload(kind.name)} == set(WORKLOADS) == {"vm", "container"}
    verbs = {verb.name for verb in CONTAINER.verbs}
    assert not verbs & {"suspend", "resume", "screen", "console"}
    assert {"start", "stop", "restart", "migrate", "hold", "release", "exec", "logs"} <= verbs
    bound = {verb.name for verb in CONTAINER.verbs if verb.change is not None} - {verb.name for verb in LEASE_VERBS}
    assert bound <= set(ALLOWED)


@pytest.mark.parametrize("field", ["env.A", "env_secrets.A", "health_check.interval", "mounts"])
def test_a_place_takes_what_changed_within_a_field(field: str) -> None:
    spec = ContainerSpec(image="r.example.org/web:1", env={"A": "2"})
    place = AllocationSpec(
        node="n", node_uid="u", workload=Ref("container", "web", "w", "default"), workload_generation=1, incarnation=1,
        resources=Resources(), container=AllocatedContainer(image="r.example.org/web:1", env={"A": "1"}, pulls=3),
    )  # fmt: skip
    WORKLOAD.resize(place, spec, {"cpu"})
    assert place.container is not None and place.container.env == {"A": "1"}
    WORKLOAD.resize(place, spec, {field})
    assert (place.container.env, place.container.pulls) == ({"A": "2"}, 3)


def test_a_restart_looks_its_tag_up_again_only_if_so_asked() -> None:
    verb = CONTAINER.verb("restart")
    assert verb is not None and verb.act is not None
    obj = {
        "kind": "container",
        "name": "web",
        "spec": {"run": "run"},
        "actions": {"restart_generation": 1, "pulls": 4},
        "status": {"phase": "Running"},
    }
    assert "pulls" not in verb.act(obj, RestartInput())
    asked = verb.act(obj, RestartInput(pull=True))
    assert (asked["pulls"], asked["restart_generation"]) == (5, 2)
