"""The spans of a trace as a tree, with clocks made to agree and the critical path found. Pure.

What comes from a server may be of anybody: parents that are missing, form a circle or nest without end give a tree all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

MOST_DEPTH = 40
SERVER, CLIENT = 2, 3  # kinds, as OTLP numbers them


@dataclass(eq=False)
class SpanNode:
    """One span. Times in unix nanoseconds; ``end``: of one that isn't over, the end of what is shown."""

    id: str
    parent: str
    name: str
    process: str
    about: str
    begin: int
    end: int
    over: bool
    kind: int
    error: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    children: list[SpanNode] = field(default_factory=list)  # in the order of their begin
    critical: bool = False
    own: int = 0  # nanoseconds of the critical path that are its own
    waited: int = 0  # and those before it in which nothing ran
    last: int = 0  # when it and all below it was over


@dataclass
class Tree:
    """``roots`` in the order of their begin; from ``begin`` to ``end``."""

    trace: str
    roots: list[SpanNode]
    begin: int
    end: int
    count: int

    def walk(self) -> Iterator[tuple[int, SpanNode]]:
        """Each with its depth, parents first."""
        stack = [(0, root) for root in reversed(self.roots)]
        while stack:
            depth, node = stack.pop()
            yield depth, node
            stack += [(depth + 1, child) for child in reversed(node.children)]


def read_tree(document: dict[str, Any], now: float) -> Tree:
    """Read the tree of an answer in OTLP's form; ``now`` (unix seconds) is where what isn't over is at."""
    nodes: dict[str, SpanNode] = {}
    trace = ""
    for resource in document.get("resourceSpans", ()):
        process = _values(resource.get("resource", {}).get("attributes", ())).get("service.name", "?")
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                node = _read(span, str(process).removeprefix("weft/"))
                nodes.setdefault(node.id, node)
                trace = span.get("traceId", "")
    roots = _arrange(nodes)
    for root in roots:
        _agree(root)
    _finish(nodes.values(), now)
    for node in nodes.values():
        node.children.sort(key=lambda one: (one.begin, one.end))
    roots.sort(key=lambda one: (one.begin, -one.end))
    _find_last(roots)
    begin = min((node.begin for node in nodes.values()), default=0)
    end = max((node.end for node in nodes.values()), default=0)
    tree = Tree(trace, roots, begin, end, len(nodes))
    for root in roots:
        _mark(root)
    return tree


def _read(span: dict[str, Any], process: str) -> SpanNode:
    values = _values(span.get("attributes", ()))
    end = int(span.get("endTimeUnixNano") or 0)
    return SpanNode(
        id=span["spanId"],
        parent=span.get("parentSpanId", ""),
        name=str(span.get("name", "")),
        process=process,
        about=str(values.pop("weft.object", "")),
        begin=int(span.get("startTimeUnixNano") or 0),
        end=end,
        over=bool(end),
        kind=int(span.get("kind") or 1),
        error=str(span.get("status", {}).get("message", "")),
        attributes=values,
    )


def _values(attributes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {one["key"]: next(iter(one["value"].values()), "") for one in attributes if one.get("value")}


def _arrange(nodes: dict[str, SpanNode]) -> list[SpanNode]:
    """Give each node its children, and return those that have no parent."""
    below: dict[str, list[SpanNode]] = {}
    for node in nodes.values():
        if node.parent in nodes and node.parent != node.id:
            below.setdefault(node.parent, []).append(node)
    ordered = sorted(nodes.values(), key=lambda one: one.begin)
    roots: list[SpanNode] = []
    seen: set[str] = set()
    # Those whose parent isn't there first; what is left then is a circle, of which the earliest is the root.
    for node in [*(one for one in ordered if one.parent not in nodes or one.parent == one.id), *ordered]:
        if node.id in seen:
            continue
        seen.add(node.id)
        roots.append(node)
        stack = [(node, node, 1)]
        while stack:
            above, holder, depth = stack.pop()  # too deep a child is held by an ancestor
            for child in below.get(above.id, ()):
                if child.id in seen:
                    continue
                seen.add(child.id)
                holder.children.append(child)
                stack.append((child, holder if depth >= MOST_DEPTH else child, depth + 1))
    return roots


def _agree(root: SpanNode) -> None:
    """Shift what another machine's clock has put before its cause, or beside the request that it answers."""
    stack = [root]
    while stack:
        above = stack.pop()
        for child in above.children:
            if child.process != above.process:
                _fit(child, above)
            child.begin = max(child.begin, above.begin)
            child.end = max(child.end, child.begin) if child.over else child.end
            stack.append(child)


def _fit(child: SpanNode, above: SpanNode) -> None:
    answers = child.kind == SERVER and above.kind == CLIENT and above.over and child.over
    if answers and not (above.begin <= child.begin and child.end <= above.end):
        spare = (above.end - above.begin) - (child.end - child.begin)
        _shift(child, above.begin + max(0, spare) // 2 - child.begin)
        child.end = min(child.end, above.end)
    elif child.begin < above.begin:
        _shift(child, above.begin - child.begin)


def _shift(node: SpanNode, by: int) -> None:
    stack = [node]
    while stack:
        one = stack.pop()
        one.begin += by
        one.end += by if one.over else 0
        stack += one.children


def _finish(nodes: Iterable[SpanNode], now: float) -> None:
    """Let what isn't over last until the present."""
    nodes = list(nodes)
    last = max((max(node.begin, node.end) for node in nodes), default=0)
    if any(not node.over for node in nodes):
        last = max(last, int(now * 1e9))
    for node in nodes:
        if not node.over:
            node.end = last


def _find_last(roots: Iterable[SpanNode]) -> None:
    ordered, stack = [], list(roots)
    while stack:
        node = stack.pop()
        ordered.append(node)
        stack += node.children
    for node in reversed(ordered):
        node.last = max([node.end, *(child.last for child in node.children)])


def _mark(root: SpanNode) -> None:
    """Find the critical path, from the end: what ended last, before that what ended last before it began, and so on."""
    stack = [(root, root.last)]
    while stack:
        node, at = stack.pop()
        node.critical = True
        later: SpanNode | None = None
        for child in sorted(node.children, key=lambda one: -one.last):
            if child.begin >= at and child.last > at:
                continue
            until = min(child.last, at)
            _spend(node, until, at, later)
            stack.append((child, until))
            at, later = min(at, child.begin), child
            if at <= node.begin:
                break
        _spend(node, min(node.begin, at), at, later)


def _spend(node: SpanNode, begin: int, end: int, later: SpanNode | None) -> None:
    """Spend the time between two parts of a node: its own time as long as it lasted, and after that what the ``later`` part was
    waited for."""
    own = max(0, min(end, node.end) - max(begin, node.begin))
    node.own += own
    if later is not None:
        later.waited += max(0, end - begin - own)
