"""How often the verdict on a canary is wrong, and after how many requests it comes: versions of known failure rates, drawn; and
the same for versions that answer as fast as the old one, or more slowly."""

from __future__ import annotations

import numpy as np

from benchmarks.measurement import Figure, Measurement
from weft.controllers.deployment.requests import WARM_SECONDS, WINDOW_SECONDS
from weft.insight.canary import LEAST_MOMENTS, LOWER, UPPER, Rates, choose_rates, count_clean, judge_failures
from weft.insight.latency import SLOWER, is_slower

RUNS, SEED = 2000, 41
THRESHOLD = 0.999
MOST_WRONG = 0.05
REQUESTS_PER_SECOND = 20
LATENCY_RUNS, OLD, NODES, WATCHED_SECONDS = 400, 5, 3, 600.0
# What a mean of a window has of its instance, of its node, of its moment on the whole machine, and of its own: as e to the power of
# a normal number with this deviation.
SPREADS = {"instance": 0.1, "node": 0.1, "moment": 0.3, "own": 0.2}
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


def time_latency(factor: float, draw: np.random.Generator) -> float | None:
    """After how many seconds one new instance that takes ``factor`` times as long is found slower than OLD old ones; None if it
    isn't. It is looked at after each window."""
    windows = int((WATCHED_SECONDS - WARM_SECONDS) / WINDOW_SECONDS)
    shape = {
        "instance": (OLD + 1, 1, 1),
        "node": (1, NODES, 1),
        "moment": (1, 1, windows),
        "own": (OLD + 1, NODES, windows),
    }
    seconds = 0.1 * np.exp(sum(draw.normal(0.0, SPREADS[name], size) for name, size in shape.items()))
    seconds[0] *= factor
    for count in range(1, windows + 1):
        if is_slower(list(seconds[1:, :, :count]), [seconds[0, :, :count]]):
            return WARM_SECONDS + count * WINDOW_SECONDS
    return None


def describe_latency(factor: float, words: str, draw: np.random.Generator, *, is_wrong: bool) -> Figure:
    runs = [time_latency(factor, draw) for _ in range(LATENCY_RUNS)]
    found = [seconds for seconds in runs if seconds is not None]
    share = (len(found) if is_wrong else LATENCY_RUNS - len(found)) / LATENCY_RUNS
    return Figure(
        f"latency: {words}",
        f"{100 * share:.1f} % wrongly {'rolled back' if is_wrong else 'promoted'}",
        f"found after {np.mean(found):.0f} s (p95 {np.percentile(found, 95):.0f} s)" if found else "–",
        goal=f"≤ {100 * MOST_WRONG:g} % wrong",
        kept=share <= MOST_WRONG,
    )


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
    figures += [
        describe_latency(1.0, "as fast", draw, is_wrong=True),
        describe_latency(2.0, "takes twice as long", draw, is_wrong=False),
    ]
    return Measurement(
        "canary",
        f"{RUNS} simulated runs each, success threshold {100 * THRESHOLD:g} %: allowed {100 * rates.good:g} %, bad "
        f"{100 * rates.bad:g} %, a verdict without failures after {count_clean(rates)} requests; looked at after each request, "
        f"{REQUESTS_PER_SECOND} a second, with failures in {LEAST_MOMENTS} different seconds at least before a rollback. "
        f"Latency: {LATENCY_RUNS} runs each of one new instance beside {OLD} old ones, measured by {NODES} nodes, for "
        f"{WATCHED_SECONDS:.0f} s, the first {WARM_SECONDS:.0f} s left out; {SLOWER:g} times as slow is allowed.",
        figures,
    )
