"""Samples as signs: a line of blocks, or a plot with both axes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from weft.objects.quantity import format_bytes

Value = float | None
_EIGHTHS = "▁▂▃▄▅▆▇█"
_POWERS = {0: "", 3: "k", 6: "M", 9: "G"}


def format_value(value: Value, unit: str) -> str:
    """``0.98``, ``12.4 MiB``, ``3.1 MiB/s``, ``0.4 ms``; ``–`` for none."""
    if value is None:
        return "–"
    if unit in ("bytes", "bytes/s"):
        return format_bytes(value) + unit.removeprefix("bytes")
    if unit == "s":
        return f"{value * 1000:.2f} ms"
    if unit == "share":
        return f"{value * 100:.1f}%"
    if unit == "celsius":
        return f"{value:.1f} °C"
    if unit.endswith("/s"):
        power = next((power for power in (9, 6, 3) if value >= 10**power), 0)
        return f"{value / 10**power:.3g}{_POWERS[power]}/s"
    return f"{value:.2f}" if unit == "cores" else f"{value:.4g}"


def draw_sparkline(values: Sequence[Value], width: int) -> str:
    """``values`` in at most ``width`` signs, each the greatest of its part; a gap is a space. The lowest sign is zero, or
    the least value where that is less."""
    peaks = gather(values, width)
    top, floor = max((peak for peak in peaks if peak is not None), default=0.0), _find_floor(peaks)
    return "".join(" " if peak is None else _EIGHTHS[_height(peak - floor, top - floor, 7)] for peak in peaks)


def draw_plot(times: Sequence[float], values: Sequence[Value], unit: str, width: int, height: int) -> list[str]:
    """Lines of a plot of at most ``width`` signs: the greatest values above an axis of local times. The axis is at zero, or at the
    least value where that is less."""
    top, floor = max((value for value in values if value is not None), default=0.0), _find_floor(values)
    marks = [format_value(floor + (top - floor) * part / height, unit) for part in range(height, 0, -1)]
    lowest = format_value(floor, unit) if floor else "0"
    margin = max(map(len, (*marks, lowest)))
    peaks = gather(values, max(1, width - margin - 3))
    heights = [0 if peak is None else max(1, _height(peak - floor, top - floor, 8 * height)) for peak in peaks]
    lines = []
    for row in range(height - 1, -1, -1):
        mark = marks[height - 1 - row] if row % 2 == (height - 1) % 2 else ""
        signs = [" " if one <= 8 * row else _EIGHTHS[min(8, one - 8 * row) - 1] for one in heights]
        lines.append(f"{mark:>{margin}} ┤{''.join(signs)}".rstrip())
    first, last = (datetime.fromtimestamp(at).strftime("%H:%M:%S") for at in (times[0], times[-1]))
    gap = " " * max(1, len(peaks) - len(first) - len(last))
    lines += [f"{lowest:>{margin}} └{'─' * len(peaks)}", f"{'':>{margin}}  {first}{gap}{last}"]
    return lines


def gather(values: Sequence[Value], width: int) -> list[Value]:
    """Gather at most ``width`` values: the greatest of each equal part of ``values``; None where a part has none."""
    count = min(width, len(values))
    parts = [values[at * len(values) // count : (at + 1) * len(values) // count] for at in range(count)]
    return [max((value for value in part if value is not None), default=None) for part in parts]


def _find_floor(values: Sequence[Value]) -> float:
    return min((value for value in values if value is not None and value < 0), default=0.0)


def _height(value: float, top: float, most: int) -> int:
    return min(most, max(0, round(value / top * most))) if top > 0 else 0
