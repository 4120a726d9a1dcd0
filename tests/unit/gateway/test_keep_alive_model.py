"""How long idle instances are kept: learnt from arrivals, and better than a fixed time for the same memory."""

from __future__ import annotations

import random

import pytest
from benchmarks import keep_alive
from benchmarks.keep_alive import DATA, Arrival, deal, match, read_trace, simulate

from weft.gateway.function.instance.keep_alive_model import FIXED_SECONDS, Choice, Fixed, Learnt


def feed(learnt: Learnt, gaps: list[float], seconds: float = 0.1) -> float:
    now = 1000.0
    for gap in gaps:
        learnt.begin(now)
        now += seconds
        learnt.end(now)
        now += gap
    return now


def test_a_function_that_is_not_known_is_kept_for_a_fixed_time() -> None:
    learnt = Learnt()
    assert learnt.choose(0.0) == Choice(FIXED_SECONDS)
    now = feed(learnt, [5.0, 5.0, 5.0])
    assert learnt.choose(now) == Choice(FIXED_SECONDS)


def test_what_comes_every_few_minutes_is_kept_until_it_comes_and_not_for_much_longer() -> None:
    learnt = Learnt(worth_seconds=600)
    now = feed(learnt, [170.0, 200.0, 180.0, 190.0] * 10)
    choice = learnt.choose(now)
    assert 200 <= choice.idle_seconds < 600 and not choice.warm_after


def test_what_comes_by_the_clock_is_ended_and_had_ready_again_in_time() -> None:
    learnt = Learnt(worth_seconds=600)
    now = feed(learnt, [3600.0] * 12)
    choice = learnt.choose(now - 3590)
    assert choice.idle_seconds == 0.0
    assert 600 <= choice.warm_after < 3600 < choice.warm_until


def test_instances_that_were_needed_once_and_never_again_are_worth_less_and_less() -> None:
    busy = Learnt()
    draw = random.Random(5)
    now = 0.0
    for _ in range(200):  # one at a time, a second apart
        busy.begin(now)
        busy.end(now + 0.1)
        now += draw.expovariate(1.0)
    before = busy.choose(now)
    for _ in range(40):  # a burst, once
        busy.begin(now)
    for _ in range(40):
        busy.end(now + 0.5)
    for _ in range(600):
        now += draw.expovariate(1.0)
        busy.begin(now)
        busy.end(now + 0.1)
    assert busy.choose(now).idle_seconds < before.idle_seconds


def test_the_old_counts_less() -> None:
    learnt = Learnt(worth_seconds=600)
    now = feed(learnt, [20.0] * 50)
    short = learnt.choose(now).idle_seconds
    for _ in range(40):
        now += 1500.0
        learnt.begin(now)
        learnt.end(now)
        learnt.choose(now)
    long = learnt.choose(now)
    assert max(long.idle_seconds, long.warm_until) > 1500 > short


def test_the_simulation_counts_cold_starts_and_memory_right() -> None:
    arrivals = [Arrival(0.0, 0, 1.0), Arrival(0.5, 0, 1.0), Arrival(2.0, 0, 1.0), Arrival(700.0, 0, 1.0)]
    spent = simulate(arrivals, lambda: Fixed(600.0))
    assert spent.cold == 3  # the first, one beside it, and after 600 idle seconds
    # 0–1 busy, then idle for 600; 0.5–1.5 busy, idle to 2, busy to 3, idle for 600; 700–701 busy
    assert spent.memory == pytest.approx(1 + 600 + 1 + 0.5 + 1 + 600 + 1)


@pytest.mark.skipif(not DATA.exists(), reason="the Azure LLM trace is not here (WEFT_DATA)")
def test_fewer_cold_starts_than_ten_fixed_minutes_for_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_alive, "HALVINGS", 8)  # nearer to the same memory it is better still: make bench
    arrivals = deal(read_trace(), 50, 1.0, 1, lambda tokens: 0.2)
    fixed = simulate(arrivals, Fixed)
    _, learnt = match(arrivals, fixed.memory)
    assert learnt.memory <= fixed.memory
    assert learnt.cold < fixed.cold
    shipped = simulate(arrivals, Learnt)
    assert shipped.cold < fixed.cold and shipped.memory < 1.02 * fixed.memory
