"""A picture of the calendar, which leases and workloads have which node, and when: SVG, written by hand. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from weft.cli.output.time_scale import TimeScale, find_span, make_scale

WIDTH, BAR, GAP = 960, 20, 8
_LEFT, _RIGHT, _TOP, _BOTTOM = 110, 20, 40, 30
_STEPS = 8
_LETTER = 6.2  # average width of a letter of a bar's name
_COLORS = {
    "reservation": "#1a6fb0",
    "deadline": "#8a5fb0",
    "immediate": "#3c9a5f",
    "best-effort": "#c4902f",
    "unlimited": "#8c8c8c",
}


def draw_gantt(entries: Sequence[Mapping[str, Any]], now: float) -> str:
    """A bar for each of ``entries`` (workload, node, project, start, end, kind, state; seconds since 1970), from ``now`` to the
    last end. Those that overlap on a node, names included, lie below each other. A suspended one is hatched."""
    scale = make_scale(*find_span(entries, now), _STEPS)
    lanes: list[tuple[str, float]] = []  # of each the node, and up to which x it is taken
    bars: list[str] = []
    tops: dict[str, int] = {}  # of each node's first lane
    for one in sorted(entries, key=lambda one: (one["node"], one["start"])):
        left, right = _x(scale, max(one["start"], now)), _x(scale, one["end"] or scale.last)
        what = f"{one['project']}/{one['workload']}" if one["project"] else str(one["workload"])
        label, color, taken = _place_name(left, max(left + 2.0, right), len(what) * _LETTER)
        lane = next((i for i, (node, until) in enumerate(lanes) if node == one["node"] and until <= taken[0]), None)
        if lane is None:
            lane = len(lanes)
            lanes.append((one["node"], 0.0))
        lanes[lane] = (one["node"], taken[1])
        top = _TOP + lane * (BAR + GAP)
        tops.setdefault(one["node"], top)
        fill = _COLORS.get(one["kind"], "#8c8c8c")
        is_held = one.get("state") == "Suspended"
        style = (
            f'fill="{fill}" fill-opacity="0.35" stroke="{fill}" stroke-dasharray="4"' if is_held else f'fill="{fill}"'
        )
        bars.append(
            f'<rect x="{left:.1f}" y="{top}" width="{max(2.0, right - left):.1f}" height="{BAR}" rx="3" {style}>'
            f"<title>{escape(what)}</title></rect>"
            f'<text x="{label:.1f}" y="{top + 14}" fill="{"#222" if is_held else color}" font-size="11">{escape(what)}</text>'
        )
    height = _TOP + max(1, len(lanes)) * (BAR + GAP) + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        *_draw_ticks(scale, height),
        *(f'<text x="8" y="{top + 14}">{escape(node)}</text>' for node, top in tops.items()),
        *_draw_legend(),
        *bars,
        f'<path d="M{_x(scale, now):.1f},{_TOP - 8}V{height - _BOTTOM}" stroke="#c4452f"><title>now</title></path>',
        f'<text x="{_x(scale, now):.1f}" y="{_TOP - 10}" text-anchor="middle" fill="#c4452f" font-size="10">now</text>',
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(scale: TimeScale, at: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * scale.place(at)


def _place_name(left: float, right: float, size: float) -> tuple[float, str, tuple[float, float]]:
    """Place a bar's name: where it begins, its colour, and from where to where bar and name reach: in the bar, else behind it, else
    before it."""
    if size + 8 <= right - left:
        return left + 4, "#fff", (left, right)
    if right + 4 + size <= WIDTH:
        return right + 4, "#222", (left, right + 8 + size)
    return left - 4 - size, "#222", (left - 8 - size, right)


def _draw_ticks(scale: TimeScale, height: int) -> list[str]:
    parts, before = [], None
    for tick in scale.ticks:
        x = _x(scale, tick)
        parts.append(f'<path d="M{x:.1f},{_TOP - 8}V{height - _BOTTOM}" stroke="#ddd"/>')
        text = scale.label(tick, before)
        parts.append(f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle" fill="#555">{text}</text>')
        before = tick
    return parts


def _draw_legend() -> list[str]:
    return [
        f'<rect x="{_LEFT + 130 * i}" y="8" width="12" height="12" fill="{color}"/>'
        f'<text x="{_LEFT + 130 * i + 18}" y="18">{kind}</text>'
        for i, (kind, color) in enumerate(_COLORS.items())
    ]
