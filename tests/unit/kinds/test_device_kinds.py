"""Device models, devices and rules: what is refused, and that the error names the field and the remedy."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.kinds.device import DEVICE, ApproveInput, DeviceSpec, SetInput, check_device
from weft.kinds.device_model import DeviceModelSpec, check_device_model
from weft.kinds.fields.device.affordance import Property, Window, are_equal, check_desired
from weft.kinds.model import MODEL, Fallback, ModelSpec, Result, check_model
from weft.kinds.record import Kind
from weft.kinds.rule import RULE, Act, RuleSpec, Selector, check_rule
from weft.language.holds import Fact, holds
from weft.language.parse import read_expression
from weft.objects.errors import IllegalTransition, InvalidInput

FRIDGE = {
    "setpoint": Property(type="number", minimum=-30, maximum=10),
    "mode": Property(type="string", enum=["cool", "defrost"]),
    "label": Property(type="string", max_length=4),
    "fans": Property(type="integer"),
    "alarm": Property(type="boolean"),
    "temperature": Property(type="number", read_only=True),
}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("setpoint", 11, "more than 10"),
        ("setpoint", float("nan"), "type number"),
        ("setpoint", True, "type number"),
        ("mode", "melt", "none of its values"),
        ("label", "fives", "too long"),
        ("fans", 1.5, "type integer"),
        ("fans", 10**30, "type integer"),
        pytest.param("setpoint", 10**400, "type number", id="400 digits"),
        ("alarm", 1, "type boolean"),
        ("temperature", 1, "only the device sets it"),
        ("setpiont", 1, "no such property"),
    ],
)
def test_a_value_that_the_model_does_not_allow_is_refused_with_its_property(name: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        check_desired(FRIDGE, {name: value}, "spec.desired")
    assert caught.value.field == f"spec.desired.{name}"
    assert caught.value.hint


def test_the_remedy_for_a_boolean_is_its_two_values() -> None:
    with pytest.raises(InvalidInput) as caught:
        check_desired(FRIDGE, {"alarm": "True"}, "spec.desired")
    assert caught.value.hint == "give true or false"


def test_values_within_the_bounds_are_taken() -> None:
    check_desired(
        FRIDGE, {"setpoint": -30, "mode": "cool", "label": "four", "fans": 2.0, "alarm": False}, "spec.desired"
    )


@pytest.mark.parametrize(
    "reported", [10**30, 10**400, -(10**400)], ids=["31 digits", "401 digits", "401 negative digits"]
)
def test_a_number_larger_than_any_float_is_no_desired_one_and_meets_no_condition(reported: int) -> None:
    assert not are_equal(FRIDGE["setpoint"], 1.5, reported)
    assert are_equal(None, reported, reported)
    assert not holds(read_expression("temperature>8"), {"temperature": reported})


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (DeviceModelSpec(properties={f"p{n}": Property(type="number") for n in range(101)}), "spec.properties"),
        (DeviceModelSpec(properties={"a b": Property(type="number")}), "spec.properties"),
        (DeviceModelSpec(properties={"a": Property(type="string", minimum=1)}), "spec.properties.a.minimum"),
        (DeviceModelSpec(properties={"a": Property(type="number", minimum=2, maximum=1)}), "spec.properties.a.minimum"),
        (DeviceModelSpec(properties={"a": Property(type="boolean", deadband=1)}), "spec.properties.a.deadband"),
        (DeviceModelSpec(properties={"a": Property(type="number", enum=["x"])}), "spec.properties.a.enum[0]"),
        (DeviceModelSpec(accept="colour=red"), "spec.accept"),
        (DeviceModelSpec(stale_seconds=60, offline_seconds=30), "spec.offline_seconds"),
    ],
)
def test_a_model_that_contradicts_itself_is_refused(spec: DeviceModelSpec, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_device_model(spec)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (DeviceSpec(node="n1", protocol="mq tt"), "spec.protocol"),
        (DeviceSpec(node="n1", address="a\nb"), "spec.address"),
        (DeviceSpec(node="n1", desired={"a": 1}), "spec.desired"),
        (DeviceSpec(node="n1", model="m", desired={"a": "x" * (17 << 10)}), "spec.desired.a"),
        (DeviceSpec(node="n1", model="m", desired={f"a{n}": "x" * 1000 for n in range(20)}), "spec.desired"),
    ],
)
def test_a_device_that_can_not_be_is_refused(spec: DeviceSpec, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_device(spec)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (RuleSpec(when="temperature>", then=[Act(event="x")]), "spec.when"),
        (RuleSpec(when="temperature>8", then=[]), "spec.then"),
        (RuleSpec(when="temperature>8", then=[Act()]), "spec.then[0]"),
        (RuleSpec(when="temperature>8", then=[Act(set={"a": 1}, event="x")]), "spec.then[0]"),
        (RuleSpec(when="temperature>8", then=[Act(event="x", device="d")]), "spec.then[0].event"),
        (RuleSpec(when="temperature>8", then=[Act(set={"a b": 1})]), "spec.then[0].set"),
    ],
)
def test_a_rule_that_can_not_be_is_refused(spec: RuleSpec, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_rule(spec)
    assert (caught.value.field or "").startswith(field)


def set_values(spec: dict[str, Any], until: dict[str, float], **given: Any) -> tuple[Any, Any]:
    verb = DEVICE.verb("set")
    assert verb is not None and verb.change is not None and verb.act is not None
    whole = {"node": "n1", "model": "m", **spec}
    obj = {"name": "fridge", "now": 1000.0, "spec": whole, "actions": {"desired_until": until}}
    said = msgspec.convert(given, SetInput)
    return verb.change(obj, said)["desired"], verb.act(obj, said)["desired_until"]


def test_set_keeps_other_values_and_stamps_the_end_by_the_servers_clock() -> None:
    both = set_values({"desired": {"mode": "cool"}}, {}, desired={"setpoint": 4}, expires_seconds=30.0)
    assert both == ({"mode": "cool", "setpoint": 4}, {"setpoint": 1030.0})
    spec, until = {"desired": both[0]}, both[1]
    assert set_values(spec, until, desired={"setpoint": 5}) == ({"mode": "cool", "setpoint": 5}, {})
    assert set_values(spec, until, desired={"setpoint": None}, expires_seconds=9.0) == ({"mode": "cool"}, {})


def test_an_approved_device_gets_another_model_only_by_set() -> None:
    approve = DEVICE.verb("approve")
    assert approve is not None and approve.change is not None
    for spec, given in (({"approved": False}, "probe"), ({"approved": True, "model": "probe"}, "probe")):
        made = approve.change({"kind": "device", "name": "shelf-1", "spec": spec}, ApproveInput(model=given))
        assert (made["approved"], made["model"]) == (True, "probe")
    spec = {"approved": True, "model": "shelf"}
    with pytest.raises(IllegalTransition, match="is approved already, as shelf") as refused:
        approve.change({"kind": "device", "name": "shelf-1", "spec": spec}, ApproveInput(model="probe"))
    assert refused.value.hint == "to give it another model: weft device set shelf-1 --model probe"


def test_nothing_is_set_on_a_device_that_is_not_approved() -> None:
    with pytest.raises(IllegalTransition) as caught:
        set_values({"approved": False}, {}, desired={"setpoint": 4})
    assert caught.value.token == "notApproved"


@pytest.mark.parametrize(
    ("written", "facts", "expected"),
    [
        ("temperature > 8 and power == on", {"temperature": 8.5, "power": "on"}, True),
        ("temperature > 8 and power == on", {"temperature": 8, "power": "on"}, False),
        ("temperature.mean60 > 7", {"temperature.mean60": 7.1}, True),
        ("alarm = true", {"alarm": True}, True),
        ("alarm = 1", {"alarm": True}, False),
        ("alarm >= 1", {"alarm": True}, False),
        ("a != 1", {}, True),
        ("a < 1", {}, False),
        ("NOT exists(a) or a in (1, 2)", {"a": 2}, True),
        ("a not_in (1, 2)", {"a": 2.0}, False),
    ],
)
def test_an_expression_holds_for_a_things_values(written: str, facts: dict[str, Fact], expected: bool) -> None:
    assert holds(read_expression(written), facts) is expected


def test_a_list_shows_values_as_people_set_them() -> None:
    (column,) = (column for column in DEVICE.display.columns if column.title == "REPORTED")
    shown = column.value({"status": {"reported": {"on": True, "mode": "cool", "setpoint": 4.5}}})
    assert shown == "mode=cool, on=true, setpoint=4.5"


DECISION = Result(set="alarm", threshold=0.5)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"file": "model.onnx"}, "spec.file"),
        ({"inputs": []}, "spec.inputs"),
        ({"inputs": ["t"] * 65}, "spec.inputs"),
        ({"inputs": ["t", "t.median60"]}, "spec.inputs[1]"),
        ({"inputs": ["t.mean0"]}, "spec.inputs[0]"),
        ({"result": Result()}, "spec.result"),
        ({"result": Result(set="alarm", event="warm", threshold=0.5)}, "spec.result"),
        ({"result": Result(set="a b")}, "spec.result.set"),
        ({"result": Result(set="level", scale=float("inf"))}, "spec.result.scale"),
        ({"result": Result(event="warm")}, "spec.result.threshold"),
        ({"result": Result(event="warm", threshold=0.5, device="fan")}, "spec.result.event"),
        ({"result": Result(event="two\nlines", threshold=0.5)}, "spec.result.event"),
        ({"fallback": Fallback(when="t>8", value=True)}, "spec.fallback"),
        ({"fallback": Fallback(when="@warm")}, "spec.fallback.when"),
        ({"fallback": Fallback(value=1.5)}, "spec.fallback.value"),
        ({"fallback": Fallback(value="warm")}, "spec.fallback.value"),
        ({"result": Result(set="level"), "fallback": Fallback(when="t>8")}, "spec.fallback.when"),
        ({"result": Result(set="level"), "fallback": Fallback(value=True)}, "spec.fallback.value"),
        ({"devices": Selector(labels={f"l{n}": "x" for n in range(9)})}, "spec.devices.labels"),
    ],
)
def test_a_model_that_cannot_decide_names_the_field_and_the_remedy(given: dict[str, Any], field: str) -> None:
    spec = ModelSpec(**{"file": "a" * 64, "inputs": ["t", "t.mean60"], "result": DECISION, **given})
    with pytest.raises(InvalidInput) as caught:
        check_model(spec)
    assert caught.value.field == field
    assert caught.value.hint


def test_models_that_decide_are_taken() -> None:
    check_model(ModelSpec(file="a" * 64, inputs=["t"], result=DECISION, fallback=Fallback(when="t>8")))
    check_model(ModelSpec(file="a" * 64, inputs=["t"], result=DECISION, fallback=Fallback(value=False)))
    check_model(ModelSpec(file="a" * 64, inputs=["t"], result=Result(set="level"), fallback=Fallback(value=2)))


WINDOWED = DeviceModelSpec(
    properties={
        "t": Property(type="number", windows=[Window(seconds=60, of=["mean"])]),
        "fan": Property(type="boolean"),
    }
)


@pytest.mark.parametrize("when", ["t>8", "t.mean60>7,fan=true", "phase=Offline OR fan!=true"])
def test_a_condition_that_its_device_model_knows_is_taken(when: str) -> None:
    model = ModelSpec(
        file="a" * 64,
        inputs=["t"],
        devices=Selector(model="cold"),
        result=Result(set="fan", threshold=0.5),
        fallback=Fallback(when=when),
    )
    rule = RuleSpec(when=when, devices=Selector(model="cold"), then=[Act(event="warm")])
    for kind, spec in ((MODEL, model), (RULE, rule)):
        _agree_with(kind, spec)


@pytest.mark.parametrize(("when", "hint"), [("temp>8", "it has: phase"), ("t>8,fam=true", "did you mean fan")])
@pytest.mark.parametrize("missing", ["", "t.mean30>7", "t.max60>7"])
def test_a_condition_that_reads_what_its_device_model_has_not_names_the_field(
    when: str, hint: str, missing: str
) -> None:
    when = missing or when
    model = ModelSpec(
        file="a" * 64,
        inputs=["t"],
        devices=Selector(model="cold"),
        result=Result(set="fan", threshold=0.5),
        fallback=Fallback(when=when),
    )
    rule = RuleSpec(when=when, devices=Selector(model="cold"), then=[Act(event="warm")])
    for kind, spec, field in ((MODEL, model, "spec.fallback.when"), (RULE, rule, "spec.when")):
        with pytest.raises(InvalidInput, match="device model has no") as refused:
            _agree_with(kind, spec)
        assert refused.value.field == field
        assert missing or hint in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"fann": True}, "spec.then[1].set", "no such property"),
        ({"fan": 1}, "spec.then[1].set.fan", "not a value of type boolean"),
        ({"top": 11}, "spec.then[1].set.top", "11 is more than 10"),
        ({"seen": 4.0}, "spec.then[1].set.seen", "only the device sets it"),
    ],
)
def test_a_rule_that_sets_what_its_devices_can_t_have_names_the_field(
    given: dict[str, Any], field: str, words: str
) -> None:
    model = DeviceModelSpec(
        properties={
            "fan": Property(type="boolean"),
            "top": Property(type="number", maximum=10),
            "seen": Property(type="number", read_only=True),
        }
    )
    [agree] = [one.agree for one in RULE.references if one.agree is not None]
    for act in (Act(set={"fan": True}), Act(device="other", set=given)):  # another device may be of another model
        agree(RuleSpec(when="fan=true", devices=Selector(model="cold"), then=[act]), {"cold": model})
    with pytest.raises(InvalidInput, match=words) as refused:
        spec = RuleSpec(when="fan=true", devices=Selector(model="cold"), then=[Act(event="warm"), Act(set=given)])
        agree(spec, {"cold": model})
    assert str(refused.value.field).startswith(field)


def _agree_with(kind: Kind, spec: Any) -> None:
    for reference in kind.references:
        if reference.kind == "devicemodel" and reference.agree is not None:
            reference.agree(spec, {"cold": WINDOWED})
