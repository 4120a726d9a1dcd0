"""Turn a look at a workload into changes of its profile, and events for people. Pure."""

from __future__ import annotations

import math

import msgspec

from weft.contracts.journal import Event
from weft.controllers.profile.series import CPU, INVOCATIONS
from weft.controllers.profile.subjects import Subject, profile_key
from weft.informer.commit import Commit, Draft
from weft.insight.profile.analysis import STEP_SECONDS, Finding
from weft.kinds.profile import (
    MOST_ANOMALIES,
    NODE_PROFILE,
    WORKLOAD_PROFILE,
    Anomaly,
    Extreme,
    NodeProfileSpec,
    Pattern,
    ProfileStatus,
    WorkloadProfileSpec,
    name_profile,
)
from weft.objects.envelope import Envelope
from weft.objects.quantity import format_time

SOURCE = "profiles"
KEPT_SECONDS = 31 * 86_400.0  # of what was unusual
_CHANGES = ("level", "hour")  # that have the cycles be looked for again
UNITS = {CPU: "cores", INVOCATIONS: "1/s"}


def plan_finding(subject: Subject, finding: Finding, searched: bool, now: float) -> Commit | None:
    """The commit of what was found; ``searched``: cycles were looked for, too."""
    status = next_status(subject, finding, searched, now)
    events = [write_event(subject, one, status.unit) for one in reversed(finding.anomalies)]
    return plan_write(subject, status, now, events)


def plan_without_history(subject: Subject, why: str, now: float) -> Commit | None:
    """Write once that there is no history: nothing else changes until there is some."""
    old = subject.status
    missing = dict.fromkeys(("prediction", "patterns", "signature", "anomalies"), why)
    if subject.profile is not None and old.missing == missing:
        return None
    status = msgspec.structs.replace(old, missing=missing, prediction={}, stability=None, **_describe(subject))
    return plan_write(subject, status, now, [])


def plan_write(subject: Subject, status: ProfileStatus, now: float, events: list[Event]) -> Commit | None:
    """Write the profile of a subject; if the workload has been deleted since, whatever is written goes too."""
    draft = Draft()
    if subject.profile is not None:
        draft.change(subject.profile, status=status)
    else:
        draft.make(_make(subject, status, now))
    return draft.commit(profile_key(subject.item), events)


def _make(subject: Subject, status: ProfileStatus, now: float) -> Envelope:
    envelope = subject.item.envelope
    name = name_profile(envelope.kind, envelope.name)
    if subject.guests is not None:
        return NODE_PROFILE.make(name, NodeProfileSpec(node=envelope.ref), now, owner=envelope, status=status)
    spec = WorkloadProfileSpec(workload=envelope.ref)
    return WORKLOAD_PROFILE.make(name, spec, now, project=envelope.project, owner=envelope, status=status)


def next_status(subject: Subject, finding: Finding, searched: bool, now: float) -> ProfileStatus:
    """The profile's status after it. Old news that is still true stays."""
    old = subject.status
    status = msgspec.structs.replace(old, looked_at=now, missing=finding.missing, **_describe(subject))
    status.history_seconds = max(0.0, finding.last_at - finding.first_at) if finding.samples else 0.0
    status.sampled_at = finding.last_at or min(old.sampled_at, now)
    status.prediction, status.stability = finding.prediction, finding.stability
    kept = [one for one in old.anomalies if now - KEPT_SECONDS < one.at <= now]
    status.anomalies = [*finding.anomalies, *kept][:MOST_ANOMALIES]
    found = finding.searched
    if found is not None:
        status.patterns, status.signature, status.correlations = found.patterns, found.signature, found.correlations
    else:
        status.patterns = [roll(pattern, now) for pattern in old.patterns]
    if searched:
        status.cycles_looked_at, status.cycles_history_seconds = now, status.history_seconds
        status.guests = subject.guests_mark
    elif any(one.channel in _CHANGES for one in finding.anomalies):
        status.cycles_looked_at = 0.0
    return status


def _describe(subject: Subject) -> dict[str, object]:
    return {"resource": subject.resource, "unit": UNITS[subject.resource], "full": subject.full}


def roll(pattern: Pattern, now: float) -> Pattern:
    """The same with the peaks and troughs that are next."""

    def next_one(extreme: Extreme) -> Extreme:
        turns = max(0, math.ceil((now - extreme.at) / pattern.cycle_seconds)) * pattern.cycle_seconds
        return msgspec.structs.replace(
            extreme, at=extreme.at + turns, start=extreme.start + turns, end=extreme.end + turns
        )

    turns = math.floor((now - pattern.fold_at) / pattern.cycle_seconds) * pattern.cycle_seconds
    return msgspec.structs.replace(
        pattern,
        peaks=[next_one(one) for one in pattern.peaks],
        troughs=[next_one(one) for one in pattern.troughs],
        fold_at=pattern.fold_at + max(0.0, turns),
    )


def count_fresh(status: ProfileStatus, now: float) -> int:
    """How many samples came since the newest that was looked at. Of a new profile none: its past isn't news."""
    if not status.sampled_at:
        return 0
    return max(0, int((now - min(status.sampled_at, now)) // STEP_SECONDS))


def count_silent(status: ProfileStatus, silent_samples: int) -> int:
    """Number of samples after the newest one during which nothing is reported again."""
    if not status.anomalies:
        return 0
    last = status.anomalies[0]
    return max(0, silent_samples - int(max(0.0, status.sampled_at - last.at) // STEP_SECONDS))


def write_event(subject: Subject, one: Anomaly, unit: str) -> Event:
    """Put it in words: what, when, and what is usual."""
    name = "CPU" if unit == UNITS[CPU] else "invocations"
    usual = f"usually {one.low:.3g} to {one.high:.3g} {unit}"
    said = {
        "jump": f"{name} jumped to {one.value:.3g} {unit}",
        "level": f"{name} was {one.value:.3g} {unit}",
        "hour": f"{name} was unusual for an hour, at last {one.value:.3g} {unit}",
        "spread": f"{name} swung more than usual, at last {one.value:.3g} {unit}",
        "pattern": f"{name} took a course unlike any in the last week, at last {one.value:.3g} {unit}",
    }[one.channel]
    text = f"{said} at {format_time(one.at)}; {usual} (channel {one.channel})"
    return Event("Warning", "UnusualUse", text, subject.item.envelope.ref, SOURCE)
