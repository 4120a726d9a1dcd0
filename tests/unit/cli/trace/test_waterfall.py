"""A trace as a picture: clocks that differ, spans that are forged, and where the time went."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.cli.output.terminal import Paint
from weft.cli.trace.tree import SpanNode, Tree, read_tree
from weft.cli.trace.waterfall import draw, format_time

BASE = 1_790_000_000 * 10**9
MS = 10**6


def make_span(id: str, parent: str, begin: float, end: float, name: str = "", kind: int = 1, **more: Any) -> Any:
    """Times in milliseconds after BASE; ``end`` 0: not over."""
    return {
        "traceId": "ab" * 16,
        "spanId": id,
        "parentSpanId": parent,
        "name": name or id,
        "kind": kind,
        "startTimeUnixNano": str(BASE + int(begin * MS)),
        "endTimeUnixNano": str(BASE + int(end * MS)) if end else "0",
        **more,
    }


def make_document(**processes: list[Any]) -> dict[str, Any]:
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": f"weft/{name}"}}]},
                "scopeSpans": [{"spans": spans}],
            }
            for name, spans in processes.items()
        ]
    }


def read(now: float = 0.0, **processes: list[Any]) -> Tree:
    return read_tree(make_document(**processes), BASE / 1e9 + now / 1000)


def find(tree: Tree, name: str) -> SpanNode:
    return next(node for _, node in tree.walk() if node.name == name)


def at(node: SpanNode) -> tuple[float, float]:
    return (node.begin - BASE) / MS, (node.end - BASE) / MS


def test_what_follows_a_write_is_never_before_it_though_the_node_s_clock_is_slow() -> None:
    tree = read(
        api=[make_span("post", "", 100, 110)],
        n1=[make_span("image", "post", -400, -300), make_span("fetch", "image", -390, -310)],
    )
    assert at(find(tree, "image")) == (100, 200)
    assert at(find(tree, "fetch")) == (110, 190)
    assert at(find(tree, "post")) == (100, 110)


def test_a_node_s_clock_that_is_fast_only_moves_what_answers_a_request() -> None:
    tree = read(
        gateway=[make_span("invoke", "", 0, 50), make_span("dispatch", "invoke", 10, 50, kind=3)],
        n1=[make_span("serve", "dispatch", 1000, 1030, kind=2), make_span("run", "serve", 1005, 1030)],
    )
    assert at(find(tree, "serve")) == (15, 45)
    assert at(find(tree, "run")) == (20, 45)
    longer = read(gateway=[make_span("d", "", 10, 50, kind=3)], n1=[make_span("s", "d", 500, 900, kind=2)])
    assert at(find(longer, "s")) == (10, 50)
    apart = read(api=[make_span("post", "", 0, 5)], n1=[make_span("image", "post", 900, 950)])
    assert at(find(apart, "image")) == (900, 950)  # it may have waited so long


def test_the_critical_path_is_what_the_end_waited_for() -> None:
    tree = read(
        api=[make_span("post", "", 0, 10), make_span("commit", "post", 6, 10)],
        n1=[
            make_span("image", "post", 60, 500),
            make_span("network", "post", 70, 90),
            make_span("fetch", "image", 100, 490),
            make_span("start", "post", 520, 900),
        ],
    )
    assert [node.name for _, node in tree.walk() if node.critical] == ["post", "commit", "image", "fetch", "start"]
    assert not find(tree, "network").critical
    assert find(tree, "image").waited == 50 * MS
    assert find(tree, "start").waited == 20 * MS
    assert find(tree, "image").own == 50 * MS
    assert find(tree, "fetch").own == 390 * MS
    whole = sum(node.own + node.waited for _, node in tree.walk())
    assert whole == tree.end - tree.begin


def test_what_is_not_over_lasts_until_now_and_says_so() -> None:
    tree = read(now=5000, api=[make_span("post", "", 0, 10)], n1=[make_span("image", "post", 20, 0)])
    assert at(find(tree, "image")) == (20, 5000)
    shown = draw(tree, 100, Paint(False))
    assert "not over yet" in shown.splitlines()[0]
    assert "image (n1) has not ended" in shown


@pytest.mark.parametrize("width", [60, 80, 100, 137, 200])
def test_every_line_fits_the_terminal(width: int) -> None:
    spans = [make_span("post", "", 0, 10, "POST /v1/projects/default/vms/" + "x" * 80)]
    spans += [make_span(f"s{n}", f"s{n - 1}" if n else "post", n, n + 9) for n in range(30)]
    shown = draw(
        read(api=spans, **{"node/a-node-with-a-long-name": [make_span("far", "s3", 30, 4000)]}), width, Paint(False)
    )
    assert max(map(len, shown.splitlines())) <= width
    assert "POST vms/xxx" in shown


def test_gaps_and_failures_are_shown_and_the_longest_part_is_named() -> None:
    spans = [make_span("image", "post", 60, 500, status={"code": 2, "message": "no space\x1b[31m left"})]
    lines = draw(read(api=[make_span("post", "", 0, 10)], n1=spans), 100, Paint(False)).splitlines()
    assert any("waited for image" in line and "····" in line and "50 ms" in line for line in lines)
    assert lines[-2].startswith("Longest: image (n1) 440 ms (88 %), waiting for image 50 ms (10 %)")
    assert lines[-1] == "! image (n1): no space left"


def test_names_from_anywhere_move_no_cursor() -> None:
    shown = draw(read(api=[make_span("a", "", 0, 10, "\x1b[2J\nrm -rf\r\u202e")]), 100, Paint(False))
    assert all(letter.isprintable() or letter == "\n" for letter in shown)


def test_circles_and_missing_parents_and_depth_without_end_give_a_tree() -> None:
    circle = read(
        api=[
            make_span("a", "b", 5, 10),
            make_span("b", "a", 0, 10),
            make_span("c", "c", 1, 2),
            make_span("d", "gone", 3, 4),
        ]
    )
    assert sorted(node.name for _, node in circle.walk()) == ["a", "b", "c", "d"]
    assert [root.name for root in circle.roots] == ["b", "c", "d"]
    deep = read(api=[make_span(f"{n}", f"{n - 1}", n, 5000) for n in range(3000)])
    assert sum(1 for _ in deep.walk()) == 3000
    assert max(depth for depth, _ in deep.walk()) <= 41
    assert "more rows" in draw(deep, 100, Paint(False))


names, numbers = st.sampled_from("abcdefgh"), st.integers(0, 100)
spans = st.lists(
    st.tuples(names, st.sampled_from(["", *"abcdefgh"]), numbers, numbers, st.sampled_from([1, 2, 3]), st.booleans()),
    min_size=1, max_size=8, unique_by=lambda one: one[0],
)  # fmt: skip


@given(spans)
def test_whatever_the_spans_are_the_time_of_the_critical_path_is_no_longer_than_the_trace(given: list[Any]) -> None:
    made: dict[str, list[Any]] = {}
    for id, parent, begin, length, kind, here in given:
        made.setdefault("here" if here else "there", []).append(make_span(id, parent, begin, begin + length, kind=kind))
    tree = read(now=200, **made)
    assert sorted(node.id for _, node in tree.walk()) == sorted(one[0] for one in given)
    for root in tree.roots:
        inside, stack = 0, [root]
        while stack:
            node = stack.pop()
            inside += node.own + node.waited
            stack += node.children
        assert 0 <= inside <= root.last - min(root.begin, tree.begin)
    draw(tree, 80, Paint(False))


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0.4, "0.40 ms"), (7.25, "7.2 ms"), (12, "12 ms"), (999.6, "1.00 s"), (65_000, "65.0 s"), (125_000, "2m05s")],
)  # fmt: skip
def test_durations_are_short(milliseconds: float, text: str) -> None:
    assert format_time(int(milliseconds * MS)) == text
