"""The samples of devices: their numeric properties, whether they are online, and how often rules fired. Pure.

They come from what the twins say, so a device adds one value per property and moment, however much it sends. A gateway may lie:
only properties that the device's model declares as numbers count, and so many of a node and of a project.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from weft.informer.view import Item, View
from weft.kinds.device import DEVICE, FOUND, ONLINE, UNKNOWN, DeviceSpec, DeviceStatus
from weft.kinds.device_model import DEVICE_MODEL, DeviceModelSpec
from weft.kinds.fields.device.affordance import Property
from weft.kinds.rule import RULE, RuleStatus
from weft.objects.identity import object_key
from weft.telemetry.metrics.sample import Sample

PROPERTY, IS_ONLINE = "weft_device_property", "weft_device_online"
LEFT_OUT, FIRED = "weft_device_series_left_out", "weft_rule_fired_total"
MOST_OF_NODE, MOST_OF_PROJECT = 5_000, 20_000  # series
MOST_RULES = 1_000  # of a project


def list_properties(view: View, at: int) -> Iterator[Sample]:
    """Yield the samples of devices' properties, ``at`` in ms. A device that isn't online has no value now; those beyond a bound are
    only counted.
    """
    of_node, of_project, left_out = Counter[str](), Counter[str](), Counter[str]()
    for _, item in sorted(view.of_kind(DEVICE.name).items()):  # the same ones count at each moment
        spec, status, project = item.spec(DeviceSpec), item.status(DeviceStatus), item.envelope.project or ""
        if item.deleting or not spec.approved or status.phase in (FOUND, UNKNOWN):
            continue
        for sample in _list_of_device(view, item, spec, status, at):
            if of_node[spec.node] >= MOST_OF_NODE or of_project[project] >= MOST_OF_PROJECT:
                left_out[project] += 1
                continue
            of_node[spec.node] += 1
            of_project[project] += 1
            yield sample
    for project, count in left_out.items():
        yield Sample(LEFT_OUT, (("project", project),), at, float(count))
    rules = Counter[str]()
    for _, item in sorted(view.of_kind(RULE.name).items()):
        project = item.envelope.project or ""
        rules[project] += 1
        if rules[project] <= MOST_RULES:
            labels = (("project", project), ("rule", item.envelope.name))
            yield Sample(FIRED, labels, at, float(item.status(RuleStatus).fired))


def _list_of_device(view: View, item: Item, spec: DeviceSpec, status: DeviceStatus, at: int) -> Iterator[Sample]:
    labels = (("project", item.envelope.project or ""), ("device", item.envelope.name))
    is_online = status.phase == ONLINE
    yield Sample(IS_ONLINE, labels, at, float(is_online))
    model = view.get(object_key(DEVICE_MODEL.name, item.envelope.project, spec.model)) if spec.model else None
    if model is None or not is_online:
        return
    declared = model.spec(DeviceModelSpec).properties
    for name, value in sorted(status.reported.items()):
        if _is_number(declared.get(name), value):
            yield Sample(PROPERTY, (*labels, ("property", name)), at, float(value))


def _is_number(declared: Property | None, value: object) -> bool:
    if declared is None or declared.type not in ("number", "integer"):
        return False
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
