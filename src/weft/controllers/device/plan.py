"""Work out the changes of devices, rules and models: values whose time is over, a found device that a model takes, and the status.
Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import msgspec

from weft.kinds.device import (
    FOUND,
    OFFLINE,
    ONLINE,
    STALE,
    UNKNOWN,
    DeviceActions,
    DeviceReport,
    DeviceSpec,
    DeviceStatus,
)
from weft.kinds.device_model import DeviceModelSpec
from weft.kinds.fields.device.affordance import are_equal
from weft.kinds.model import ModelReport, ModelStatus
from weft.kinds.rule import RuleReport, RuleStatus
from weft.language.holds import holds
from weft.language.parse import read_expression
from weft.objects.errors import shorten

SILENCE_SECONDS = 180.0  # a gateway tells once a minute that a device was seen, and may have to wait


class DeviceOutcome(msgspec.Struct):
    """Outcome of planning a device: what its parts shall be, the events about it, and the seconds until the next look."""

    spec: DeviceSpec
    actions: DeviceActions
    status: DeviceStatus
    events: list[tuple[str, str]] = []  # reason and words
    later: float | None = None


def plan_device(
    spec: DeviceSpec,
    asked: DeviceActions,
    report: DeviceReport,
    node: str | None,
    model: DeviceModelSpec | None,
    accepting: Sequence[tuple[str, DeviceModelSpec]],
    now: float,
    *,
    is_taken: bool = True,
) -> DeviceOutcome:
    """``node`` is the phase of its node, None for one that isn't there; ``is_taken``: that takes devices of its project;
    ``accepting`` are models that take found devices, by
    name; ``now`` in unix seconds."""
    events: list[tuple[str, str]] = []
    over = sorted(name for name, at in asked.desired_until.items() if at <= now)
    if over:
        spec = msgspec.structs.replace(
            spec, desired={name: value for name, value in spec.desired.items() if name not in over}
        )
        asked = DeviceActions(desired_until={name: at for name, at in asked.desired_until.items() if name not in over})
        had = [name for name in over if name in report.reported]
        words = ", ".join(f"{name} ({msgspec.json.encode(report.reported[name]).decode()[:40]} now)" for name in had)
        rest = ", ".join(name for name in over if name not in report.reported)
        text = f"its time is over, and the device keeps the value that it has: {', '.join(filter(None, (words, rest)))}"
        events.append(("DesiredExpired", text))
    if not spec.approved and is_taken:
        taking = next((one for one in accepting if _takes(one[1], spec, report.found)), None)
        if taking is not None:
            spec = msgspec.structs.replace(spec, approved=True, model=taking[0])
            events.append(("Approved", f"device model {taking[0]} accepts it"))
            model = taking[1]
    silent_at = _find_silence(report, model) if spec.approved else None
    times = [*asked.desired_until.values(), *([silent_at] if silent_at is not None and silent_at > now else [])]
    later = min((at - now for at in times), default=None)
    status = _make_status(spec, report, node, model)
    if node is not None and not is_taken:
        status.phase = UNKNOWN
        status.problem = f"node {spec.node} takes no devices of this project any more: set another node, or delete it"
        return DeviceOutcome(spec, asked, status, events, later)
    if silent_at is not None and silent_at <= now and status.phase == report.phase:
        status.phase = UNKNOWN
        status.problem = f"the gateway of node {spec.node} is silent about it: this is what it said last"
    return DeviceOutcome(spec, asked, status, events, later)


def _find_silence(report: DeviceReport, model: DeviceModelSpec | None) -> float | None:
    """When the gateway would have said another thing if it ran: that the device was seen again, or is Stale or Offline."""
    longest = {ONLINE: model.stale_seconds, STALE: model.offline_seconds} if model is not None else {}
    if report.seen_at is None or report.phase not in longest:
        return None
    return report.seen_at + longest[report.phase] + SILENCE_SECONDS


def _takes(model: DeviceModelSpec, spec: DeviceSpec, found: Mapping[str, str]) -> bool:
    facts = {**found, "protocol": spec.protocol, "address": spec.address, "node": spec.node}
    return holds(read_expression(model.accept), facts)


def _make_status(
    spec: DeviceSpec, report: DeviceReport, node: str | None, model: DeviceModelSpec | None
) -> DeviceStatus:
    phase, problem = report.phase, report.problem
    if node is None:
        phase, problem = UNKNOWN, f"node {spec.node} isn't in the fabric: set another one, or delete the device"
    elif not spec.approved:
        phase, problem = FOUND, ""
    elif node != "Ready":
        phase, problem = UNKNOWN, f"node {spec.node} is silent ({node}): this is what it said last"
    elif not spec.model:
        problem = problem or "it has no model: weft device approve NAME --model MODEL"
    elif model is None:
        problem = f"device model {spec.model} isn't there: create it, or set another one"
    properties = model.properties if model is not None else {}
    drift = [
        name
        for name, value in sorted(spec.desired.items())
        if name not in report.reported or not are_equal(properties.get(name), value, report.reported[name])
    ]
    return DeviceStatus(
        phase=phase or OFFLINE,
        last_seen=report.seen_at,
        reported=report.reported,
        drift=drift,
        gateway=spec.node,
        problem=problem,
        found=report.found,
        commands=report.commands,
    )


def plan_rule(report: RuleReport) -> RuleStatus:
    """The counts of all gateways together."""
    counts = report.nodes
    problems = [f"{node}: {one.problem}" for node, one in sorted(counts.items()) if one.problem]
    return RuleStatus(
        fired=sum(one.fired for one in counts.values()),
        last_fired=max((one.last_fired for one in counts.values() if one.last_fired is not None), default=None),
        problem=shorten("; ".join(problems), 1000),
    )


def plan_model(report: ModelReport, used: Set[str]) -> ModelStatus:
    """The counts of all gateways together that have devices for it (``used``, by node): what others said once is over."""
    nodes = {node: one for node, one in report.nodes.items() if node in used}
    problems = [f"{node}: {one.problem}" for node, one in sorted(nodes.items()) if one.problem]
    return ModelStatus(
        runs=sum(one.runs for one in nodes.values()),
        misses=sum(one.late + one.nan + one.dead for one in nodes.values()),
        p99_ms=max((one.p99_ms for one in nodes.values() if one.p99_ms is not None), default=None),
        problem=shorten("; ".join(problems), 1000),
        nodes=nodes,
    )
