"""How often the verdict on a canary is wrong, and after how many requests it comes: versions of known failure rates, drawn."""

from __future__ import annotations

import numpy as np

from benchmarks.measurement import Figure, Measurement
from weft.insight.canary import LEAST_MOMENTS, LOWER, UPPER, Rates, choose_rates, count_clean, judge_failures

RUNS, SEED = 2000, 41
THRESHOLD = 0.999
MOST_WRONG = 0.05
REQUESTS_PER_SECOND = 20
_CUT_OFF = 12  # so many times the clean number of requests; what is undecided then waits for people


def run(rate: float, rates: Rates, draw: np.random.Generator) -> tuple[str, int]:
    """The verdict on a version that fails at ``rate``, and the number of requests it took: looked at after each of them."""
    most = _CUT_OFF * count_clean(rates)
    failed = draw.random(most) < rate
    failures = np.cumsum(failed)
    requests = np.arange(1, most + 1)
    # The same as ``judge_failures`` of each prefix: only where its weight crosses a bound need it be asked.
    weight = failures * np.log(rates.bad / rates.good) + (requests - failures) * np.log(
        (1 - rates.bad) / (1 - rates.good)
    )
    for place in np.flatnonzero((weight >= UPPER) | (weight <= LOWER)):
        seconds = np.unique(np.flatnonzero(failed[: place + 1]) // REQUESTS_PER_SECOND)
        word = judge_failures(int(place) + 1, int(failures[place]), rates, moments=len(seconds))
        if word != "wait":
            return word, int(place) + 1
    return "wait", most


def measure() -> Measurement:
    draw, rates = np.random.default_rng(SEED), choose_rates(THRESHOLD)
    figures = []
    for rate, words, wrong in (
        (0.0002, "good: 0.02 % fail", "bad"),
        (rates.good, "just good enough: 0.1 % fail", "bad"),
        (rates.bad, "bad: 1 % fail", "good"),
        (0.05, "very bad: 5 % fail", "good"),
    ):
        runs = [run(rate, rates, draw) for _ in range(RUNS)]
        needed = [requests for _, requests in runs]
        share = sum(word == wrong for word, _ in runs) / RUNS
        undecided = sum(word == "wait" for word, _ in runs) / RUNS
        figures.append(
            Figure(
                words,
                f"{100 * share:.1f} % wrongly {'rolled back' if wrong == 'bad' else 'promoted'}",
                f"{np.mean(needed):.0f} requests (p95 {np.percentile(needed, 95):.0f})",
                f"{100 * undecided:.1f} % undecided",
                f"≤ {100 * MOST_WRONG:g} % wrong",
                share <= MOST_WRONG,
            )
        )
    return Measurement(
        "canary",
        f"{RUNS} simulated runs each, success threshold {100 * THRESHOLD:g} %: allowed {100 * rates.good:g} %, bad "
        f"{100 * rates.bad:g} %, a verdict without failures after {count_clean(rates)} requests; looked at after each request, "
        f"{REQUESTS_PER_SECOND} a second, with failures in {LEAST_MOMENTS} different seconds at least before a rollback.",
        figures,
    )
