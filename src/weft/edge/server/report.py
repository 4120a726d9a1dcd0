"""Reports of the gateway to the server: each device when something of it changed, values at most once in ten seconds. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from weft.contracts.device import AnnouncedDevice
from weft.edge.device.command import Command
from weft.edge.device.twin import ECHO_SECONDS, Twin
from weft.edge.rule.engine import Fired
from weft.protocol.devices import (
    MOST_COMMANDS,
    MOST_DEVICE_BYTES,
    MOST_DEVICES,
    MOST_FOUND,
    MOST_MODELS,
    MOST_REPORT_BYTES,
    MOST_RULES,
    MOST_TEXT,
    DevicesReport,
    FiredRule,
    FoundDevice,
    RanModel,
    ReportedCommand,
    ReportedDevice,
)

SEEN_SECONDS = 60.0  # that a device was seen again is sent once in so long


class Sent(msgspec.Struct):
    """The state that the server knows. Kept in memory: after a restart all is sent again, in batches."""

    devices: dict[str, ReportedDevice] = {}
    at: dict[str, float] = {}  # by uid, clock's elapsed seconds
    found: set[tuple[str, str]] = msgspec.field(default_factory=set)  # protocols and addresses
    rules: dict[str, tuple[int, str]] = {}
    models: dict[str, tuple[RanModel, float]] = {}  # and when


def plan_report(
    twins: Mapping[str, Twin],
    found: Sequence[AnnouncedDevice],
    fired: Mapping[str, Fired],
    problems: Mapping[str, str],
    sent: Sent,
    at: float,
    now: float,
    local_now: float,
    models: Sequence[RanModel] = (),
) -> DevicesReport:
    """The next report; empty when there is nothing to tell. ``at``: clock's elapsed seconds; ``now``: the server's Unix seconds;
    ``local_now``: those of this machine's clock."""
    devices: list[ReportedDevice] = []
    size = 0
    for uid, twin in twins.items():
        if len(devices) >= MOST_DEVICES or size >= MOST_REPORT_BYTES:
            break
        before, since = sent.devices.get(uid), at - sent.at.get(uid, -ECHO_SECONDS)
        if before is not None and not twin.is_echo_due and twin.told_phase == before.phase and since < SEEN_SECONDS:
            continue
        fresh = _report_device(twin, at, now)
        if before is not None:
            urgent = (fresh.phase, fresh.problem) != (before.phase, before.problem) or _outcomes(fresh) != _outcomes(
                before
            )
            changed = fresh.drift != before.drift or twin.differs()
            seen = fresh.seen_seconds_ago is not None and fresh.seen_seconds_ago < since
            if not urgent and not (changed and since >= ECHO_SECONDS) and not (seen and since >= SEEN_SECONDS):
                continue
        devices.append(fresh)
        size += len(msgspec.json.encode(fresh))
    return DevicesReport(
        devices,
        _list_found(found, sent)[:MOST_FOUND],
        _list_rules(fired, problems, sent, local_now)[:MOST_RULES],
        _list_models(models, sent, at)[:MOST_MODELS],
    )


def note_sent(report: DevicesReport, twins: Mapping[str, Twin], sent: Sent, at: float) -> None:
    """The server has taken ``report``, or refused what is in it: either way it isn't sent again as it is."""
    for one in report.devices:
        sent.devices[one.uid], sent.at[one.uid] = one, at
        if (twin := twins.get(one.uid)) is not None:
            twin.echoed = dict(one.reported)
            now = _report_device(twin, at, 0.0)  # it may have changed while the report was on its way
            twin.is_echo_due = twin.differs() or now.problem != one.problem or _outcomes(now) != _outcomes(one)
    for gone in sent.devices.keys() - twins.keys():
        del sent.devices[gone], sent.at[gone]
    sent.found |= {(one.protocol, one.address) for one in report.found}
    sent.models.update({one.uid: (one, at) for one in report.models})
    sent.rules.update({one.uid: (one.fired, one.problem) for one in report.rules})


def _report_device(twin: Twin, at: float, now: float) -> ReportedDevice:
    reported = dict(sorted(twin.reported.items()))
    problem = twin.problem
    while len(msgspec.json.encode(reported)) > MOST_DEVICE_BYTES:
        largest = max(reported, key=lambda name: len(str(reported[name])))
        del reported[largest]
        problem = "its values are more than the server takes: the largest are left out"
    commands = [one for one in (*twin.ended, *_list_open(twin.commands.values())) if one.outcome != "Pending"]
    return ReportedDevice(
        twin.device.uid,
        twin.find_phase(at),
        None if twin.heard_at is None else max(0.0, at - twin.heard_at),
        reported,
        twin.find_drift(),
        problem[:MOST_TEXT],
        [_report_command(one, now) for one in commands[-MOST_COMMANDS:]],
    )


def _report_command(one: Command, now: float) -> ReportedCommand:
    outcome = one.outcome if one.outcome != "Pending" else "Delivered"
    age = max(0.0, now - one.ended_at) if one.ended_at else 0.0
    return ReportedCommand(one.name, outcome, age, one.problem[:MOST_TEXT])


def _list_open(commands: Iterable[Command]) -> list[Command]:
    return [one for one in commands if one.is_open]


def _outcomes(one: ReportedDevice) -> list[tuple[str, str, str]]:
    return [(command.property, command.outcome, command.message) for command in one.commands]


def _list_found(found: Sequence[AnnouncedDevice], sent: Sent) -> list[FoundDevice]:
    rows = []
    for one in found:
        facts = {"manufacturer": one.manufacturer, "model": one.model, **one.facts}
        row = FoundDevice(one.protocol, one.address, one.name, {name: text for name, text in facts.items() if text})
        if (row.protocol, row.address) not in sent.found:
            rows.append(row)
    return rows


def _list_rules(
    fired: Mapping[str, Fired], problems: Mapping[str, str], sent: Sent, local_now: float
) -> list[FiredRule]:
    rows = []
    for uid in {*fired, *problems}:
        one = fired.get(uid) or Fired()
        problem = (problems.get(uid) or one.problem)[:MOST_TEXT]
        if sent.rules.get(uid) != (one.count, problem):
            rows.append(FiredRule(uid, one.count, max(0.0, local_now - one.at) if one.at else None, problem))
    return rows


def _list_models(models: Sequence[RanModel], sent: Sent, at: float) -> list[RanModel]:
    """A model's problem, or another file, immediately; its counts once in ten seconds."""
    rows = []
    for one in models:
        before, told_at = sent.models.get(one.uid, (None, 0.0))
        is_news = before is None or (before.file, before.problem) != (one.file, one.problem)
        if is_news or (before != one and at - told_at >= ECHO_SECONDS):
            rows.append(one)
    return rows
