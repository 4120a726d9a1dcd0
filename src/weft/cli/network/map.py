"""The network between the nodes as a picture, SVG written by hand: a box for each place (zone and rack) with its nodes, as far
apart as their round trips say; a line for each link, by its round trip; and below, who is farthest from whom. Pure."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from weft.cli.network.topology import format_bandwidth, format_latency

Answer = Mapping[str, Any]
Point = tuple[float, float]
Pair = tuple[str, str]
WIDTH, HEIGHT = 960, 720
_TOP, _BOTTOM, _EDGE = 64, 96, 30
_ROUNDS = 200
_MOST_LINES, _MOST_LABELS = 60, 30  # more would be a blot: only those between places are drawn then, one for each two
_MOST_DRAWN, _PER_ROW = 24, 6  # nodes in a box; of more, the box has their number
_NODE, _PAD, _HEAD = 30, 10, 18
_COLORS = ((0.5, "#3c9a5f", "below 0.5 ms"), (2.0, "#8aa832", "below 2 ms"), (10.0, "#d9902f", "below 10 ms"))
_FAR, _UNKNOWN = "#c4452f", "#aaaaaa"


def draw_map(topology: Answer) -> str:
    """The picture."""
    nodes: Sequence[Answer] = topology["nodes"]
    places = defaultdict[str, list[Answer]](list)
    for node in nodes:
        places[node["name"] if node["type"] == "place" else _place(node)].append(node)
    of = {node["name"]: place for place, members in places.items() for node in members}
    between = _join(topology["links"], of)
    boxes = _lay_out({place: _size(members) for place, members in places.items()}, between)
    at = {node["name"]: spot for place, members in places.items() for node, spot in _seat(members, boxes[place])}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{_EDGE}" y="24" font-size="14">{escape(_title(nodes, topology["links"]))}</text>',
        *_legend(),
    ]
    links = [link for link in topology["links"] if link["source"] in at and link["target"] in at]
    labels = list[str]()
    if len(links) <= _MOST_LINES:
        parts += [_line(at[link["source"]], at[link["target"]], link) for link in links]
    else:
        for (one, other), latency in between.items():
            if one != other:
                link = {"source": one, "target": other, "latency_ms": latency, "bandwidth_mbps": None, "measured": True}
                parts.append(_line(_middle(boxes[one]), _middle(boxes[other]), link))
                labels.append(_label(_middle(boxes[one]), _middle(boxes[other]), latency))
    for place, members in places.items():
        parts += _box(place, members, boxes[place], dict(_seat(members, boxes[place], by_name=True)))
    labels = labels or [_label(at[link["source"]], at[link["target"]], link["latency_ms"]) for link in links]
    parts += labels if len(labels) <= _MOST_LABELS else []
    return "\n".join([*parts, *_farthest(topology["links"]), "</svg>"]) + "\n"


Box = tuple[float, float, float, float]  # left, top, width, height


def _place(node: Answer) -> str:
    return "/".join(filter(None, (node["zone"], node["rack"])))


def _join(links: Sequence[Answer], of: Mapping[str, str]) -> dict[Pair, float]:
    """The median round trip between each two places, and within one."""
    trips = defaultdict[Pair, list[float]](list)
    for link in links:
        if link["latency_ms"] is not None and link["source"] in of and link["target"] in of:
            one, other = sorted((of[link["source"]], of[link["target"]]))
            trips[one, other].append(link["latency_ms"])
    return {pair: statistics.median(found) for pair, found in trips.items()}


def _size(members: Sequence[Answer]) -> Point:
    shown = len(members) if len(members) <= _MOST_DRAWN else 1
    columns, rows = min(shown, _PER_ROW), math.ceil(shown / _PER_ROW)
    return max(96.0, columns * (_NODE + _PAD) + _PAD), _HEAD + rows * (_NODE + _PAD + 8) + _PAD


def _lay_out(sizes: Mapping[str, Point], between: Mapping[Pair, float]) -> dict[str, Box]:
    """Boxes whose distances follow the round trips, as far as there is space: stress majorisation (Gansner, Koren, North: Graph
    Drawing by Stress Majorization, 2004) of the logarithms, from a circle; then boxes that overlap push each other apart."""
    names = sorted(sizes)
    count = len(names)
    spots = [(math.cos(math.tau * i / count), math.sin(math.tau * i / count)) for i in range(count)]
    goals = {pair: 1.0 + math.log1p(latency) for pair, latency in between.items() if pair[0] != pair[1]}
    usual = max(goals.values(), default=1.0)
    for _ in range(_ROUNDS if count <= 60 else 0):
        new = []
        for i, name in enumerate(names):
            x = y = weight = 0.0
            for j, other in enumerate(names):
                if i == j:
                    continue
                goal = goals.get((min(name, other), max(name, other)), usual)
                dx, dy = spots[i][0] - spots[j][0], spots[i][1] - spots[j][1]
                length = math.hypot(dx, dy) or 1e-9
                w = goal**-2
                x += w * (spots[j][0] + goal * dx / length)
                y += w * (spots[j][1] + goal * dy / length)
                weight += w
            new.append((x / weight, y / weight) if weight else spots[i])
        spots = new
    return _fit(names, spots, sizes)


def _fit(names: Sequence[str], spots: Sequence[Point], sizes: Mapping[str, Point]) -> dict[str, Box]:
    low = [min(spot[axis] for spot in spots) for axis in (0, 1)]
    span = [max(max(spot[axis] for spot in spots) - low[axis], 1e-9) for axis in (0, 1)]
    boxes = []
    for name, spot in zip(names, spots, strict=True):
        width, height = sizes[name]
        across, down = WIDTH - 2 * _EDGE - width, HEIGHT - _TOP - _BOTTOM - height
        alone = len(names) == 1
        left = _EDGE + across * (0.5 if alone else (spot[0] - low[0]) / span[0])
        top = _TOP + down * (0.5 if alone else (spot[1] - low[1]) / span[1])
        boxes.append([left, top, width, height])
    for _ in range(_ROUNDS):
        changed = False
        for i, one in enumerate(boxes):
            for other in boxes[i + 1 :]:
                over = [
                    min(one[a] + one[a + 2], other[a] + other[a + 2]) - max(one[a], other[a]) + _PAD for a in (0, 1)
                ]
                if min(over) > 0:
                    axis = over.index(min(over))
                    sign = 1 if one[axis] <= other[axis] else -1
                    one[axis] -= sign * over[axis] / 2
                    other[axis] += sign * over[axis] / 2
                    changed = True
        for box in boxes:
            box[0] = min(max(box[0], _EDGE), WIDTH - _EDGE - box[2])
            box[1] = min(max(box[1], _TOP), HEIGHT - _BOTTOM - box[3])
        if not changed:
            break
    return {name: (box[0], box[1], box[2], box[3]) for name, box in zip(names, boxes, strict=True)}


def _seat(members: Sequence[Answer], box: Box, *, by_name: bool = False) -> list[tuple[Any, Point]]:
    """The members with the middle of each node."""
    left, top, width, _ = box
    many = len(members) > _MOST_DRAWN
    row = min(len(members), _PER_ROW)
    start = left + (width - row * (_NODE + _PAD) + _PAD) / 2
    seats = []
    for index, node in enumerate(members):
        number = 0 if many else index
        x = start + (number % _PER_ROW) * (_NODE + _PAD) + _NODE / 2 if not many else left + width / 2
        y = top + _HEAD + (number // _PER_ROW) * (_NODE + _PAD + 8) + _NODE / 2
        seats.append((node["name"] if by_name else node, (x, y)))
    return seats


def _box(place: str, members: Sequence[Answer], box: Box, seats: Mapping[str, Point]) -> list[str]:
    left, top, width, height = box
    count = sum(node["nodes"] for node in members if node["type"] in ("host", "place"))
    title = f"{place or 'no zone or rack'} ({count})"
    parts = [
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6" fill="#f4f6f8" '
        'fill-opacity="0.8" stroke="#8c9aa8"/>',
        f'<text x="{left + 8:.1f}" y="{top + 13:.1f}" fill="#445">{escape(title)}</text>',
    ]
    if len(members) > _MOST_DRAWN or members[0]["type"] == "place":
        text = f"{count} nodes"
        return [*parts, f'<text x="{left + 8:.1f}" y="{top + _HEAD + 22:.1f}" font-size="14">{text}</text>']
    for node in members:
        x, y = seats[node["name"]]
        fill = "#1a6fb0" if node["type"] == "host" else "#6b5b95"
        fill = "#b0b0b0" if node["online"] is False else fill
        radius = 5 if node["type"] != "router" else 12
        size = _NODE - 8
        shape = f'width="{size}" height="{size}" rx="{radius}" fill="{fill}"'
        parts.append(
            f'<rect x="{x - size / 2:.1f}" y="{y - size / 2:.1f}" {shape}><title>{escape(_describe(node))}</title></rect>'
        )
        name = node["name"] if len(node["name"]) <= 7 else f"{node['name'][:6]}…"
        parts.append(
            f'<text x="{x:.1f}" y="{y + size / 2 + 11:.1f}" text-anchor="middle" font-size="10">{escape(name)}</text>'
        )
    return parts


def _describe(node: Answer) -> str:
    rates = [node["received_mbps"], node["sent_mbps"]]
    passes = f", receives {format_bandwidth(rates[0])}, sends {format_bandwidth(rates[1])}" if None not in rates else ""
    return f"{node['name']} ({node['type']}){passes}"


def _line(start: Point, end: Point, link: Answer) -> str:
    latency, bandwidth = link["latency_ms"], link["bandwidth_mbps"]
    width = 1.0 if not bandwidth else min(5.0, 0.8 + math.log10(1 + bandwidth) / 1.2)
    dash = "" if link["measured"] else ' stroke-dasharray="5 4"'
    words = f"{link['source']} – {link['target']}: {format_latency(latency)}, {format_bandwidth(bandwidth)}"
    place = f'x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"'
    return f'<line {place} stroke="{_color(latency)}" stroke-width="{width:.1f}"{dash}><title>{escape(words)}</title></line>'


def _label(start: Point, end: Point, latency: float | None) -> str:
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 - 3
    style = 'text-anchor="middle" font-size="10" fill="#333" stroke="#fff" stroke-width="3" paint-order="stroke"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{format_latency(latency)}</text>' if latency is not None else ""


def _color(latency: float | None) -> str:
    if latency is None:
        return _UNKNOWN
    return next((color for most, color, _ in _COLORS if latency < most), _FAR)


def _legend() -> list[str]:
    words = [(color, text) for _, color, text in _COLORS] + [(_FAR, "10 ms and more"), (_UNKNOWN, "unknown")]
    parts = []
    for number, (color, text) in enumerate(words):
        x = _EDGE + number * 128
        parts.append(f'<path d="M{x},40h18" stroke="{color}" stroke-width="3"/><text x="{x + 24}" y="44">{text}</text>')
    x = _EDGE + len(words) * 128
    return [
        *parts,
        f'<path d="M{x},40h18" stroke="#666" stroke-dasharray="5 4"/><text x="{x + 24}" y="44">not measured</text>',
    ]


def _farthest(links: Sequence[Answer]) -> list[str]:
    """The three pairs with the longest round trips, and that with the least bandwidth."""
    far = sorted((link for link in links if link["latency_ms"] is not None), key=lambda link: -link["latency_ms"])[:3]
    slow = min(
        (link for link in links if link["bandwidth_mbps"]), key=lambda link: link["bandwidth_mbps"], default=None
    )
    lines = [
        "farthest: " + "; ".join(f"{x['source']} – {x['target']} {format_latency(x['latency_ms'])}" for x in far)
        if far
        else "",
        f"slowest: {slow['source']} – {slow['target']} {format_bandwidth(slow['bandwidth_mbps'])}" if slow else "",
    ]
    return [
        f'<text x="{_EDGE}" y="{HEIGHT - 56 + 18 * number}">{escape(line)}</text>'
        for number, line in enumerate(lines)
        if line
    ]


def _middle(box: Box) -> Point:
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def _title(nodes: Sequence[Answer], links: Sequence[Answer]) -> str:
    hosts = sum(node["nodes"] for node in nodes if node["type"] in ("host", "place"))
    measured = sum(link["measured"] for link in links)
    return f"{hosts} nodes, {len(links)} links, {measured} of them measured"
