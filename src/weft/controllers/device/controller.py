"""Makes the status of devices, rules and models of what gateways report, takes away desired values whose time is over,
approves found devices that a model accepts, and says of functions whether a device can invoke them by their topics.

Reads devices, their device models and nodes, rules, models and functions; writes device.status, rule.status, model.status, of a
device's spec what is said above, and the functions' condition TopicsFit. Woken by any of those, and when a desired value's time
is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.contracts.journal import Event
from weft.controllers.device.plan import plan_device, plan_model, plan_rule
from weft.controllers.device.topics import list_named, plan_topics
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, Draft, edit, put, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.device import (
    DEVICE,
    DEVICES_BY_MODEL,
    DEVICES_BY_NODE,
    DEVICES_FOUND,
    DeviceReport,
    DeviceSpec,
    DeviceStatus,
)
from weft.kinds.device_model import DEVICE_MODEL, MODELS_ACCEPTING, DeviceModelSpec
from weft.kinds.function import FUNCTION, FUNCTIONS_OF_DEVICES, TOPICS_FIT, FunctionSpec
from weft.kinds.model import MODEL, MODELS_BY_PROJECT, ModelReport, ModelSpec, ModelStatus
from weft.kinds.node import NODE, NodeSpec, NodeStatus, find_devices_project
from weft.kinds.parts.workload import WORKLOADS_BY_NEAR
from weft.kinds.rule import RULE, RuleReport, RuleStatus
from weft.objects.envelope import Condition, set_condition
from weft.objects.identity import object_key
from weft.protocol.devices import MOST_TRIGGERED

SOURCE = "devices"
MOST_NEAR = 50  # workloads near a device that changed its node
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.05, 3600.0  # the clock may be set meanwhile


class Devices:
    name = "devices"
    kinds = (DEVICE.name, DEVICE_MODEL.name, RULE.name, MODEL.name, NODE.name, FUNCTION.name)

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case DEVICE.name if has_changed(change, _show_place):
                project = change.item.envelope.project or ""
                models = [item for item in view.find(MODELS_BY_PROJECT, project) if item.report(ModelReport).nodes]
                return [change.key, *(item.key for item in (*models, *view.find(FUNCTIONS_OF_DEVICES, project)))]
            case DEVICE.name | RULE.name | MODEL.name:
                return (change.key,)
            case DEVICE_MODEL.name:
                project = change.item.envelope.project or ""
                more = (*view.find(DEVICES_FOUND, project), *view.find(FUNCTIONS_OF_DEVICES, project))
                return [item.key for item in (*view.find(DEVICES_BY_MODEL, change.key), *more)]
            case NODE.name if has_changed(change, _show_node):
                projects = {
                    find_devices_project(one.spec(NodeSpec)) for one in (change.old, change.new) if one is not None
                }
                functions = [one for project in projects for one in view.find(FUNCTIONS_OF_DEVICES, project)]
                return [item.key for item in (*view.find(DEVICES_BY_NODE, change.item.envelope.name), *functions)]
            case FUNCTION.name if has_changed(change, _show_topics):
                return [change.key, *(item.key for item in _list_last(view, change.item.envelope.project or ""))]
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            item = view.get(key)
            if item is None or item.deleting:
                continue
            match item.envelope.kind:
                case DEVICE.name:
                    commit = _plan_device(view, item, plan, now)
                case RULE.name:
                    commit = _plan_rule(item)
                case MODEL.name:
                    commit = _plan_model(view, item)
                case _:
                    commit = _plan_function(view, item, now)
            if commit is not None:
                plan.commits.append(commit)
        return plan


def _show_node(item: Item) -> tuple[str, str]:
    return item.status(NodeStatus).phase, find_devices_project(item.spec(NodeSpec))


def _show_place(item: Item) -> tuple[object, ...]:
    """What of a device decides which models are for it, and where."""
    spec = item.spec(DeviceSpec)
    return spec.node, spec.model, spec.approved, item.envelope.labels, item.deleting


def _show_topics(item: Item) -> list[str]:
    return item.spec(FunctionSpec).topics


def _plan_device(view: View, item: Item, plan: Plan, now: float) -> Commit | None:
    spec, project = item.spec(DeviceSpec), item.envelope.project
    node = view.get(object_key(NODE.name, None, spec.node))
    model = view.get(object_key(DEVICE_MODEL.name, project, spec.model)) if spec.model else None
    accepting = () if spec.approved else view.find(MODELS_ACCEPTING, project or "")
    outcome = plan_device(
        spec,
        item.report(DeviceReport),
        node.status(NodeStatus).phase if node is not None else None,
        model.spec(DeviceModelSpec) if model is not None else None,
        sorted(((one.envelope.name, one.spec(DeviceModelSpec)) for one in accepting), key=lambda one: one[0]),
        now,
        is_taken=node is None or find_devices_project(node.spec(NodeSpec)) == project,
    )
    if outcome.later is not None:
        plan.later[item.key] = min(max(outcome.later, _SHORTEST_SECONDS), _LONGEST_SECONDS)
    changes_spec = outcome.spec is not spec
    if not changes_spec and outcome.status == item.status(DeviceStatus):
        return None
    draft = Draft()
    draft.change(item, spec=outcome.spec if changes_spec else None, status=outcome.status)
    events = [Event("Normal", reason, words, item.envelope.ref, SOURCE) for reason, words in outcome.events]
    before = item.status(DeviceStatus).gateway  # of the status that was written last
    if before and before != spec.node:
        events += [_report_change(workload, item, spec.node) for workload in _list_near(view, item)]
    return draft.commit(item.key, events)


def _list_near(view: View, item: Item) -> Sequence[Item]:
    """The workloads that prefer to be near the device, MOST_NEAR at most."""
    return sorted(view.find(WORKLOADS_BY_NEAR, item.key), key=lambda one: one.key)[:MOST_NEAR]


def _report_change(workload: Item, device: Item, node: str) -> Event:
    of = workload.envelope
    words = (
        f"device/{device.envelope.name}, which it prefers to be near, is behind node {node} now; it stays where it is"
    )
    return Event("Normal", "DeviceElsewhere", f"{words}: weft {of.kind} migrate {of.name}", of.ref, SOURCE)


def _plan_rule(item: Item) -> Commit | None:
    status = plan_rule(item.report(RuleReport))
    if status == item.status(RuleStatus):
        return None
    draft = Draft()
    draft.change(item, status=status)
    return draft.commit(item.key)


def _plan_model(view: View, item: Item) -> Commit | None:
    spec, report = item.spec(ModelSpec), item.report(ModelReport)
    status = plan_model(report, {node for node in report.nodes if _is_used(view, item, spec, node)})
    if status == item.status(ModelStatus):
        return None
    draft = Draft()
    draft.change(item, status=status)
    return draft.commit(item.key)


def _is_used(view: View, model: Item, spec: ModelSpec, node: str) -> bool:
    """Whether a device behind the node's gateway is one of those that the model is for."""
    if spec.node not in ("", node):
        return False
    return any(
        one.envelope.project == model.envelope.project
        and not one.deleting
        and (device := one.spec(DeviceSpec)).approved
        and spec.devices.model in ("", device.model)
        and spec.devices.labels.items() <= one.envelope.labels.items()
        for one in view.find(DEVICES_BY_NODE, node)
    )


def _plan_function(view: View, item: Item, now: float) -> Commit | None:
    envelope, topics = edit(item), item.spec(FunctionSpec).topics
    if not topics:
        envelope.conditions = [one for one in envelope.conditions if one.type != TOPICS_FIT]
        is_changed = envelope.conditions != item.envelope.conditions
    else:
        is_changed = set_condition(envelope, _plan_condition(view, item, topics, now))
    return Commit(item.key, [put(envelope)], [unchanged(item)]) if is_changed else None


def _plan_condition(view: View, item: Item, topics: Sequence[str], now: float) -> Condition:
    project = item.envelope.project or ""
    named = {name: view.get(object_key(DEVICE.name, project, name)) for name in list_named(topics)}
    models = [one for one in view.of_kind(DEVICE_MODEL.name).values() if one.envelope.project == project]
    is_last = any(one.key == item.key for one in _list_last(view, project))
    return plan_topics(
        topics,
        project,
        {name: one.spec(DeviceSpec).model for name, one in named.items() if one is not None and not one.deleting},
        {one.envelope.name: one.spec(DeviceModelSpec) for one in models},
        is_taken=any(find_devices_project(one.spec(NodeSpec)) == project for one in view.of_kind(NODE.name).values()),
        too_many=f"devices invoke {MOST_TRIGGERED} functions of a project, the first by name: this is one more"
        if is_last
        else "",
        now=now,
    )


def _list_last(view: View, project: str) -> Sequence[Item]:
    """The functions with topics that gateways don't hear of, since there are too many."""
    return view.find(FUNCTIONS_OF_DEVICES, project)[MOST_TRIGGERED:]
