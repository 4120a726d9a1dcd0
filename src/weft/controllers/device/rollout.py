"""Carries device rollouts on: sets the values of the next devices, and records which reported them.

Reads device rollouts, devices and their models; writes devicerollout.status and the desired values of devices, both in one commit.
Woken by those, and when a wave's time is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.contracts.store import MAX_COMMIT_BYTES, MAX_VALUE_BYTES
from weft.controllers.device.rollout_plan import (
    MOST_TOGETHER,
    RolloutProgress,
    Stand,
    Waves,
    begin,
    find_pause,
    find_rollout_obstacle,
    plan_rollout,
)
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, Draft
from weft.informer.view import Changed, Item, View
from weft.kinds.device import (
    DEVICE,
    DEVICES_BY_MODEL,
    ONLINE,
    STALE,
    UNKNOWN,
    DeviceActions,
    DeviceReport,
    DeviceSpec,
    DeviceStatus,
)
from weft.kinds.device_model import DEVICE_MODEL, DeviceModelSpec
from weft.kinds.device_rollout import (
    DEVICE_ROLLOUT,
    ROLLOUTS_BY_MODEL,
    DeviceRolloutActions,
    DeviceRolloutSpec,
    DeviceRolloutStatus,
)
from weft.kinds.fields.device.affordance import are_equal
from weft.objects.identity import object_key

_MOST_REST_BYTES = 4000  # of a device's envelope apart from its parts: names, labels, the key


class DeviceRollouts:
    name = "device rollouts"
    kinds = (DEVICE_ROLLOUT.name, DEVICE_MODEL.name, DEVICE.name)

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.key in view.of_kind(DEVICE_ROLLOUT.name):
            return (change.key,)
        if change.kind == DEVICE_MODEL.name:
            return [item.key for item in view.find(ROLLOUTS_BY_MODEL, change.key)]
        model = object_key(DEVICE_MODEL.name, change.item.envelope.project, _model_of(change.item))
        return [item.key for item in view.find(ROLLOUTS_BY_MODEL, model)]

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            item = view.of_kind(DEVICE_ROLLOUT.name).get(key)
            if item is None or item.deleting:
                continue
            commit = _plan_one(view, item, plan, now)
            if commit is not None:
                plan.commits.append(commit)
        return plan


def _model_of(item: Item) -> str:
    return str(msgspec.json.decode(item.envelope.spec).get("model", ""))


def _plan_one(view: View, item: Item, plan: Plan, now: float) -> Commit | None:
    spec, status, project = item.spec(DeviceRolloutSpec), item.status(DeviceRolloutStatus), item.envelope.project
    if status.phase == "Done":
        return None
    model_key = object_key(DEVICE_MODEL.name, project, spec.model)
    model = view.get(model_key)
    devices = {
        one.envelope.name: one
        for one in view.find(DEVICES_BY_MODEL, model_key)
        if not one.deleting
        and one.spec(DeviceSpec).approved
        and all(one.envelope.labels.get(key) == value for key, value in spec.labels.items())
    }
    first = status.phase == "Pending"
    bar = "" if model is not None else f"device model {spec.model} isn't there: create it, or delete the rollout"
    if not bar and first:
        bar = find_rollout_obstacle(list(devices))
    if model is None or bar:
        if status.problem == bar:
            return None
        draft = Draft()
        draft.change(item, status=msgspec.structs.replace(status, problem=bar))
        return draft.commit(item.key)
    if (
        first
        and status.problem
        and (pause := find_pause(max(one.envelope.created_at for one in devices.values()), now))
    ):
        plan.later[item.key] = pause
        return None
    was = begin(list(devices)) if first else msgspec.convert(msgspec.to_builtins(status), RolloutProgress)
    stands = {name: _stand(spec, model.spec(DeviceModelSpec), one, was.wave_at) for name, one in devices.items()}
    waves = Waves(
        percent=spec.percent,
        max_failures=spec.max_failures,
        timeout_seconds=spec.timeout_seconds,
        resumed=item.actions(DeviceRolloutActions).resumed,
        together=_find_together(spec, devices.values()),
    )
    step = plan_rollout(waves, was, stands, now)
    if step.later is not None:
        plan.later[item.key] = step.later
    after = msgspec.convert(msgspec.to_builtins(step.progress), DeviceRolloutStatus)
    if after == status:
        return None
    draft = Draft()
    draft.change(item, status=after)
    for one in (devices[name] for name in step.to_set if name in devices):
        old = one.spec(DeviceSpec)
        times = one.actions(DeviceActions).desired_until.items()
        draft.change(
            one,
            spec=msgspec.structs.replace(old, desired={**old.desired, **spec.set}),
            actions=DeviceActions(desired_until={name: at for name, at in times if name not in spec.set}),
        )
    return draft.commit(item.key)


def _find_together(spec: DeviceRolloutSpec, devices: Iterable[Item]) -> int:
    """How many devices one commit can set, even if they are the largest ones; the progress is in it, too."""
    largest = max(
        (len(one.envelope.spec) + len(one.envelope.report) + len(one.envelope.status) for one in devices), default=0
    )
    each = largest + len(msgspec.json.encode(spec.set)) + _MOST_REST_BYTES
    return max(min((MAX_COMMIT_BYTES - MAX_VALUE_BYTES) // each, MOST_TOGETHER), 1)


def _stand(spec: DeviceRolloutSpec, model: DeviceModelSpec, device: Item, wave_at: float) -> Stand:
    report = device.report(DeviceReport)
    values = report.reported
    is_heard = device.status(DeviceStatus).phase != UNKNOWN and (
        report.phase == ONLINE or (report.phase == STALE and report.seen_at is not None and report.seen_at >= wave_at)
    )
    if is_heard and all(
        name in values and are_equal(model.properties.get(name), value, values[name])
        for name, value in spec.set.items()
    ):
        return Stand(True)
    for one in reversed(report.commands):
        if one.property in spec.set and one.outcome in ("Refused", "Expired") and one.at >= wave_at - 1:
            return Stand(False, f"{one.outcome}: {one.message}" if one.message else one.outcome)
    return Stand(False, phase="" if report.phase == ONLINE else report.phase)
