"""A picture of who has which node, and when: SVG, written by hand. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

WIDTH, BAR, GAP = 960, 20, 8
_LEFT, _TOP, _BOTTOM = 110, 40, 30
_TICKS = 8
_COLORS = {
    "reservation": "#1a6fb0",
    "deadline": "#8a5fb0",
    "immediate": "#3c9a5f",
    "best-effort": "#c4902f",
    "unlimited": "#8c8c8c",
}


def draw_gantt(entries: Sequence[Mapping[str, Any]], now: float) -> str:
    """A bar for each of ``entries`` (workload, node, project, start, end, kind; seconds since 1970), from ``now`` to the last end.
    Those that overlap on a node lie below each other."""
    last = max([now + 3600.0, *(one["end"] for one in entries if one["end"])])
    across = WIDTH - _LEFT - 20

    def place(at: float) -> float:
        return float(_LEFT + across * (min(max(at, now), last) - now) / (last - now))

    lanes: list[tuple[str, float]] = []  # of each the node, and until when it is taken
    bars: list[str] = []
    y: dict[str, int] = {}  # of each node its first lane
    for one in sorted(entries, key=lambda one: (one["node"], one["start"])):
        begin, end = max(one["start"], now), one["end"] or last
        lane = next((i for i, (node, until) in enumerate(lanes) if node == one["node"] and until <= begin), None)
        if lane is None:
            lane = len(lanes)
            lanes.append((one["node"], end))
        lanes[lane] = (one["node"], end)
        top = _TOP + lane * (BAR + GAP)
        y.setdefault(one["node"], top)
        wide = max(2.0, place(end) - place(begin))
        what = escape(f"{one['project']}/{one['workload']}" if one["project"] else str(one["workload"]))
        bars.append(
            f'<rect x="{place(begin):.1f}" y="{top}" width="{wide:.1f}" height="{BAR}" rx="3" '
            f'fill="{_COLORS.get(one["kind"], "#8c8c8c")}"><title>{what}</title></rect>'
            f'<text x="{place(begin) + 4:.1f}" y="{top + 14}" fill="#fff" font-size="11">{what}</text>'
        )
    height = _TOP + max(1, len(lanes)) * (BAR + GAP) + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    form = "%H:%M" if last - now <= 86400 else "%d %b %H:%M"
    for tick in range(_TICKS + 1):
        at = now + (last - now) * tick / _TICKS
        x = place(at)
        parts.append(f'<path d="M{x:.1f},{_TOP - 8}V{height - _BOTTOM}" stroke="#ddd"/>')
        text = datetime.fromtimestamp(at).astimezone().strftime(form)
        parts.append(f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle" fill="#555">{text}</text>')
    parts += [f'<text x="8" y="{top + 14}">{escape(node)}</text>' for node, top in y.items()]
    legend = [
        f'<rect x="{_LEFT + 130 * i}" y="8" width="12" height="12" fill="{color}"/>'
        f'<text x="{_LEFT + 130 * i + 18}" y="18">{kind}</text>'
        for i, (kind, color) in enumerate(_COLORS.items())
    ]
    return "\n".join([*parts, *legend, *bars, "</svg>"]) + "\n"
