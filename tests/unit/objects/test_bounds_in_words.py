"""A number that is a duration or a size has its bounds in errors as people write them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest

from weft.kinds.parts.stream_verbs import CaptureInput, FlowsInput
from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_limit
from weft.objects.schema import field, read_strict


class Rule(msgspec.Struct):
    keep: Annotated[float, msgspec.Meta(ge=60), field("How long", quantity="duration")] = 60.0


class Spec(msgspec.Struct):
    rules: list[Rule] = []
    named: dict[str, Rule] = {}
    count: Annotated[int, msgspec.Meta(le=10)] = 1


@pytest.mark.parametrize(
    ("given", "type_", "said"),
    [
        ({"since": 100_000}, FlowsInput, "input.since: must be at most 25h"),
        ({"interval": 0.1}, FlowsInput, "input.interval: must be at least 0.5s"),
        ({"seconds": 601}, CaptureInput, "input.seconds: must be at most 10m"),
        ({"seconds": 0}, CaptureInput, "input.seconds: must be more than 0s"),
        ({"size": 10}, CaptureInput, "input.size: must be at least 1 KiB"),
        ({"size": 1 << 40}, CaptureInput, "input.size: must be at most 1.0 GiB"),
        ({"snaplen": 1}, CaptureInput, "input.snaplen: expected a whole number >= 64"),
        ({"rules": [{}, {"keep": "1s"}]}, Spec, "input.rules[1].keep: must be at least 1m"),
        ({"named": {"a": {"keep": "1s"}}}, Spec, "must be at least 1m"),
        ({"count": 11}, Spec, "input.count: expected a whole number <= 10"),
    ],
)
def test_a_bound_is_said_as_people_write_it(given: dict[str, Any], type_: type, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_strict(given, type_, "input")
    assert said in caught.value.message


def test_a_limit_is_written_in_its_largest_whole_unit() -> None:
    assert [format_limit(n) for n in (90_000, 86_400, 90, 600, 0.5)] == ["25h", "1d", "90s", "10m", "0.5s"]
