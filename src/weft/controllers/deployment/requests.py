"""Read the history of metrics about deployments: how the requests to a new revision went, and the metric that sets the number of
instances. Pure but for the questions to the history.

A service with protocol http offers ``weft_service_requests_total{project, service, workload, code_class}``, with
``container/web-2-0`` as workload and ``5xx`` as class, and ``weft_service_response_seconds`` by workload."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from weft.contracts.history import Floats, History, Labels, Span
from weft.controllers.deployment.facts import Verdict
from weft.insight.canary import choose_rates, count_clean, judge
from weft.kinds.fields.deployment.scaling import Autoscale
from weft.objects.quantity import format_duration

REQUESTS, SECONDS = "weft_service_requests_total", "weft_service_response_seconds"
ERROR, UNANSWERED = "5xx", "none"
# Where the old revision leaves more than this share unanswered, the machines are too busy, which says nothing of the new one:
# unless that leaves several times as many.
BUSY_SHARE, LEAST_UNANSWERED = 0.01, 5
WORSE_TIMES, WORSE_LEAST, WORSE_MOMENTS = 3.0, 20, 5
STEP_SECONDS = 1.0
WINDOW_SECONDS = 10.0  # a reading of latency is the mean of as long, and comes as often
WARM_SECONDS = 30.0  # after an instance's first answer: what has just booted is slow at first
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


class RevisionCounts(msgspec.Struct):
    requests: int = 0
    errors: int = 0  # answers that say that it failed
    unanswered: int = 0
    moments: int = 0  # at which either came
    error_moments: int = 0
    unanswered_moments: int = 0

    @property
    def is_busy(self) -> bool:
        return self.unanswered >= LEAST_UNANSWERED and self.unanswered > BUSY_SHARE * self.requests

    @property
    def unanswered_share(self) -> float:
        return self.unanswered / self.requests if self.requests else 0.0

    def is_worse(self, old: RevisionCounts) -> bool:
        """Whether it leaves so much more unanswered than ``old`` that busy machines don't explain it."""
        is_seen = self.unanswered >= WORSE_LEAST and self.unanswered_moments >= WORSE_MOMENTS
        share = old.unanswered_share
        # Three times a third is everything: where the old one leaves much, half of what it answers is enough.
        return is_seen and self.unanswered_share >= min(WORSE_TIMES * share, (1.0 + share) / 2.0)

    def leave_out_unanswered(self) -> RevisionCounts:
        return RevisionCounts(self.requests - self.unanswered, self.errors, moments=self.error_moments)


def plan_span(since: float, now: float) -> Span:
    """The moments from ``since`` to ``now``."""
    seconds = max(STEP_SECONDS, now - since)
    return Span.until(now, seconds + STEP_SECONDS, max(STEP_SECONDS, math.ceil(seconds / _MOST_MOMENTS)))


def count(found: Mapping[Labels, Floats], project: str, workloads: frozenset[str], first: int = 0) -> RevisionCounts:
    """The requests to ``workloads`` from the moment ``first`` of the series on, which are counters. Pure."""
    counts, none = RevisionCounts(), np.zeros(1)
    failing = {ERROR: none, UNANSWERED: none}
    for labels, row in found.items():
        if labels.get("project") != project or labels.get("workload") not in workloads:
            continue
        grown = _increments(row)[first:]
        counts.requests += round(float(grown.sum()))
        if (code := labels.get("code_class")) in failing:
            failing[code] = failing[code] + grown
    counts.errors, counts.unanswered = (round(float(failing[code].sum())) for code in (ERROR, UNANSWERED))
    counts.error_moments, counts.unanswered_moments = (int((failing[code] > 0).sum()) for code in (ERROR, UNANSWERED))
    counts.moments = int((failing[ERROR] + failing[UNANSWERED] > 0).sum())
    return counts


def find_first(found: Mapping[Labels, Floats], project: str, workloads: frozenset[str]) -> int:
    """The moment of the first request to ``workloads``; 0 if none came. Pure."""
    places = [
        int(grown[0])
        for labels, row in found.items()
        if labels.get("project") == project
        and labels.get("workload") in workloads
        and len(grown := np.flatnonzero(_increments(row)))
    ]
    return min(places, default=0)


def _increments(counter: Floats) -> Floats:
    """Increase of a counter at each moment: from 0 where it came later or began again."""
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


def list_windows(
    span: Span,
    requests: Mapping[Labels, Floats],
    seconds: Mapping[Labels, Floats],
    project: str,
    workloads: frozenset[str],
) -> list[Floats]:
    """Mean seconds of each instance's answers, shape (nodes that count them, windows): NaN where there were no answers, and while
    it was warming up. A reading stands in the history until the next one, so each window has its last one only. Pure.
    """
    own = [one for one in seconds if one.get("project") == project and one.get("workload") in workloads]
    if not own:
        return []
    readings, grown = np.vstack([seconds[one] for one in own]), _sum_growth(requests, own, span.count)
    moments = span.start + span.step * np.arange(span.count)
    numbers, firsts = np.unique(moments // WINDOW_SECONDS, return_index=True)
    answered = np.isfinite(readings)
    means = np.full((len(own), len(numbers) - 1), math.nan)  # the last window goes on
    for column, (first, end) in enumerate(itertools.pairwise(firsts)):
        last = np.where(answered[:, first:end], np.arange(first, end), -1).max(axis=1)
        has = (last >= 0) & (grown[:, first:end].sum(axis=1) > 0)
        means[has, column] = readings[has, last[has]]
    instances = []
    for name in sorted({one.get("workload") for one in own}):
        rows = [place for place, one in enumerate(own) if one.get("workload") == name]
        at = np.flatnonzero(answered[rows].any(axis=0))
        warm_at = moments[at[0]] + WARM_SECONDS if len(at) else math.inf
        instances.append(np.where(numbers[:-1] * WINDOW_SECONDS >= warm_at, means[rows], math.nan))
    return instances


def _sum_growth(requests: Mapping[Labels, Floats], rows: Sequence[Labels], count: int) -> Floats:
    """How many requests came at each moment to what each of ``rows`` is the latency of; shape (rows, moments)."""
    places = {labels: place for place, labels in enumerate(rows)}
    grown = np.zeros((len(rows), count))
    for labels, row in requests.items():
        place = places.get(Labels(tuple(pair for pair in labels.pairs if pair[0] != "code_class")))
        if place is not None:
            grown[place] += _increments(row)
    return grown


def judge_requests(
    watched: Watched, span: Span, requests: Mapping[Labels, Floats], seconds: Mapping[Labels, Floats]
) -> tuple[Verdict, bool]:
    """The verdict so far, and whether anybody counts requests to these instances. Pure."""
    new = count(requests, watched.project, watched.new)
    # What the old revision may fail is what it failed meanwhile: before the new one was there, the machine may have been less busy.
    old = count(requests, watched.project, watched.old, find_first(requests, watched.project, watched.new))
    known = {labels.get("workload") for labels in requests if labels.get("project") == watched.project}
    if not known & (watched.new | watched.old):
        return Verdict("wait", "no service counts requests to the instances"), False
    left_out = ""
    if old.is_busy:
        of_new, of_old = (f"{one.unanswered_share * 100:.3g} %" for one in (new, old))
        shares = f"{of_new} of the requests unanswered, the old revision {of_old}"
        if new.is_worse(old):
            return Verdict("bad", f"it leaves {shares}", new.requests), True
        left_out = f"; it leaves {shares}: these don't count"
        new, old = new.leave_out_unanswered(), old.leave_out_unanswered()
    rates = choose_rates(watched.threshold, old.requests, old.errors + old.unanswered)
    finding = judge(
        new.requests,
        new.errors + new.unanswered,
        rates,
        moments=new.moments,
        old_seconds=list_windows(span, requests, seconds, watched.project, watched.old),
        new_seconds=list_windows(span, requests, seconds, watched.project, watched.new),
    )
    more = count_clean(rates) - new.requests if finding.word == "wait" and new.requests else 0
    rate = new.requests / max(STEP_SECONDS, span.step * span.count)
    soon = f", in about {format_duration(math.ceil(more / rate))} at this rate" if more > 0 else ""
    return Verdict(finding.word, finding.why + soon + left_out, new.requests), True


async def ask_verdict(history: History, watched: Watched, now: float) -> tuple[Verdict, bool]:
    """The verdict of ``judge_requests``. Raises what the history raises."""
    span = plan_span(watched.since, now)
    of_project = f'{{project="{watched.project}"}}'
    requests = await history.read(REQUESTS + of_project, span)
    return judge_requests(watched, span, requests, await history.read(SECONDS + of_project, span))


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
