"""Pictures of a run as SVG, written by hand: allocation and fragmentation over what has arrived. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from weft.scheduler.simulate.run import FabricState

WIDTH, HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 20, 56, 46
_LINES = (
    ("gpu allocated", "#1a6fb0"),
    ("cpu allocated", "#3c9a5f"),
    ("memory allocated", "#8c8c8c"),
    ("gpu fragmented", "#c4452f"),
)


def draw_curves(points: Sequence[FabricState], title: str, *, gpus: bool) -> str:
    """The picture: percent of all there is, over GPUs asked for in percent of all ``gpus``, or, without any, over workloads
    decided on."""
    lines = [line for line in _LINES if gpus or not line[0].startswith("gpu")]
    axis = "GPUs requested, % of all" if gpus else "workloads decided on, %"
    most = max(100.0, *(point.arrived_percent for point in points)) if points else 100.0
    across, down = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> str:
        return f"{_LEFT + across * x / most:.1f},{_TOP + down * (1 - min(y, 100.0) / 100):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for percent in range(0, 101, 20):
        left, y = place(0, percent).split(",")
        parts.append(f'<path d="M{left},{y}H{WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end" fill="#555">{percent} %</text>')
    for percent in range(0, int(most) + 1, 10 if most <= 140 else 50):
        x, bottom = place(percent, 0).split(",")
        parts.append(f'<text x="{x}" y="{float(bottom) + 18:.1f}" text-anchor="middle" fill="#555">{percent}</text>')
    parts.append(f'<text x="{_LEFT + across / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#555">{axis}</text>')
    for number, (name, color) in enumerate(lines):
        line = " ".join(place(point.arrived_percent, _value(point, name)) for point in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        start = _LEFT + number * 160
        parts.append(f'<path d="M{start},38h18" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="{start + 24}" y="42">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _value(point: FabricState, name: str) -> float:
    resource, _, what = name.partition(" ")
    return point.fragmented_gpu_percent if what == "fragmented" else point.allocation_percent[resource]
