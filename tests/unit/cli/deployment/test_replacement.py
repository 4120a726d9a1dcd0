"""What an update of a single VM makes of its file: what goes along, what is refused, and what is said of a VM that is replaced."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.cli.deployment.preview import foresee
from weft.cli.deployment.replacement import check_replacement, describe_replacement, make_template
from weft.kinds.fields.lease import LeaseRequest
from weft.kinds.parts.snapshot.schedule import SnapshotSchedule
from weft.kinds.vm import VmSpec
from weft.objects.errors import IllegalTransition, InvalidInput


def vm(**spec: Any) -> dict[str, Any]:
    return {"kind": "vm", "name": "pet", "spec": msgspec.to_builtins(VmSpec(**{"image": "tiny", **spec}))}


PET: dict[str, Any] = {
    "publish": ["8091:80"],
    "volumes": ["data"],
    "networks": ["default:10.0.7.7"],
    "node": "n1",
    "boot": "cold",
}


def test_what_a_file_leaves_out_of_a_vms_own_stays_as_it_is() -> None:
    template = make_template({"image": "newer"}, vm(**PET))
    assert (template["image"], template["networks"], template["boot"]) == ("newer", ["default"], "cold")
    assert {"publish", "volumes", "snapshots", "run"}.isdisjoint(template)


@pytest.mark.parametrize("written", [["8091:80"], ["8091:80/tcp"]])
def test_a_file_may_say_what_the_vm_has_already(written: list[str]) -> None:
    file = {"image": "newer", "publish": written, "volumes": ["data"], "networks": ["default:10.0.7.7"], "boot": "cold"}
    make_template(file, vm(**PET))


def test_a_node_of_the_file_is_the_new_versions() -> None:
    assert make_template({"image": "newer", "node": "n2"}, vm())["node"] == "n2"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("publish", ["9000:80"]),
        ("publish", []),
        ("volumes", ["other"]),
        ("boot", "warm"),
        ("run", "stop"),
        ("gang", "g:2"),
        ("lease", {"duration": 60.0}),
        ("snapshots", {"every": 3600.0}),
        ("networks", ["default:10.0.7.8"]),
        ("networks", ["red:10.1.1.1"]),
    ],
)
def test_a_field_of_the_file_that_would_be_dropped_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as problem:
        make_template({"image": "newer", field: value}, vm(**PET))
    assert (problem.value.field or "").startswith(f"spec.{field}")
    assert "weft delete" not in (problem.value.hint or "")


def test_what_no_other_vm_can_take_over_is_refused_before_one_replaces_it() -> None:
    lease = LeaseRequest(duration=3600.0)
    with pytest.raises(IllegalTransition, match="which can't take over its lease"):
        check_replacement(vm(lease=lease), {"networks": ["default"]}, {})
    with pytest.raises(InvalidInput, match="publishes 8091:80, which needs a network"):
        check_replacement(vm(publish=["8091:80"]), {"networks": []}, {})


@pytest.mark.parametrize("own", [{"volumes": ["data"]}, {"networks": ["default:10.0.7.7"]}])
def test_a_vm_that_no_other_can_run_beside_is_refused_a_strategy_that_needs_both(own: dict[str, Any]) -> None:
    for strategy in ({"type": "canary"}, {"type": "blue-green"}):
        with pytest.raises(IllegalTransition) as problem:
            check_replacement(vm(**own), {"networks": ["default"]}, strategy)
        assert "--strategy rolling stops it before" in (problem.value.hint or "")
    with pytest.raises(IllegalTransition, match="has to stop before another version starts"):
        check_replacement(vm(**own), {"networks": ["default"]}, {"max_unavailable": 0})
    check_replacement(vm(**own), {"networks": ["default"]}, {"type": "rolling"})


def test_what_goes_along_and_what_stays_is_named() -> None:
    pet = vm(**PET, snapshots=SnapshotSchedule(every=3600.0))
    said = "\n".join(describe_replacement(pet, "pet-2-0", "newer", "pet", beside=False))
    assert "port 8091:80, volume data, address 10.0.7.7, schedule of snapshots, the name pet in its networks" in said
    assert "stays with vm/pet: its root disk; vm/pet-2-0 starts from image newer" in said
    back = "\n".join(describe_replacement(pet, "old", "tiny", "old", beside=False, is_kept=True))
    assert "the name old in its networks\n" in back
    assert "its root disk; vm/old starts again with its own" in back
    assert "vm/pet stops before vm/pet-2-0 starts" in said


def deployment(**fields: Any) -> dict[str, Any]:
    spec = {"workload": "vm", "adopt": "pet", "template": msgspec.to_builtins(VmSpec(image="tiny")), **fields}
    return {"kind": "deployment", "name": "pet", "spec": spec, "status": {}}


@pytest.mark.parametrize("change", [{"image": "newer"}, {"user_data": "#!/bin/sh\ntrue"}])
def test_another_image_or_user_data_replaces_the_vm(change: dict[str, Any]) -> None:
    (row,) = foresee(deployment(), [vm()], make_template({"image": "tiny", **change}, vm()))
    assert (row["what"], row["new"]) == ("is replaced by pet-2-0", "pet-2-0")


def test_a_size_of_the_command_line_is_previewed_as_text() -> None:
    template = {**make_template({"image": "tiny"}, vm()), "memory": "192M", "cpu": "2"}
    (row,) = foresee(deployment(), [vm()], template)
    assert "memory" in row["why"] and "cpu" in row["why"]


@pytest.mark.parametrize("own", [PET, {"boot": "cold"}, {"snapshots": SnapshotSchedule(every=3600.0)}, {"disk": 2**31}])
def test_what_is_the_vms_own_replaces_nothing(own: dict[str, Any]) -> None:
    (row,) = foresee(deployment(), [vm(**own)], make_template({"image": "tiny"}, vm(**own)))
    assert row["new"] == ""


def test_a_version_that_runs_beside_the_old_one_is_another_vm_whatever_changes() -> None:
    template = make_template({"image": "tiny", "grace": 5.0}, vm())
    (row,) = foresee(deployment(), [vm()], template, "canary")
    assert row["new"] == "pet-2-0"
    (row,) = foresee(deployment(), [vm()], template, "blue-green", "green")
    assert row["new"] == "green"


def test_going_back_to_an_earlier_version_starts_the_vm_that_was_kept() -> None:
    old, new = (make_template({"image": image}, vm()) for image in ("tiny", "newer"))
    full = [msgspec.to_builtins(msgspec.convert(one, VmSpec)) for one in (old, new)]
    status = {
        "revisions": [
            {"number": 1, "template": full[0], "instance": "pet"},
            {"number": 2, "template": full[1], "instance": "pet-2-0"},
        ]
    }
    second = {**vm(image="newer"), "name": "pet-2-0"}
    (row,) = foresee({**deployment(), "status": status}, [second], full[0])
    assert row["new"] == "pet"
