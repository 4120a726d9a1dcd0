"""What becomes of a device: its status, values whose time is over, and what a model accepts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.controllers.device.controller import Devices
from weft.controllers.device.plan import SILENCE_SECONDS, DeviceOutcome, plan_device, plan_rule
from weft.informer.view import Item, make_view
from weft.kinds.device import DEVICE, DeviceActions, DeviceReport, DeviceSpec
from weft.kinds.device_model import DeviceModelSpec
from weft.kinds.fields.device.affordance import Property
from weft.kinds.rule import RULE, Act, NodeCount, RuleReport, RuleSpec, RuleStatus

FRIDGE = DeviceModelSpec(properties={"setpoint": Property(type="number", deadband=0.5)})
ACME = DeviceModelSpec(accept="protocol=mqtt,manufacturer=Acme")


def plan(
    spec: DeviceSpec, report: DeviceReport | None = None, asked: DeviceActions | None = None, **told: Any
) -> DeviceOutcome:
    facts = {"node": "Ready", "model": FRIDGE, "accepting": [], "now": 100.0, **told}
    return plan_device(
        spec, asked or DeviceActions(), report or DeviceReport(phase="Online", reported={"setpoint": 4.0}), **facts
    )


def device(**fields: Any) -> DeviceSpec:
    return DeviceSpec(node="n1", **{"model": "fridge", **fields})


def test_the_status_is_what_the_gateway_reported() -> None:
    status = plan(device(), DeviceReport(phase="Stale", seen_at=60.0, reported={"setpoint": 4.0})).status
    assert (status.phase, status.last_seen, status.reported, status.gateway) == ("Stale", 60.0, {"setpoint": 4.0}, "n1")


@pytest.mark.parametrize(("desired", "drift"), [(4.5, []), (4.6, ["setpoint"]), (True, ["setpoint"])])
def test_it_drifts_while_a_desired_value_is_further_from_the_reported_one_than_the_deadband(
    desired: float, drift: list[str]
) -> None:
    assert plan(device(desired={"setpoint": desired})).status.drift == drift


def test_a_value_that_was_never_reported_is_drift() -> None:
    assert plan(device(desired={"setpoint": 4.0}), DeviceReport()).status.drift == ["setpoint"]


@pytest.mark.parametrize("phase", ["NotReady", "Autonomous"])
def test_a_device_is_unknown_while_its_node_is_silent_and_keeps_what_was_reported(phase: str) -> None:
    status = plan(device(), node=phase).status
    assert status.phase == "Unknown"
    assert phase in status.problem
    assert status.reported == {"setpoint": 4.0}


@pytest.mark.parametrize(("phase", "seconds"), [("Online", 60.0), ("Stale", 300.0)])
def test_a_device_is_unknown_once_a_gateway_that_runs_would_have_said_another_thing(phase: str, seconds: float) -> None:
    report = DeviceReport(phase=phase, seen_at=1000.0)
    at = 1000.0 + seconds + SILENCE_SECONDS
    before = plan(device(), report, now=at - 5)
    assert (before.status.phase, before.later) == (phase, 5.0)
    after = plan(device(), report, now=at)
    assert (after.status.phase, after.later) == ("Unknown", None)
    assert "gateway of node n1 is silent" in after.status.problem
    assert plan(device(), DeviceReport(phase="Offline", seen_at=1000.0), now=at + 1e6).status.phase == "Offline"


def test_a_device_whose_node_or_model_is_gone_says_so() -> None:
    assert "node n1 isn't in the fabric" in plan(device(), node=None).status.problem
    assert "device model fridge isn't there" in plan(device(), model=None).status.problem


def test_a_desired_value_goes_when_its_time_is_over_and_the_others_stay() -> None:
    asked = DeviceActions(desired_until={"setpoint": 100.0, "mode": 130.0})
    outcome = plan(device(desired={"setpoint": 4.0, "mode": "on"}), DeviceReport(reported={"setpoint": 4.0}), asked)
    assert (outcome.spec.desired, outcome.actions.desired_until) == ({"mode": "on"}, {"mode": 130.0})
    says = "its time is over, and the device keeps the value that it has: setpoint (4.0 now)"
    assert outcome.events == [("DesiredExpired", says)]
    assert outcome.later == 30.0


def test_a_model_accepts_a_found_device_and_nothing_else() -> None:
    spec = device(approved=False, model="", address="a/b")
    taken = plan(spec, DeviceReport(found={"manufacturer": "Acme"}), accepting=[("acme", ACME)])
    assert (taken.spec.approved, taken.spec.model, taken.events[0][0]) == (True, "acme", "Approved")
    left = plan(spec, DeviceReport(found={"manufacturer": "Other"}), accepting=[("acme", ACME)])
    assert (left.spec, left.status.phase) == (spec, "Found")


def test_a_found_device_cannot_pretend_another_protocol_by_its_facts() -> None:
    spec = device(approved=False, model="", protocol="modbus")
    facts = {"manufacturer": "Acme", "protocol": "mqtt"}
    assert not plan(spec, DeviceReport(found=facts), accepting=[("acme", ACME)]).spec.approved


def test_a_plan_of_its_own_result_changes_nothing() -> None:
    first = plan(device(desired={"setpoint": 4.0}), asked=DeviceActions(desired_until={"setpoint": 1.0}))
    again = plan(first.spec, asked=first.actions)
    assert again.spec is first.spec
    assert again.status == first.status
    assert not again.events


def test_a_rule_counts_for_all_gateways_together() -> None:
    nodes = {
        "n1": NodeCount(fired=2, last_fired=5.0),
        "n2": NodeCount(fired=1, last_fired=9.0, problem="no such value"),
    }
    status = plan_rule(RuleReport(nodes=nodes))
    assert (status.fired, status.last_fired, status.problem) == (3, 9.0, "n2: no such value")


def test_a_rule_that_fired_says_so_on_itself_and_on_the_device_that_it_set() -> None:
    view = make_view()
    spec = RuleSpec(when="temperature>8", then=[Act(device="fan-1", set={"on": True}), Act(event="it is warm")])
    rule = RULE.make("warm", spec, 1.0, project="default", status=RuleStatus(fired=2))
    rule.report = msgspec.Raw(msgspec.json.encode(RuleReport(nodes={"n1": NodeCount(fired=3, last_fired=90.0)})))
    for made in (rule, DEVICE.make("fan-1", device(), 1.0, project="default")):
        view.put_item(made.key, Item(made))
    commit = next(iter(Devices().plan(view, [rule.key], 100.0).commits))
    assert [(event.reason, event.object.name, event.message) for event in commit.events] == [
        ("Fired", "warm", "sets on=true of device/fan-1; says: it is warm"),
        ("SetByRule", "fan-1", "rule/warm: sets on=true of device/fan-1"),
    ]
