"""Whether a new version of a service fails more often, or answers more slowly, than it may: counts and arrays in, a finding
out. Pure.

Failures by Wald's sequential test (1945), which may be looked at after every request without spoiling its errors; latency as
``latency.py`` has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from weft.contracts.history import Floats
from weft.insight.latency import find_median, is_slower

WRONG_ROLLBACKS = 0.05  # of versions that are as good as allowed
WRONG_PROMOTIONS = 0.04  # of those at the bad rate: a count goes past the bound, so that in runs they are one in twenty
UPPER = math.log((1 - WRONG_PROMOTIONS) / WRONG_ROLLBACKS)  # bounds of the weight
LOWER = math.log(WRONG_PROMOTIONS / (1 - WRONG_ROLLBACKS))
LEAST_MOMENTS = 2  # seconds with failures before a rollback: errors come in bursts
_MOST_BAD_RATE = 0.5
_TENFOLD_UP_TO = 0.01

Word = Literal["wait", "good", "bad"]


class Rates(msgspec.Struct, frozen=True):
    """Shares of failed requests: ``good`` or less passes, ``bad`` or more is rolled back."""

    good: float
    bad: float


class CanaryFinding(msgspec.Struct, frozen=True):
    word: Word
    why: str  # a sentence for people


def choose_rates(threshold: float, baseline_requests: int = 0, baseline_failures: int = 0) -> Rates:
    """The rates to tell apart for a version of which the share ``threshold`` must succeed. If the old version fails more often than
    that over the same time, the new one may, too."""
    allowed = max(1.0 - threshold, 1e-6)
    if baseline_requests:
        allowed = max(allowed, baseline_failures / baseline_requests)
    allowed = min(allowed, _MOST_BAD_RATE / 2)
    bad = (
        10 * allowed
        if 10 * allowed <= _TENFOLD_UP_TO * (1 + 1e-9)
        else max(3 * allowed, min(10 * allowed, _TENFOLD_UP_TO))
    )
    return Rates(allowed, min(bad, _MOST_BAD_RATE))


def weigh(requests: int, failures: int, rates: Rates) -> float:
    """The logarithm of the likelihood ratio: how much more the counts speak for ``rates.bad`` than for ``rates.good``."""
    per_failure = math.log(rates.bad / rates.good)
    per_success = math.log((1 - rates.bad) / (1 - rates.good))
    return failures * per_failure + (requests - failures) * per_success


def judge_failures(requests: int, failures: int, rates: Rates, *, moments: int = LEAST_MOMENTS) -> Word:
    """``failures`` of ``requests`` in ``moments`` different seconds."""
    weight = weigh(requests, failures, rates)
    if weight >= UPPER:
        return "bad" if moments >= LEAST_MOMENTS else "wait"
    return "good" if weight <= LOWER else "wait"


def count_clean(rates: Rates) -> int:
    """How many requests without any failure pass."""
    return math.ceil(LOWER / math.log((1 - rates.bad) / (1 - rates.good)))


def judge(
    requests: int,
    failures: int,
    rates: Rates,
    *,
    moments: int = LEAST_MOMENTS,
    old_seconds: Sequence[Floats] = (),
    new_seconds: Sequence[Floats] = (),
) -> CanaryFinding:
    """The finding on a new version so far; seconds as in ``is_slower``."""
    if not requests:
        return CanaryFinding("wait", "no requests reached the new revision")
    count = f"{failures} of {requests} requests failed ({failures / requests * 100:.3g} %, allowed {rates.good * 100:.3g} %)"
    word = judge_failures(requests, failures, rates, moments=moments)
    if word == "bad":
        return CanaryFinding("bad", count)
    if is_slower(old_seconds, new_seconds):
        fast, slow = find_median(old_seconds) * 1000, find_median(new_seconds) * 1000
        return CanaryFinding("bad", f"it answers in {slow:.3g} ms, the old revision in {fast:.3g} ms (medians)")
    if word == "good":
        return CanaryFinding("good", count)
    return CanaryFinding("wait", f"{count}; too few to judge, {count_clean(rates)} without a failure would do")
