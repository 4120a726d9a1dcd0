"""People are told of dropped messages in words that the journal counts up, and not more than once a minute for a function."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from weft.api.node.invocations import TOLD_SECONDS, _report_dropped
from weft.protocol.devices import InvocationsInput


def test_dropped_messages_are_told_in_constant_words_once_a_minute_for_each_function() -> None:
    told: list[tuple[Any, ...]] = []
    clock = SimpleNamespace(at=0.0)
    clock.elapsed = lambda: clock.at
    context: Any = SimpleNamespace(clock=clock, told_dropped={}, add_event=lambda *given: told.append(given))

    def tell(function: str, dropped: int, too_large: int = 0) -> None:
        envelope: Any = SimpleNamespace(uid=function, ref=function)
        _report_dropped(context, envelope, "n1", InvocationsInput(function, dropped, too_large))

    for n in range(1, 500):
        tell("f", n)
        tell("g", n, n)
        tell("h", 0)
    assert [one[0] for one in told] == ["f", "g"]
    assert {one[1] for one in told} == {"MessagesDropped"} and {one[3] for one in told} == {"Warning"}
    assert "queue" in told[0][2] and "8 KiB" not in told[0][2]
    assert "8 KiB" in told[1][2] and "queue" not in told[1][2]
    clock.at += TOLD_SECONDS
    tell("f", 7)
    assert told[2] == told[0]
    assert list(context.told_dropped) == ["f"], "what is old is forgotten"
