"""``near: device/NAME``: the node of the device's gateway, what is said of it, and what can't be written."""

from __future__ import annotations

import msgspec
import pytest
from tests.unit.scheduler.policies.test_policies import ask, choice, make, node, put

from weft.contracts.function_placement import PlacementQuery
from weft.contracts.policy import SoftTerm
from weft.controllers.device.controller import Devices
from weft.informer.view import Changed, View, make_view
from weft.kinds.fields.affinity import check_near
from weft.kinds.parts.function_code import FunctionCode
from weft.objects.envelope import Envelope, encode_envelope
from weft.objects.errors import InvalidInput
from weft.objects.identity import object_key
from weft.scheduler.constraint.near_device import describe_device, read_near_device
from weft.scheduler.function.placing import FunctionPlacing
from weft.scheduler.table.snapshot import Snapshot

NEAR = SoftTerm("device", "uid-n3", "fridge")


def fabric() -> Snapshot:
    """n1 and n2 are near each other, n3 is far."""
    return make(
        node("n1", round_trips={"uid-n2": 0.2, "uid-n3": 9.0}), node("n2", round_trips={"uid-n3": 8.0}), node("n3")
    )


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def put_object(
    view: View, kind: str, name: str, spec: object, status: object = None, project: str | None = "shop"
) -> Changed:
    made = Envelope(kind=kind, project=project, name=name, uid=f"uid-{name}")
    made.spec, made.status = raw(spec), raw(status or {})
    change = view.put(made.key, encode_envelope(made), 1)
    assert change is not None
    return change


def test_the_node_of_the_device_is_preferred_and_then_the_nearest_to_it() -> None:
    snapshot = fabric()
    assert choice(snapshot, ask("least_loaded", leans=(NEAR,))) == "n3"
    assert choice(snapshot, ask("network_proximity", leans=(NEAR,))) == "n3"
    put(snapshot, "n3", cpu=8)
    assert choice(snapshot, ask("network_proximity", leans=(NEAR,))) == "n2"
    assert describe_device(snapshot, ask("least_loaded", leans=(NEAR,)), 1) == [
        "near device/fridge: it is behind the gateway of n3, 8 ms away"
    ]


def test_without_round_trips_it_is_the_device_s_node_all_the_same() -> None:
    snapshot = make(node("n1"), node("n2"), node("n3"))
    put(snapshot, "n3", cpu=1)
    assert choice(snapshot, ask("least_loaded", leans=(NEAR,))) == "n3"


def test_a_device_that_is_gone_decides_nothing_and_says_so() -> None:
    snapshot = fabric()
    put(snapshot, "n1", cpu=1)
    gone = SoftTerm("device", "", "fridge")
    assert choice(snapshot, ask("least_loaded", leans=(gone,))) == choice(snapshot, ask("least_loaded"))
    assert choice(snapshot, ask("network_proximity", leans=(gone,))) == choice(snapshot, ask("network_proximity"))
    assert "decides nothing" in describe_device(snapshot, ask("least_loaded", leans=(gone,)), 0)[0]


def test_a_preference_is_read_of_a_device_of_the_own_project_only() -> None:
    view = make_view()
    put_object(view, "node", "n3", {}, project=None)
    put_object(view, "device", "fridge", {"node": "n3"})
    assert read_near_device(view, "shop", "device/fridge") == (NEAR,)
    assert read_near_device(view, "plant", "device/fridge") == (SoftTerm("device", "", "fridge"),)
    assert read_near_device(view, "shop", "talkers") == read_near_device(view, "shop", None) == ()


@pytest.mark.parametrize(
    "near", ["fridge", "device/", "device/shop/fridge", "vm/web", "device/Fridge", "device/" + "x" * 70]
)
def test_what_is_no_device_of_the_project_is_refused_with_the_remedy(near: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_near(near)
    assert refused.value.field == "spec.near" and "device/" in refused.value.hint


def test_a_function_is_near_a_device_but_has_no_talkers() -> None:
    check_near("talkers")
    with pytest.raises(InvalidInput, match="talks to nobody"):
        check_near("talkers", talkers=False)
    check_near("device/fridge", talkers=False)


def test_an_invocation_goes_to_the_device_s_node_and_follows_the_device() -> None:
    view, ready = make_view(), {"phase": "Ready"}
    placing = FunctionPlacing(view)
    for name in ("n1", "n2", "n3"):
        made = Envelope(kind="node", name=name, uid=f"uid-{name}", status=raw(ready))
        made.report = raw({"cpu": 8.0, "memory": 2**34, "disk": 2**40, "runtimes": []})
        change = view.put(made.key, encode_envelope(made), 1)
        assert change is not None
        placing.notice([change])
    wanted = PlacementQuery("shop", FunctionCode(near="device/fridge"))
    for node_name in ("n3", "n2"):
        before = placing.epoch
        placing.notice([put_object(view, "device", "fridge", {"node": node_name})])
        assert placing.epoch > before
        assert placing.rank(wanted).nodes[0] == f"uid-{node_name}"
    before = placing.epoch
    placing.notice([put_object(view, "device", "fridge", {"node": "n2"}, {"phase": "Online"})])
    assert placing.epoch == before, "what a device reports orders no nodes again"


def test_when_the_device_changes_its_node_those_near_it_are_told_and_stay() -> None:
    view = make_view()
    put_object(view, "vm", "web", {"image": "tiny", "near": "device/fridge"})
    put_object(view, "vm", "other", {"image": "tiny"})
    put_object(view, "device", "fridge", {"node": "n2"}, {"gateway": "n1"})
    key = object_key("device", "shop", "fridge")
    events = [event for commit in Devices().plan(view, [key], 0.0).commits for event in commit.events]
    assert [(event.object.name, event.reason) for event in events] == [("web", "DeviceElsewhere")]
    put_object(view, "device", "fridge", {"node": "n2"}, {"gateway": "n2"})
    assert not [event for commit in Devices().plan(view, [key], 0.0).commits for event in commit.events]
