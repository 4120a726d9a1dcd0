"""The series of devices: whose they are, that they are bounded, and that nothing but a declared number becomes one."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from weft.controllers.metrics import properties
from weft.controllers.metrics.properties import FIRED, IS_ONLINE, LEFT_OUT, PROPERTY, list_properties
from weft.informer.view import View, make_view
from weft.objects.envelope import Envelope, encode_envelope
from weft.telemetry.metrics.sample import Sample

AT = 1_795_471_245_000


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def put(view: View, kind: str, project: str, name: str, spec: Any, status: Any = None) -> None:
    made = Envelope(kind=kind, project=project, name=name, uid=f"{kind}-{project}-{name}")
    made.spec, made.status = raw(spec), raw(status or {})
    assert view.put(made.key, encode_envelope(made), 1) is not None


def make_fabric() -> View:
    view = make_view()
    model = {
        "properties": {"temperature": {"type": "number"}, "opened": {"type": "integer"}, "door": {"type": "boolean"}}
    }
    for project in ("shop", "plant"):
        put(view, "devicemodel", project, "cold", model)
    return view


def put_device(
    view: View, project: str, name: str, reported: Any, *, phase: str = "Online", node: str = "n1", **more: Any
) -> None:
    put(view, "device", project, name, {"node": node, "model": "cold", **more}, {"phase": phase, "reported": reported})


def take(view: View, name: str = PROPERTY) -> list[Sample]:
    return [one for one in list_properties(view, AT) if one.name == name]


def test_a_number_of_a_device_is_a_series_of_its_own_project() -> None:
    view = make_fabric()
    put_device(view, "shop", "fridge", {"temperature": 4.5, "opened": 3})
    put_device(view, "plant", "fridge", {"temperature": 80.0})
    found = {dict(one.labels)["project"] + "/" + dict(one.labels)["property"]: one.value for one in take(view)}
    assert found == {"shop/temperature": 4.5, "shop/opened": 3.0, "plant/temperature": 80.0}
    assert all(one.at == AT and set(dict(one.labels)) == {"project", "device", "property"} for one in take(view))


@pytest.mark.parametrize(
    "reported",
    [{"strange": 1.0}, {"door": True}, {"temperature": "hot"}, {"temperature": True}, {"x" * 63: 1}],
    ids=["not declared", "no number by its model", "a text", "a boolean", "a name of its own"],
)
def test_what_the_model_declares_as_no_number_is_no_series(reported: Any) -> None:
    view = make_fabric()
    put_device(view, "shop", "fridge", reported)
    assert take(view) == []


def test_no_value_that_is_not_finite_is_kept() -> None:
    assert not properties._is_number(properties.Property(type="number"), math.nan)
    assert not properties._is_number(properties.Property(type="number"), math.inf)


@pytest.mark.parametrize("phase", ["Stale", "Offline", "Unknown", "Found"])
def test_a_device_that_is_silent_has_no_value_of_now(phase: str) -> None:
    view = make_fabric()
    put_device(view, "shop", "fridge", {"temperature": 4.5}, phase=phase)
    assert take(view) == []
    assert [one.value for one in take(view, IS_ONLINE)] == ([] if phase in ("Unknown", "Found") else [0.0])


def test_a_device_that_nobody_approved_has_no_series() -> None:
    view = make_fabric()
    put_device(view, "shop", "fridge", {"temperature": 4.5}, approved=False)
    assert list(list_properties(view, AT)) == []


def test_the_series_of_a_node_and_of_a_project_are_bounded_and_what_is_left_out_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(properties, "MOST_OF_NODE", 4)
    view = make_fabric()
    for n in range(5):
        put_device(view, "shop", f"fridge-{n}", {"temperature": float(n)})
    put_device(view, "plant", "press", {"temperature": 7.0}, node="n2")
    found = list(list_properties(view, AT))
    assert [dict(one.labels)["device"] for one in found if one.name == PROPERTY] == ["press", "fridge-0", "fridge-1"]
    assert [(one.labels, one.value) for one in found if one.name == LEFT_OUT] == [((("project", "shop"),), 6.0)]
    assert found == list(list_properties(view, AT))  # the same ones at the next moment
    monkeypatch.setattr(properties, "MOST_OF_NODE", 100)
    monkeypatch.setattr(properties, "MOST_OF_PROJECT", 2)
    assert [dict(one.labels)["device"] for one in take(view)] == ["press", "fridge-0"]


def test_how_often_a_rule_fired_is_a_counter() -> None:
    view = make_fabric()
    put(view, "rule", "shop", "too-warm", {"when": "temperature > 8"}, {"fired": 3})
    assert [(one.labels, one.value) for one in take(view, FIRED)] == [
        ((("project", "shop"), ("rule", "too-warm")), 3.0)
    ]
