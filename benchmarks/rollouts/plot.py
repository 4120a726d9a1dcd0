"""Which versions answered over time, and how many requests failed, as SVG. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from tests.cluster.load import Request

WIDTH, HEIGHT, STEP_SECONDS = 720, 420, 2.0
_LEFT, _RIGHT = 56, 20
_VERSIONS = (84.0, 180.0)  # top and height of each panel
_FAILURES = (310.0, 60.0)
_COLORS = ("#1a6fb0", "#8dbbe0", "#3c9a5f", "#e0b54a", "#8a63b3", "#8c8c8c")
_BAD = "#c4452f"


class Mark(NamedTuple):
    """What began at a time, in unix seconds."""

    at: float
    words: str


def draw(requests: Sequence[Request], marks: Sequence[Mark], title: str) -> str:
    """The picture: requests a second by what answered, stacked, and those that failed."""
    first = min(one.began for one in requests)
    count = int((max(one.began for one in requests) - first) / STEP_SECONDS)  # the last step isn't over
    names = sorted({one.said for one in requests if one.said and not one.failed})
    answered = {name: [0] * count for name in names}
    failed = [0] * count
    for one in requests:
        step = int((one.began - first) / STEP_SECONDS)
        if step < count and one.failed:
            failed[step] += 1
        elif step < count and one.said:
            answered[one.said][step] += 1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    below = [0.0] * count
    most = max(sum(answered[name][step] for name in names) for step in range(count))
    parts += _draw_axis(_VERSIONS, most / STEP_SECONDS, "answers a second, by what answered")
    for number, name in enumerate(names):
        above = [low + more for low, more in zip(below, answered[name], strict=True)]
        color = _COLORS[number % len(_COLORS)]
        parts.append(_draw_area(below, above, most, count, color))
        at = _LEFT + number * 130
        parts.append(f'<rect x="{at}" y="34" width="12" height="12" fill="{color}"/>')
        parts.append(f'<text x="{at + 18}" y="45">{escape(name)}</text>')
        below = above
    parts += _draw_axis(_FAILURES, max(*failed, 1) / STEP_SECONDS, "failed requests a second")
    parts.append(_draw_area([0.0] * count, [float(one) for one in failed], max(*failed, 1), count, _BAD, _FAILURES))
    for number, mark in enumerate(marks):
        x = _place(mark.at - first, count)
        words = f'x="{x - 3:.1f}" text-anchor="end"' if x > 0.8 * WIDTH else f'x="{x + 3:.1f}"'
        parts.append(f'<path d="M{x:.1f},72V370" stroke="#333" stroke-dasharray="3 3"/>')
        parts.append(f'<text {words} y="{60 + 11 * (number % 3)}" font-size="11">{escape(mark.words)}</text>')
    every = next(one for one in (10, 30, 60, 120, 300, 600) if count * STEP_SECONDS / one <= 12 or one == 600)
    for seconds in range(0, int(count * STEP_SECONDS) + 1, every):
        parts.append(
            f'<text x="{_place(seconds, count):.1f}" y="388" text-anchor="middle" fill="#555">{seconds}</text>'
        )
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#555">seconds</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _place(seconds: float, count: int) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * seconds / (count * STEP_SECONDS)


def _draw_axis(panel: tuple[float, float], most: float, words: str) -> list[str]:
    top, height = panel
    parts = [f'<text x="{_LEFT}" y="{top + height + 16 if top < 200 else top - 6}" fill="#555">{words}</text>']
    for share in (0.0, 0.5, 1.0):
        y = top + height * (1 - share)
        parts.append(f'<path d="M{_LEFT},{y:.1f}H{WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{most * share:.3g}</text>')
    return parts


def _draw_area(
    below: Sequence[float],
    above: Sequence[float],
    most: float,
    count: int,
    color: str,
    panel: tuple[float, float] = _VERSIONS,
) -> str:
    top, height = panel

    def points(values: Sequence[float]) -> list[str]:
        found = []
        for step, value in enumerate(values):  # as steps: what is counted is of the whole of each
            y = top + height * (1 - value / most)
            found += [
                f"{_place(step * STEP_SECONDS, count):.1f},{y:.1f}",
                f"{_place((step + 1) * STEP_SECONDS, count):.1f},{y:.1f}",
            ]
        return found

    return f'<polygon points="{" ".join(points(above) + points(below)[::-1])}" fill="{color}"/>'
