"""What the API servers say to people who convert: what is made, what is refused at once, and what neither side may do meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab, make_vm

from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.vm import VmSpec
from weft.objects.envelope import decode_part, merge_part
from weft.objects.errors import IllegalTransition, InvalidInput, NotFound

IMAGE = "registry.example.org/shop/web:1"


def make_container(name: str, **spec: Any) -> dict[str, Any]:
    return {"kind": "container", "name": name, "spec": {"image": IMAGE, "networks": [], **spec}}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    lab.client.create({"kind": "image", "name": "web", "spec": {"url": f"oci://{IMAGE}"}})
    yield lab
    lab.close()


def tell(lab: ApiLab, key: str, **status: Any) -> None:
    """What the controller of workloads says of it."""
    envelope = lab.stored(key)
    assert envelope is not None
    envelope.status = msgspec.Raw(msgspec.json.encode(WorkloadStatus(**status)))
    lab.put(envelope)


def test_the_verb_makes_a_conversion_and_its_verbs_say_what_is_requested(lab: ApiLab) -> None:
    lab.client.create(make_container("web"))
    made = lab.client.verb("container", "web", "convert", {"to": "vm", "memory": "512M"})
    assert made["kind"] == "conversion" and made["name"].startswith("web-")
    assert (made["spec"]["workload"], made["spec"]["memory"]) == ("container/web", 512 * 2**20)
    assert made["finalizers"] == ["conversion"]
    assert lab.client.verb("conversion", made["name"], "confirm")["actions"]["confirmed"]
    assert lab.client.verb("conversion", made["name"], "undo")["actions"]["undo"]


@pytest.mark.parametrize(
    ("spec", "field"),
    [({"once": True}, "spec.once"), ({"gang": "g:2"}, "spec.gang"), ({"gpu_share": 0.5}, "spec.gpus")],
)
def test_a_container_that_cannot_be_a_vm_is_refused_however_it_is_asked_for(
    lab: ApiLab, spec: dict[str, Any], field: str
) -> None:
    lab.client.create(make_container("web", **spec))
    for act in (
        lambda: lab.client.verb("container", "web", "convert", {"to": "vm"}),
        lambda: lab.client.create(
            {"kind": "conversion", "name": "c", "spec": {"workload": "container/web", "to": "vm"}}
        ),
    ):
        with pytest.raises(InvalidInput) as refused:
            act()
        assert refused.value.field == field and refused.value.hint


def test_a_vm_with_a_volume_that_has_no_place_in_a_container_is_refused(lab: ApiLab) -> None:
    lab.client.create({"kind": "volume", "name": "data", "spec": {"size": "1G"}})
    lab.client.create(make_vm("db", image="web", volumes=["data"]))
    with pytest.raises(InvalidInput, match="volume data") as refused:
        lab.client.verb("vm", "db", "convert", {"to": "container"})
    assert refused.value.field == "spec.volumes"


@pytest.mark.parametrize(("verb", "action"), [("confirm", "confirmed"), ("undo", "undo")])
def test_a_vm_that_has_handed_its_volumes_over_is_in_the_way_of_no_verb(lab: ApiLab, verb: str, action: str) -> None:
    lab.client.create({"kind": "volume", "name": "data", "spec": {"size": "1G"}})
    lab.client.create(make_vm("db", image="web", volumes=["data"], user_data="mount data:/data\n"))
    made = lab.client.verb("vm", "db", "convert", {"to": "container"})
    envelope = lab.stored("/vm/default/db")
    assert envelope is not None
    envelope.spec = merge_part(envelope.spec, msgspec.structs.replace(decode_part(envelope.spec, VmSpec), volumes=[]))
    lab.put(envelope)
    assert lab.client.verb("conversion", made["name"], verb)["actions"][action]


def test_what_is_to_be_converted_must_be_there_and_of_the_other_kind(lab: ApiLab) -> None:
    with pytest.raises(NotFound) as missing:
        lab.client.create({"kind": "conversion", "name": "c", "spec": {"workload": "container/web", "to": "vm"}})
    assert missing.value.field == "spec.workload"
    lab.client.create(make_container("web"))
    with pytest.raises(InvalidInput) as same:
        lab.client.verb("container", "web", "convert", {"to": "container"})
    assert same.value.field == "spec.to"


def test_neither_side_is_changed_started_converted_or_deleted_while_one_may_have_to_give_back(lab: ApiLab) -> None:
    lab.client.create(make_container("web"))
    lab.client.create(make_vm("web", image="web", networks=[]))
    tell(lab, "/container/default/web", phase="Stopped", conversion="web-1", converts_to="vm/web")
    tell(lab, "/vm/default/web", phase="Running", conversion="web-1")
    for kind, to in (("container", "vm"), ("vm", "container")):
        for act in (
            lambda kind=kind: lab.client.patch(kind, "web", {"spec": {"cpu": 2}}),
            lambda kind=kind: lab.client.delete(kind, "web"),
            lambda kind=kind, to=to: lab.client.verb(kind, "web", "convert", {"to": to}),
        ):
            with pytest.raises(IllegalTransition, match="conversion/web-1") as refused:
                act()
            assert refused.value.hint == "weft conversion confirm web-1, or: weft conversion undo web-1"
        lab.client.patch(kind, "web", {"labels": {"a": "b"}})
    with pytest.raises(IllegalTransition, match="handed over to vm/web"):
        lab.client.verb("container", "web", "start")
    lab.client.verb("vm", "web", "stop")
    tell(lab, "/vm/default/web", phase="Stopped")
    lab.client.delete("vm", "web")
