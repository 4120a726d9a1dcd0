"""What the history of metrics says of deployments: how the requests to a new revision went, and the figure that sets the number of
instances. Pure but for the questions to the history.

A service with protocol http offers ``weft_service_requests_total{project, service, workload, code_class}``, with
``container/web-2-0`` as workload and ``5xx`` as class, and ``weft_service_response_seconds`` by workload."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from weft.contracts.history import Floats, History, Labels, Span
from weft.controllers.deployment.facts import Verdict
from weft.insight.canary import choose_rates, judge
from weft.kinds.deployment import Autoscale

REQUESTS, SECONDS = "weft_service_requests_total", "weft_service_response_seconds"
FAILED = frozenset({"5xx", "none"})
STEP_SECONDS = 1.0
FIGURE_STEP_SECONDS = 5.0
_MOST_MOMENTS = 200
TOLERANCE = 0.1  # so much beside the target is near enough


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a rollout whose requests are judged."""

    project: str
    since: float  # unix seconds
    new: frozenset[str]  # its instances, like ``container/web-2-0``
    old: frozenset[str]
    threshold: float


class Counts(msgspec.Struct):
    requests: int = 0
    failures: int = 0
    moments: int = 0  # at which failures came


def plan_span(since: float, now: float) -> Span:
    """The moments from ``since`` to ``now``."""
    seconds = max(STEP_SECONDS, now - since)
    return Span.until(now, seconds + STEP_SECONDS, max(STEP_SECONDS, math.ceil(seconds / _MOST_MOMENTS)))


def count(found: Mapping[Labels, Floats], project: str, workloads: frozenset[str]) -> Counts:
    """The requests to ``workloads`` in the time of the series, which are counters. Pure."""
    counts, failing = Counts(), np.zeros(0)
    for labels, row in found.items():
        if labels.get("project") != project or labels.get("workload") not in workloads:
            continue
        grown = _increments(row)
        counts.requests += round(float(grown.sum()))
        if labels.get("code_class") in FAILED:
            counts.failures += round(float(grown.sum()))
            failing = grown if not len(failing) else failing + grown
    counts.moments = int((failing > 0).sum())
    return counts


def _increments(counter: Floats) -> Floats:
    """By how much a counter grew at each moment: from 0 where it came later or began again."""
    known = np.isfinite(counter)
    grown = np.zeros(len(counter))
    places = np.flatnonzero(known)
    if not len(places):
        return grown
    values = counter[places]
    steps = np.diff(values, prepend=values[0] if places[0] == 0 else 0.0)
    begun_again = steps < 0
    steps[begun_again] = values[begun_again]
    grown[places] = steps
    return grown


def _samples(found: Mapping[Labels, Floats], project: str, workloads: frozenset[str]) -> Floats:
    rows = [
        row for labels, row in found.items() if labels.get("project") == project and labels.get("workload") in workloads
    ]
    every = np.concatenate(rows) if rows else np.zeros(0)
    return every[np.isfinite(every)]


def judge_requests(
    watched: Watched, requests: Mapping[Labels, Floats], seconds: Mapping[Labels, Floats]
) -> tuple[Verdict, bool]:
    """The verdict so far, and whether anybody counts requests to these instances. Pure."""
    new, old = (count(requests, watched.project, names) for names in (watched.new, watched.old))
    known = {labels.get("workload") for labels in requests if labels.get("project") == watched.project}
    if not known & (watched.new | watched.old):
        return Verdict("wait", "no service counts requests to the instances"), False
    rates = choose_rates(watched.threshold, old.requests, old.failures)
    finding = judge(
        new.requests,
        new.failures,
        rates,
        moments=new.moments,
        old_seconds=_samples(seconds, watched.project, watched.old),
        new_seconds=_samples(seconds, watched.project, watched.new),
    )
    return Verdict(finding.word, finding.why, new.requests), True


async def ask_verdict(history: History, watched: Watched, now: float) -> tuple[Verdict, bool]:
    """As ``judge_requests``. Raises what the history raises."""
    span = plan_span(watched.since, now)
    requests = await history.read(REQUESTS, span)
    return judge_requests(watched, requests, await history.read(SECONDS, span))


async def ask_figure(history: History, expression: str, project: str, now: float) -> float | None:
    """The mean of the expression's series of the project now; None without any. Raises what the history raises."""
    found = await history.read(expression, Span.until(now, 2 * FIGURE_STEP_SECONDS, FIGURE_STEP_SECONDS), project)
    last = [row[np.isfinite(row)][-1] for row in found.values() if np.isfinite(row).any()]
    return float(np.mean(last)) if last else None


def plan_scale(
    scale: Autoscale, present: int, value: float | None, scaled_at: float | None, now: float
) -> tuple[int, str]:
    """How many instances there should be, and why. Pure."""
    bounded = min(max(present, scale.min), scale.max)
    if value is None or not math.isfinite(value):
        return bounded, "the expression has no value now"
    wanted = bounded
    if abs(value / scale.target - 1.0) > TOLERANCE:
        load = min(bounded * max(value, 0.0) / scale.target, scale.max)  # infinite for a tiny target
        wanted = max(math.ceil(load - 1e-9), scale.min)
    rests = scaled_at is not None and 0 <= now - scaled_at < scale.cooldown
    said = f"{value:.4g}, target {scale.target:g}"
    if wanted != bounded and rests:
        return bounded, f"{said}: {wanted} after the cooldown"
    return wanted, f"{said}: {bounded} → {wanted}" if wanted != bounded else said
