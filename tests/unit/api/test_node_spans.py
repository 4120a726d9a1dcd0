"""What a node may say that it did."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.api.trace.node_spans import BURST, NodeSpans, read_spans
from weft.contracts.clock import SystemClock
from weft.protocol.traces import MOST_SPANS

GOOD: list[Any] = [
    "ab" * 16,
    "1" * 16,
    "",
    "image",
    1_790_000_000 * 10**9,
    1_790_000_001 * 10**9,
    "node/other",
    "vm/default/web",
]


def read(*given: Any, offset: float = 0.0) -> list[Any]:
    return read_spans([msgspec.Raw(msgspec.json.encode(one)) for one in given], "node/n1", offset)


def test_a_node_speaks_for_itself_and_its_clock_is_put_right() -> None:
    (found,) = read(GOOD, offset=-1.5)
    assert found.process == "node/n1"
    assert found.begin == GOOD[4] - 1_500_000_000
    assert found.end - found.begin == 10**9
    (still,) = read([*GOOD[:5], 0, *GOOD[6:]], offset=2.0)
    assert still.end == 0
    for offset in (float("nan"), float("inf"), -1e300):
        (found,) = read(GOOD, offset=offset)
        assert 0 <= found.begin <= found.end < 1 << 63


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, "ab" * 15), (0, "0" * 32), (0, "AB" * 16), (0, "../../../../../../etc/passwd0000"),
        (1, "1"), (1, "g" * 16), (2, "1"), (3, ""), (3, "x" * 301), (4, -1), (4, 1 << 70), (4, 0), (5, -5), (5, 1),
        (5, 1 << 63), (7, ""), (7, "vm/default"), (7, "vm/../x/y"), (7, "VM/default/web"), (4, "now"), (3, None),
    ],
)  # fmt: skip
def test_what_is_no_span_counts_as_none_and_spoils_no_other(place: int, value: object) -> None:
    bad = [*GOOD]
    bad[place] = value
    assert len(read(bad, GOOD)) == 1


def test_what_is_too_long_or_nested_counts_as_none() -> None:
    assert not read([*GOOD, "", {"a": "x" * 9000}])
    assert not read([*GOOD, "", {str(number): 1 for number in range(40)}])
    assert not read([*GOOD, "", {"a": {"b": 1}}])
    assert not read({"trace": "x"}, [], 1, None, "x")


def test_a_node_that_floods_is_cut_off_and_others_are_not() -> None:
    spans = NodeSpans(SystemClock())
    taken = sum(spans.take("loud", MOST_SPANS) for _ in range(50))
    assert BURST <= taken < BURST + 2 * MOST_SPANS
    assert spans.take("quiet", 5) == 5
