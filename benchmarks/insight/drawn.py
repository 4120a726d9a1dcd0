"""Weeks of series with known cycles, or with none: drawn, so that the truth is known."""

from __future__ import annotations

import numpy as np

from weft.contracts.history import Floats

WEEK = 2016
SHORTEST, LONGEST = 8, 504  # samples of a cycle


def draw(random: np.random.Generator) -> tuple[Floats, list[float]]:
    """A series, and the periods of its cycles: none in half of them, else one or two."""
    count = 0 if random.random() < 0.5 else int(random.integers(1, 3))
    values = _draw_ground(random, quiet=count > 0)
    spread, periods = values.std(), []
    for _ in range(count):
        periods.append(float(np.exp(random.uniform(np.log(SHORTEST), np.log(LONGEST)))))
        values = values + random.uniform(0.4, 3) * spread * _draw_wave(random, periods[-1])
    if random.random() < 0.4:
        values = values + np.linspace(0, 4 * random.standard_normal() * values.std(), WEEK)
    if random.random() < 0.3:
        begin = random.integers(0, WEEK - 100)
        values[begin : begin + random.integers(5, 100)] = np.nan
    return values, periods


def _draw_ground(random: np.random.Generator, *, quiet: bool) -> Floats:
    """What the series would be without its cycles; ``quiet``: without bursts and steps."""
    steps = random.standard_normal(WEEK)
    kind = random.choice(["white", "slow", "walk"] if quiet else ["white", "slow", "walk", "bursts", "steps"])
    if kind == "white":
        return steps
    if kind == "walk":
        return np.cumsum(steps)
    if kind == "slow":
        keep, values = random.uniform(0.5, 0.99), np.zeros(WEEK)
        for at in range(1, WEEK):
            values[at] = keep * values[at - 1] + steps[at]
        return values
    values = 0.4 * steps
    if kind == "bursts":
        for begin in random.integers(0, WEEK, random.integers(5, 40)):
            values[begin : begin + random.integers(2, 40)] += random.uniform(2, 8)
    else:
        for begin in random.integers(0, WEEK, random.integers(2, 10)):
            values[begin:] += 3 * random.standard_normal()
    return values


def _draw_wave(random: np.random.Generator, period: float) -> Floats:
    """Of a mean of 0 and a variance of 1."""
    phase = (np.arange(WEEK) / period + random.random()) % 1
    shape = random.choice(["cosine", "pulse", "peak", "saw"])
    if shape == "cosine":
        wave = np.cos(2 * np.pi * phase)
    elif shape == "pulse":
        wave = (phase < random.uniform(0.2, 0.5)).astype(float)
    elif shape == "peak":
        wave = np.exp(-(((phase - 0.5) / 0.08) ** 2))
    else:
        wave = phase
    return np.asarray((wave - wave.mean()) / wave.std())
