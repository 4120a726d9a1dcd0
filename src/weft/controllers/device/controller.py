"""Makes the status of devices, rules and models of what gateways report, takes away desired values whose time is over,
approves found devices that a model accepts, and says of functions whether a device can invoke them by their topics.

Reads devices, their device models and nodes, rules, models and functions; writes device.status, rule.status, model.status, of a
device's spec what is said above, and the functions' condition TopicsFit. Woken by any of those, and when a desired value's time
is over. A project's key stands for which of its functions are beyond MOST_TRIGGERED: that is looked at once for a batch of changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import msgspec

from weft.contracts.journal import Event
from weft.controllers.device.plan import plan_device, plan_model, plan_rule
from weft.controllers.device.topics import TOO_MANY, list_named, plan_topics
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, Draft, edit, put, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.device import (
    DEVICE,
    DEVICES_BY_MODEL,
    DEVICES_BY_NODE,
    DEVICES_FOUND,
    DeviceActions,
    DeviceReport,
    DeviceSpec,
    DeviceStatus,
)
from weft.kinds.device_model import DEVICE_MODEL, MODELS_ACCEPTING, DeviceModelSpec
from weft.kinds.function import FUNCTION, FUNCTIONS_OF_DEVICES, TOPICS_FIT, FunctionSpec
from weft.kinds.model import MODEL, MODELS_BY_PROJECT, ModelReport, ModelSpec, ModelStatus
from weft.kinds.node import NODE, NodeSpec, NodeStatus, find_devices_project
from weft.kinds.parts.workload import WORKLOADS_BY_NEAR
from weft.kinds.project import PROJECT
from weft.kinds.rule import RULE, RuleReport, RuleSpec, RuleStatus, describe_act
from weft.objects.envelope import Condition, set_condition
from weft.objects.identity import object_key
from weft.protocol.devices import MOST_TRIGGERED

SOURCE = "devices"
MOST_NEAR = 50  # workloads near a device that changed its node
_PROJECTS = object_key(PROJECT.name, None, "")
_MOST_CROSSING = 200  # functions whose condition a plan changes for a project
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.05, 3600.0  # the clock may be set meanwhile


class Devices:
    name = "devices"
    kinds = (DEVICE.name, DEVICE_MODEL.name, RULE.name, MODEL.name, NODE.name, FUNCTION.name)

    def route(self, view: View, change: Changed) -> Iterable[str]:
        match change.kind:
            case DEVICE.name if has_changed(change, _show_place):
                project = change.item.envelope.project or ""
                models = [item for item in view.find(MODELS_BY_PROJECT, project) if item.report(ModelReport).nodes]
                return [change.key, *(item.key for item in (*models, *_list_invoked(view, project)))]
            case DEVICE.name | RULE.name | MODEL.name:
                return (change.key,)
            case DEVICE_MODEL.name:
                project = change.item.envelope.project or ""
                more = (*view.find(DEVICES_FOUND, project), *_list_invoked(view, project))
                return [item.key for item in (*view.find(DEVICES_BY_MODEL, change.key), *more)]
            case NODE.name if has_changed(change, _show_node):
                projects = {
                    find_devices_project(one.spec(NodeSpec)) for one in (change.old, change.new) if one is not None
                }
                functions = [one for project in projects for one in _list_invoked(view, project)]
                return [item.key for item in (*view.find(DEVICES_BY_NODE, change.item.envelope.name), *functions)]
            case FUNCTION.name if has_changed(change, _show_topics):
                return (change.key, object_key(PROJECT.name, None, change.item.envelope.project or ""))
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan, projects = Plan(), dict[str, _Project]()
        for key in keys:
            if key.startswith(_PROJECTS):
                _plan_crossing(view, key, frozenset(keys), projects, plan, now)
                continue
            item = view.get(key)
            if item is None or item.deleting:
                continue
            match item.envelope.kind:
                case DEVICE.name:
                    commit = _plan_device(view, item, plan, now)
                case RULE.name:
                    commit = _plan_rule(view, item)
                case MODEL.name:
                    commit = _plan_model(view, item)
                case _:
                    commit = _plan_function(view, item, projects, now)
            if commit is not None:
                plan.commits.append(commit)
        return plan


def _show_node(item: Item) -> tuple[str, str]:
    return item.status(NodeStatus).phase, find_devices_project(item.spec(NodeSpec))


def _show_place(item: Item) -> tuple[object, ...]:
    """The part of a device that decides which models are for it, and where."""
    spec = item.spec(DeviceSpec)
    return spec.node, spec.model, spec.approved, item.envelope.labels, item.deleting


def _show_topics(item: Item) -> tuple[object, ...]:
    return item.spec(FunctionSpec).topics, item.deleting


def _plan_device(view: View, item: Item, plan: Plan, now: float) -> Commit | None:
    spec, project = item.spec(DeviceSpec), item.envelope.project
    node = view.get(object_key(NODE.name, None, spec.node))
    model = view.get(object_key(DEVICE_MODEL.name, project, spec.model)) if spec.model else None
    accepting = () if spec.approved else view.find(MODELS_ACCEPTING, project or "")
    outcome = plan_device(
        spec,
        item.actions(DeviceActions),
        item.report(DeviceReport),
        node.status(NodeStatus).phase if node is not None else None,
        model.spec(DeviceModelSpec) if model is not None else None,
        sorted(((one.envelope.name, one.spec(DeviceModelSpec)) for one in accepting), key=lambda one: one[0]),
        now,
        is_taken=node is None or find_devices_project(node.spec(NodeSpec)) == project,
    )
    if outcome.later is not None:
        plan.later[item.key] = min(max(outcome.later, _SHORTEST_SECONDS), _LONGEST_SECONDS)
    differs = outcome.spec is not spec
    if not differs and outcome.status == item.status(DeviceStatus):
        return None
    draft = Draft()
    draft.change(
        item,
        spec=outcome.spec if differs else None,
        actions=outcome.actions if differs else None,
        status=outcome.status,
    )
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


def _plan_rule(view: View, item: Item) -> Commit | None:
    former, status = item.status(RuleStatus), plan_rule(item.report(RuleReport))
    if status == former:
        return None
    draft = Draft()
    draft.change(item, status=status)
    return draft.commit(item.key, _announce_firing(view, item, status.fired - former.fired))


def _announce_firing(view: View, item: Item, times: int) -> list[Event]:
    """Write the events on the rule, and on each device that it names."""
    if times <= 0:
        return []
    often = "" if times == 1 else f", {times} times"
    acts = item.spec(RuleSpec).then
    events = [Event("Normal", "Fired", f"{'; '.join(map(describe_act, acts))}{often}", item.envelope.ref, SOURCE)]
    for act in acts:
        device = view.get(object_key(DEVICE.name, item.envelope.project, act.device)) if act.device else None
        if device is not None:
            text = f"rule/{item.envelope.name}: {describe_act(act)}{often}"
            events.append(Event("Normal", "SetByRule", text, device.envelope.ref, SOURCE))
    return events


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


class _Project:
    """Inputs from which the functions of a project that devices invoke are planned, read once for a plan."""

    def __init__(self, view: View, name: str) -> None:
        self._view, self.name = view, name
        self.functions = _list_triggered(view, name)
        self.beyond = frozenset(one.key for one in self.functions[MOST_TRIGGERED:])

    @cached_property
    def models(self) -> Mapping[str, DeviceModelSpec]:
        found = self._view.of_kind(DEVICE_MODEL.name).values()
        return {one.envelope.name: one.spec(DeviceModelSpec) for one in found if one.envelope.project == self.name}

    @cached_property
    def is_taken(self) -> bool:
        """Whether a node takes its devices."""
        nodes = self._view.of_kind(NODE.name).values()
        return any(find_devices_project(one.spec(NodeSpec)) == self.name for one in nodes)


def _read_project(view: View, projects: dict[str, _Project], name: str) -> _Project:
    if name not in projects:
        projects[name] = _Project(view, name)
    return projects[name]


def _plan_crossing(
    view: View, key: str, others: frozenset[str], projects: dict[str, _Project], plan: Plan, now: float
) -> None:
    """Plan the functions of the project at ``key`` that have come among those beyond MOST_TRIGGERED or left them, without
    ``others``, which are planned themselves.
    """
    project = _read_project(view, projects, key.removeprefix(_PROJECTS))
    crossing = [
        one for one in project.functions if (one.key in project.beyond) != _has_too_many(one) and one.key not in others
    ]
    for one in crossing[:_MOST_CROSSING]:
        if (commit := _plan_function(view, one, projects, now)) is not None:
            plan.commits.append(msgspec.structs.replace(commit, key=key))
    if len(crossing) > _MOST_CROSSING:
        plan.later[key] = _SHORTEST_SECONDS


def _has_too_many(item: Item) -> bool:
    return any(one.type == TOPICS_FIT and one.reason == TOO_MANY for one in item.envelope.conditions)


def _plan_function(view: View, item: Item, projects: dict[str, _Project], now: float) -> Commit | None:
    envelope, topics = edit(item), item.spec(FunctionSpec).topics
    if not topics:
        envelope.conditions = [one for one in envelope.conditions if one.type != TOPICS_FIT]
        is_changed = envelope.conditions != item.envelope.conditions
    else:
        project = _read_project(view, projects, item.envelope.project or "")
        is_changed = set_condition(envelope, _plan_condition(view, item, topics, project, now))
    return Commit(item.key, [put(envelope)], [unchanged(item)]) if is_changed else None


def _plan_condition(view: View, item: Item, topics: Sequence[str], project: _Project, now: float) -> Condition:
    named = {name: view.get(object_key(DEVICE.name, project.name, name)) for name in list_named(topics)}
    return plan_topics(
        topics,
        project.name,
        {name: one.spec(DeviceSpec).model for name, one in named.items() if one is not None and not one.deleting},
        project.models,
        is_taken=project.is_taken,
        too_many=f"devices invoke {MOST_TRIGGERED} functions of a project, the first by name: this is one more"
        if item.key in project.beyond
        else "",
        now=now,
    )


def _list_triggered(view: View, project: str) -> list[Item]:
    """The functions with topics, as the server counts them for gateways: by name, without those that are being deleted."""
    return [one for one in view.find(FUNCTIONS_OF_DEVICES, project) if not one.deleting]


def _list_invoked(view: View, project: str) -> list[Item]:
    """Those that gateways hear of: what a device, a model or a node is like matters to no others."""
    return _list_triggered(view, project)[:MOST_TRIGGERED]
