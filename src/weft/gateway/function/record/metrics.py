"""Metrics: counts of each function's invocations, and where its instances are. Pure; ``counts_file.py`` keeps the counts over
restarts.

Durations go into buckets whose widths grow with them, eight to each doubling, so that a percentile is right to within 5 %
(as HdrHistogram does, Gil Tene)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from weft.gateway.function.instance.fleet import Fleet
from weft.gateway.function.invocation.call import InvocationOutcome

PER_DOUBLING = 8
LEAST_SECONDS = 1e-5
MOST_KINDS, OTHERS = 100, "(others)"  # of errors, whose types are the code's own words


class Durations(msgspec.Struct):
    """A histogram of durations; a bucket's number is the logarithm to base 2 of its durations, in eighths."""

    buckets: dict[int, int] = {}
    count: int = 0
    sum: float = 0.0
    most: float = 0.0

    def add(self, seconds: float) -> None:
        bucket = int(math.log2(max(seconds, LEAST_SECONDS) / LEAST_SECONDS) * PER_DOUBLING)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.sum += seconds
        self.most = max(self.most, seconds)

    def percentile(self, share: float) -> float:
        """The duration (seconds) that this share of them (0 to 1) doesn't exceed; 0 without any."""
        left = share * self.count
        for bucket in sorted(self.buckets):
            left -= self.buckets[bucket]
            if left <= 1e-9:
                return min(self.most, LEAST_SECONDS * 2 ** ((bucket + 0.5) / PER_DOUBLING))
        return self.most


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds."""

    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    most: float = 0.0


class NodeInstances(msgspec.Struct, frozen=True):
    """A function's instances on one node, as last reported."""

    node: str
    busy: int = 0  # at work
    idle: int = 0
    ready: int = 0  # ahead of demand
    prepared: bool = False  # a new instance starts without fetching anything


class FunctionMetrics(msgspec.Struct, frozen=True):
    """The metrics of one function."""

    function: str
    project: str
    since: float  # unix seconds
    invocations: int
    errors: dict[str, int]  # by type
    throttles: int
    refused: dict[str, int]  # by reason
    lost: int
    concurrent: int
    most_concurrent: int
    starts: dict[str, int]  # by how the instance was started
    duration: Percentiles  # of the code itself
    latency: Percentiles  # with placement, start and messages
    init: Percentiles
    most_memory: int
    instances: list[NodeInstances]
    away: list[str] = []  # servers whose gateways' counts are missing


class MetricsPart(msgspec.Struct):
    """The part of a function's metrics that one gateway has."""

    counts: Counts
    concurrent: int
    instances: list[NodeInstances]


class Counts(msgspec.Struct):
    """The counts of one function."""

    since: float  # unix seconds
    invocations: int = 0
    throttles: int = 0
    lost: int = 0
    most_concurrent: int = 0
    most_memory: int = 0
    errors: dict[str, int] = {}
    refused: dict[str, int] = {}
    starts: dict[str, int] = {}
    duration: Durations = msgspec.field(default_factory=Durations)
    latency: Durations = msgspec.field(default_factory=Durations)
    init: Durations = msgspec.field(default_factory=Durations)

    def refuse(self, reason: str) -> None:
        _more(self.refused, reason)

    def arrive(self, concurrent: int) -> None:
        self.invocations += 1
        if concurrent > self.most_concurrent:
            self.most_concurrent = concurrent

    def end(self, outcome: InvocationOutcome, seconds: float) -> None:
        _more(self.starts, outcome.start)
        self.duration.add(outcome.seconds)
        self.latency.add(seconds)
        if outcome.start != "warm":
            self.init.add(outcome.init_seconds)
        if outcome.error:
            _more(self.errors, outcome.error_type or outcome.error)
        if outcome.most_memory > self.most_memory:
            self.most_memory = outcome.most_memory


def add_counts(one: Counts, other: Counts) -> Counts:
    """The counts of two gateways together. ``most_concurrent`` is that of the one that had more."""
    return Counts(
        since=min(one.since, other.since),
        invocations=one.invocations + other.invocations,
        throttles=one.throttles + other.throttles,
        lost=one.lost + other.lost,
        most_concurrent=max(one.most_concurrent, other.most_concurrent),
        most_memory=max(one.most_memory, other.most_memory),
        errors=_add(one.errors, other.errors),
        refused=_add(one.refused, other.refused),
        starts=_add(one.starts, other.starts),
        duration=_add_durations(one.duration, other.duration),
        latency=_add_durations(one.latency, other.latency),
        init=_add_durations(one.init, other.init),
    )


def _add(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    sums = dict(one)
    for what, count in other.items():
        _more(sums, what, count)
    return sums


def _add_durations(one: Durations, other: Durations) -> Durations:
    buckets = {key: one.buckets.get(key, 0) + other.buckets.get(key, 0) for key in one.buckets.keys() | other.buckets}
    return Durations(buckets, one.count + other.count, one.sum + other.sum, max(one.most, other.most))


def _more(counts: dict[str, int], what: str, more: int = 1) -> None:
    if what not in counts and len(counts) >= MOST_KINDS:
        what = OTHERS
    counts[what] = counts.get(what, 0) + more


def make_metrics(
    counts: Counts,
    function: str,
    project: str,
    concurrent: int,
    instances: list[NodeInstances],
    away: Sequence[str] = (),
) -> FunctionMetrics:
    return FunctionMetrics(
        function=function,
        project=project,
        since=counts.since,
        invocations=counts.invocations,
        errors=dict(counts.errors),
        throttles=counts.throttles,
        refused=dict(counts.refused),
        lost=counts.lost,
        concurrent=concurrent,
        most_concurrent=counts.most_concurrent,
        starts=dict(counts.starts),
        duration=_describe(counts.duration),
        latency=_describe(counts.latency),
        init=_describe(counts.init),
        most_memory=counts.most_memory,
        instances=instances,
        away=list(away),
    )


def find_instances(fleet: Fleet, is_its: Callable[[str], bool], name_of: Callable[[str], str]) -> list[NodeInstances]:
    """Find the instances by node; ``is_its``: whether a recipe (by digest) is the function's. Nodes that have nothing of it are
    left out."""
    found = []
    for node, serving in fleet.nodes.items():
        counts = [count for digest, count in serving.standing.counts.items() if is_its(digest)]
        prepared = any(map(is_its, serving.standing.recipes))
        if counts or prepared:
            busy, idle, ready = (sum(getattr(count, part) for count in counts) for part in ("busy", "idle", "ready"))
            found.append(NodeInstances(name_of(node), busy, idle, ready, prepared))
    return sorted(found, key=lambda there: there.node)


def _describe(durations: Durations) -> Percentiles:
    mean = durations.sum / durations.count if durations.count else 0.0
    values: Iterable[float] = (mean, *(durations.percentile(share) for share in (0.5, 0.9, 0.99)), durations.most)
    return Percentiles(*(round(value * 1000, 3) for value in values))
