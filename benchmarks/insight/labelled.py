"""Series of workloads whose class is known, because it was drawn: in per cent, a sample every five minutes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from weft.contracts.history import Floats
from weft.insight.classes import CLASSES
from weft.insight.classes.classify import Trees
from weft.insight.classes.measures import measure
from weft.insight.cycles import find_cycles

DAY, WEEK = 288, 2016
SEED = 3930
BREADTH = (0.6, 1.6)  # from which the trees have learnt
LEARNT = Path(__file__).with_name("learnt_classes.json")  # what the trees were learnt from, written by learn_classes
FINGERPRINT_SERIES = 14


def draw_measures(seed: int, series: int, breadth: tuple[float, float]) -> tuple[Floats, list[int]]:
    """The measures of so many series of each class, a row each, and the numbers of their classes; class after class in turn."""
    random = np.random.default_rng(seed)
    drawn = [draw_labelled(random, label, random.uniform(*breadth)) for _ in range(series) for label in CLASSES]
    return np.array([measure(values, find_cycles(values)) for values in drawn]), list(range(len(CLASSES))) * series


def digest(trees: Trees) -> str:
    """Of all arrays of the trees."""
    found = hashlib.sha256()
    for name in Trees.__struct_fields__:
        found.update(np.ascontiguousarray(getattr(trees, name)).tobytes())
    return found.hexdigest()


def fingerprint(measures: Floats) -> list[float]:
    """A number for each measure, by which to see that drawing or measuring has changed since the trees were learnt."""
    return [round(float(column), 4) for column in np.abs(measures).mean(axis=0)]


def draw_labelled(random: np.random.Generator, label: str, breadth: float) -> Floats:
    """``breadth``: about 1 as the trees have learnt it; more: noisier, with levels from wider ranges."""
    length = WEEK if random.random() < 0.7 else int(random.integers(2 * DAY, WEEK))
    values = _DRAW[label](random, length, breadth)
    if random.random() < 0.2 and label != "idle":  # now and then something else happens, too
        for begin in random.integers(0, length, int(random.integers(1, 4))):
            values[begin : begin + random.integers(1, 4)] += random.uniform(5, 30 * breadth)
    values = np.clip(values, 0, random.choice([100.0, 105.0]))
    if random.random() < 0.3:  # meters have steps
        grain = random.choice([0.05, 0.1, 0.4] if label == "idle" else [0.05, 0.1, 0.5])
        values = np.round(values / grain) * grain
    return values


def _vary(random: np.random.Generator, length: int) -> Floats:
    """Noise of a variance of 1: white, or with a memory."""
    steps = random.standard_normal(length)
    if random.random() < 0.5:
        return steps
    return _remember(steps, random.uniform(0.3, 0.95))


def _remember(steps: Floats, keep: float) -> Floats:
    """An autoregression of a variance of 1: the convolution with its powers, which end where they are small."""
    powers = keep ** np.arange(min(len(steps), int(np.log(1e-4) / np.log(keep)) + 1))
    return np.asarray(np.convolve(steps, powers)[: len(steps)] * np.sqrt(1 - keep**2))


def _draw_idle(random: np.random.Generator, length: int, breadth: float) -> Floats:
    level = random.choice([0.0, random.uniform(0, 1.7)])
    values = level + random.uniform(0.01, 0.25) * breadth * _vary(random, length)
    if random.random() < 0.3:  # nothing, and now and then a tick of the meter
        values = np.where(random.random(length) < random.uniform(0.001, 0.35), random.uniform(0.2, 1.2), level / 4)
    for begin in random.integers(0, length, int(random.integers(0, 10 * breadth))):
        values[begin : begin + random.integers(1, 3)] += random.exponential(4)
    for _ in range(int(random.integers(0, 3))):  # its level changes with the services that wait
        values[random.integers(0, length) :] += random.uniform(-0.4, 0.4)
    if random.random() < 0.05:
        values[:] = level
    return np.minimum(values, random.uniform(4, 40))


def _draw_steady(random: np.random.Generator, length: int, breadth: float) -> Floats:
    level = np.exp(random.uniform(np.log(4), np.log(98)))
    if random.random() < 0.05:
        return np.full(length, level)
    return level * (1 + random.uniform(0.003, 0.06) * breadth * _vary(random, length))


def _draw_cyclic(random: np.random.Generator, length: int, breadth: float) -> Floats:
    periods = (
        [DAY] if random.random() < 0.5 else [float(np.exp(random.uniform(np.log(12), np.log(min(400, length / 4)))))]
    )
    if random.random() < 0.25:
        periods.append(periods[0] / random.choice([2, 3, 4, 6, 7.3, 9.1]))
    wave = sum((random.uniform(0.3, 1) if at else 1.0) * _draw_wave(random, length, p) for at, p in enumerate(periods))
    wave = wave / wave.std()
    noise = random.uniform(0.05, 0.45 + 0.25 * breadth) * _vary(random, length)
    height = np.exp(random.uniform(np.log(1.5), np.log(25)))
    values = height * (wave + noise)
    return values - np.quantile(values, 0.02) + random.uniform(0, 40)


def _draw_wave(random: np.random.Generator, length: int, period: float) -> Floats:
    phase = (np.arange(length) / period + random.random()) % 1
    shape = random.choice(["cosine", "pulse", "peak", "saw", "hours"])
    if shape == "cosine":
        wave = np.cos(2 * np.pi * phase)
    elif shape == "pulse":
        wave = (phase < random.uniform(0.1, 0.5)).astype(float)
    elif shape == "peak":
        wave = np.exp(-(((phase - 0.5) / random.uniform(0.04, 0.15)) ** 2))
    elif shape == "saw":
        wave = phase
    else:  # office hours, as a slope up and a slope down
        wave = np.clip(np.minimum(phase - 0.3, 0.75 - phase) / 0.08, 0, 1)
    return np.asarray((wave - wave.mean()) / max(wave.std(), 1e-9))


def _draw_bursty(random: np.random.Generator, length: int, breadth: float) -> Floats:
    """Short and high, at irregular times, over a low floor; less than an eighth of the time."""
    floor = random.choice([0.0, random.uniform(0, 4), random.uniform(0, 10) * breadth])
    values = floor + (0.02 + 0.06 * breadth * floor) * random.random() * _vary(random, length)
    height = random.uniform(12, 100) + 2 * floor
    longest = int(random.integers(2, 9))
    share = np.exp(random.uniform(np.log(0.006), np.log(0.10)))
    bursts = max(6, round(share * length / ((1 + longest) / 2)))
    sharpness = random.uniform(0.3, 1.0)
    for begin in random.integers(0, length, bursts):
        values[begin : begin + random.integers(1, longest + 1)] += height * random.uniform(1 - sharpness, 1)
    return values


def _draw_batch(random: np.random.Generator, length: int, breadth: float) -> Floats:
    """Long on, long off, as jobs come; some of them use less for a while."""
    off, on = random.choice([random.uniform(0, 1), random.uniform(0, 5) * breadth]), random.uniform(35, 105)
    mean_on, mean_off = np.exp(random.uniform(np.log(15), np.log(250), 2))
    varied, partly = random.uniform(0, 0.12) * breadth, random.choice([0.0, random.uniform(0, 0.6)])
    values, at, runs = np.full(length, off), int(random.exponential(mean_off)) % (length // 3), 0
    while at < length or runs < 2:
        if at >= length:
            at = int(random.integers(0, length // 2))
        span = 6 + int(random.exponential(mean_on))
        values[at : at + span] = on * random.uniform(1 - varied, 1)
        if random.random() < partly:
            begin = at + int(random.integers(0, span))
            values[begin : min(at + span, begin + span // 2)] = on * random.uniform(0.15, 0.8)
        at, runs = at + span + 6 + int(random.exponential(mean_off)), runs + 1
    wobble = random.uniform(0.002, 0.06) * breadth * _vary(random, length)
    return values * (1 + wobble) + random.uniform(0.05, 1) * random.standard_normal(length)


def _draw_growing(random: np.random.Generator, length: int, breadth: float) -> Floats:
    """A trend, straight or ever steeper, or a leak whose process is started again."""
    low, rise = random.uniform(0, 30), random.uniform(8, 70)
    at = np.linspace(0, 1, length)
    kind = random.choice(["line", "curve", "leak", "leak"])
    if kind == "line":
        shape = at
    elif kind == "curve":
        shape = np.expm1(random.uniform(1, 4) * at)
    else:
        teeth = random.integers(2, 6)
        widths = random.uniform(0.6, 1.4, teeth)
        edges = np.concatenate(([0], np.cumsum(widths / widths.sum())))
        place = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, teeth - 1)
        shape = (at - edges[place]) * (1 if random.random() < 0.6 else 1 / (edges[place + 1] - edges[place]))
    shape = shape / shape.max()
    noise = random.uniform(0.01, 0.12 + 0.2 * breadth) * shape.std() * _vary(random, length)
    if random.random() < 0.25:  # with days in it, which are less than the trend
        noise = noise + random.uniform(0.1, 0.45) * shape.std() * _draw_wave(random, length, DAY)
    return low + rise * (shape + noise)


def _draw_irregular(random: np.random.Generator, length: int, breadth: float) -> Floats:
    """Wandering, heavy noise, walks with spikes, and spikes at times of which nothing is known over a wandering floor."""
    kind = random.choice(["walk", "slow", "noise", "spiky walk", "levels"])
    if kind == "noise":
        sigma = random.uniform(0.35, 0.9)
        return np.exp(np.log(random.uniform(5, 30)) + sigma * _vary(random, length))
    if kind == "levels":
        values, at = np.zeros(length), 0
        while at < length:
            span = 4 + int(random.exponential(random.choice([15, 60])))
            values[at : at + span] = np.clip(45 + 22 * random.standard_normal(), 3, 95)
            at += span
        return values + random.uniform(0.5, 6) * breadth * _vary(random, length)
    if kind == "slow":
        wander = _remember(random.standard_normal(length), random.uniform(0.85, 0.998))
    else:
        wander = _reflect(np.cumsum(random.standard_normal(length)) * random.uniform(0.02, 0.15))
    noise = random.uniform(0.02, 0.3) * breadth * random.standard_normal(length)
    values = random.uniform(15, 60) * (1 + random.uniform(0.22, 0.5) * (wander + noise))
    if kind == "spiky walk":
        for begin in random.integers(0, length, int(random.integers(5, 60))):
            values[begin : begin + random.integers(1, 8)] += random.uniform(10, 50)
    return values


def _reflect(walk: Floats) -> Floats:
    """Between -2 and 2: what would leave comes back."""
    return np.asarray(np.abs((walk - 2) % 8 - 4) - 2)


_DRAW = {
    "idle": _draw_idle,
    "steady": _draw_steady,
    "cyclic": _draw_cyclic,
    "bursty": _draw_bursty,
    "batch": _draw_batch,
    "growing": _draw_growing,
    "irregular": _draw_irregular,
}
assert tuple(_DRAW) == CLASSES
