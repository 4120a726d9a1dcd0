"""A trace as a waterfall that fits the terminal: what was done, where, when and how long; the critical path, and what it waited
for. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from weft.cli.output.terminal import Paint, clean
from weft.cli.trace.tree import Tree

WIDTH, LEAST_WIDTH = 100, 60
MOST_ROWS = 200
_NAME, _PROCESS, _TIME = 44, 18, 9
_LEAST_BAR = 12
_LEAST_GAP = 0.02  # of all
_MARK, _GAP, _BAR, _OTHER = "●", "·", "█", "▒"
_LONGEST = 3


def draw(tree: Tree, width: int | None, paint: Paint) -> str:
    """The whole picture, with its summary."""
    total = max(1, tree.end - tree.begin)
    width = max(LEAST_WIDTH, width or WIDTH)
    rows = list(_list_rows(tree, total))
    name = min(_NAME, max(len(one[0]) for one in rows), width // 2 - _TIME)
    process = min(_PROCESS, max(len(one[1]) for one in rows))
    if width - name - process - _TIME - 4 < _LEAST_BAR:
        process = 0
    bar = max(_LEAST_BAR, width - name - process - _TIME - (4 if process else 3))
    lines = [_head(tree, total, width), ""]
    for text, where, begin, end, sign, color in rows[:MOST_ROWS]:
        shown = [_cut(text, name)]
        if process:
            shown.append(_cut(where, process))
        shown += [_draw_bar(tree, total, begin, end, sign, bar), f"{format_time(end - begin):>{_TIME}}"]
        lines.append(paint.color(" ".join(shown), color) if color else " ".join(shown))
    if len(rows) > MOST_ROWS:
        lines.append(f"… {len(rows) - MOST_ROWS} more rows: -o json has all spans")
    return "\n".join([*(line.rstrip() for line in lines), "", _summarize(tree, total, width)])


def format_time(nanoseconds: int) -> str:
    """``0.4 ms``, ``12 ms``, ``1.84 s``, ``12.3 s``, ``2m05s``."""
    milliseconds = nanoseconds / 1e6
    if milliseconds < 1:
        return f"{milliseconds:.2f} ms"
    if milliseconds < 10:
        return f"{milliseconds:.1f} ms"
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    return f"{int(seconds // 60)}m{int(seconds % 60):02d}s"


_PREFIX = re.compile(r"^([A-Z]+) /v1/(?:projects/[^/]+/)?")
Row = tuple[str, str, int, int, str, str]  # text, process, begin, end, sign of its bar, colour


def _list_rows(tree: Tree, total: int) -> Iterator[Row]:
    for depth, node in tree.walk():
        if node.waited >= total * _LEAST_GAP and node.waited >= 1_000_000:
            begin = node.begin - node.waited
            yield f"  {'  ' * depth}waited for {_shorten(node.name)}", "", begin, node.begin, _GAP, "dim"
        ends = node.error or not node.over
        text = f"{_MARK if node.critical else ' '} {'  ' * depth}{_shorten(node.name)}"
        if node.error:
            text = f"{text} !"
        elif not node.over:
            text = f"{text} …"
        color = "red" if node.error else "yellow" if ends else ""
        yield text, node.process, node.begin, node.end, _BAR if node.critical else _OTHER, color


def _shorten(name: str) -> str:
    """Drop the part of a request's path that is the same everywhere."""
    return _PREFIX.sub(r"\1 ", name, count=1)


def _head(tree: Tree, total: int, width: int) -> str:
    root = tree.roots[0]
    about = clean(_show_about(root.about) or _shorten(root.name))
    over = "" if all(node.over for _, node in tree.walk()) else ", not over yet"
    rest = clean(f"  {format_time(total)}{over}  trace {tree.trace}")
    return f"{about[: max(8, width - len(rest))]}{rest}"


def _show_about(about: str) -> str:
    kind, _, rest = about.partition("/")
    return f"{kind}/{rest.partition('/')[2]}" if rest else about


def _cut(text: str, width: int) -> str:
    text = clean(text)
    return f"{text[: width - 1]}…" if len(text) > width else f"{text:<{width}}"


def _draw_bar(tree: Tree, total: int, begin: int, end: int, sign: str, width: int) -> str:
    first = min(width - 1, (begin - tree.begin) * width // total)
    last = max(first + 1, min(width, -(-(end - tree.begin) * width // total)))
    return " " * first + sign * (last - first) + " " * (width - last)


def _summarize(tree: Tree, total: int, width: int) -> str:
    """Summarize where the time of the critical path went, and what failed."""
    spent: dict[str, int] = {}
    problems = []
    for _, node in tree.walk():
        if node.own:
            key = f"{node.name} ({node.process})"
            spent[key] = spent.get(key, 0) + node.own
        if node.waited:
            key = f"waiting for {node.name}"
            spent[key] = spent.get(key, 0) + node.waited
        if node.error:
            problems.append(clean(f"! {node.name} ({node.process}): {node.error}"))
        elif not node.over:
            problems.append(clean(f"… {node.name} ({node.process}) has not ended, or its end was not recorded"))
    longest = sorted(spent.items(), key=lambda one: -one[1])[:_LONGEST]
    parts = [f"{key} {format_time(took)} ({round(100 * took / total)} %)" for key, took in longest if took]
    said = [clean(f"Longest: {', '.join(parts)}") if parts else "", *problems[:5]]
    return "\n".join(textwrap.fill(line, width) for line in said).strip()
