"""A Migration as a picture, SVG written by hand: how fast the guest wrote and the wire carried, what was sent and what was
left, and when it stood still. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from weft.cli.migration.description import format_pause
from weft.kinds.fields.cells import dig
from weft.objects.quantity import format_bytes

Object = Mapping[str, Any]
Point = tuple[float, float]
WIDTH, HEIGHT = 720, 460
_LEFT, _RIGHT, _PANEL, _TOPS = 84, 20, 150, (60, 260)
_ACROSS = WIDTH - _LEFT - _RIGHT
_TICKS = 4


def draw_migration(migration: Object) -> str:
    """The picture; empty where fewer than two samples were taken."""
    samples: Sequence[Mapping[str, Any]] = dig(migration, "status.samples", [])
    if len(samples) < 2:
        return ""
    actual = dig(migration, "status.actual") or {}
    seconds = [sample["elapsed_ms"] / 1000 for sample in samples]
    pause, end = actual.get("pause_ms", 0) / 1000, max(actual.get("duration_seconds", 0.0), seconds[-1])
    sent = [(at, float(sample.get("sent_bytes", 0))) for at, sample in zip(seconds, samples, strict=True)]
    left = [(at, float(sample.get("remaining_bytes", 0))) for at, sample in zip(seconds, samples, strict=True)]
    dirty = [(at, float(sample.get("dirty_bytes_per_second", 0))) for at, sample in zip(seconds, samples, strict=True)]
    dirty = [point for point in dirty if point[1]]  # 0 is not known yet
    wire = [
        (b[0], (b[1] - a[1]) / (b[0] - a[0])) for a, b in zip([(0.0, 0.0), *sent], sent, strict=False) if b[0] > a[0]
    ]
    mode = dig(migration, "status.plan.mode", "")
    way = f"{dig(migration, 'status.source', '?')} → {dig(migration, 'status.target', '?')}"
    title = f"{dig(migration, 'spec.workload', '')}  {way}  {mode}  {end:.1f} s"
    title += f", downtime {format_pause(pause * 1000)}" if pause else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    if pause:
        start = _LEFT + _ACROSS * max(0.0, end - pause) / end
        band = max(1.5, _ACROSS * pause / end)
        across = f'<rect x="{start:.1f}" width="{band:.1f}" height="{_PANEL}" fill="#f3c9c1"'
        parts += [f'{across} y="{top}"/>' for top in _TOPS]
    parts += _draw_panel(
        _TOPS[0], end, "/s", [("on the wire", "#1a6fb0", wire), ("written by the guest", "#c4452f", dirty)]
    )
    parts += _draw_panel(_TOPS[1], end, "", [("sent", "#1a6fb0", sent), ("left", "#3c9a5f", left)])
    for tick in range(_TICKS + 1):
        x, bottom = _LEFT + _ACROSS * tick / _TICKS, _TOPS[1] + _PANEL + 18
        parts.append(
            f'<text x="{x:.1f}" y="{bottom}" text-anchor="middle" fill="#555">{end * tick / _TICKS:.1f}</text>'
        )
    axis = "seconds since the start" + ("; the band is the downtime" if pause else "")
    parts.append(f'<text x="{_LEFT + _ACROSS / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#555">{axis}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw_panel(top: int, end: float, unit: str, lines: Sequence[tuple[str, str, Sequence[Point]]]) -> list[str]:
    most = max((value for _, _, points in lines for _, value in points), default=0.0) or 1.0
    parts = []
    for tick in range(_TICKS + 1):
        y = top + _PANEL * (1 - tick / _TICKS)
        parts.append(f'<path d="M{_LEFT},{y:.1f}H{WIDTH - _RIGHT}" stroke="#ddd"/>')
        text = f"{format_bytes(most * tick / _TICKS)}{unit}"
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{text}</text>')
    for number, (name, color, points) in enumerate(lines):
        drawn = " ".join(f"{_LEFT + _ACROSS * x / end:.1f},{top + _PANEL * (1 - y / most):.1f}" for x, y in points)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{color}" stroke-width="2"/>')
        start = _LEFT + number * 160
        parts.append(f'<path d="M{start},{top - 14}h18" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="{start + 24}" y="{top - 10}">{name}</text>')
    return parts
