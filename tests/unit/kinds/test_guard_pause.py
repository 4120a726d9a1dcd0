"""A pause of a node's guard: it gets longer only, and nodes read of less than servers wait."""

from __future__ import annotations

import pytest

from weft.failover.timing import NODES, RATE_ERROR, count_pause
from weft.kinds.node import NODE
from weft.kinds.parts.node.loss import GuardInput, pause_guard
from weft.objects.errors import IllegalTransition


def test_a_pause_can_be_made_longer_and_not_shorter() -> None:
    node = {"name": "n1", "now": 1000.0, "actions": {}}
    node["actions"] = pause_guard(node, GuardInput(600.0))
    assert node["actions"] == {"guard_paused_until": 1600.0}
    node["now"] = 1100.0
    with pytest.raises(IllegalTransition, match="can't be shortened"):
        pause_guard(node, GuardInput(60.0))
    assert pause_guard(node, GuardInput(600.0)) == {"guard_paused_until": 1700.0}
    node["now"] = 2000.0
    assert pause_guard(node, GuardInput(60.0)) == {"guard_paused_until": 2060.0}


@pytest.mark.parametrize("seconds", [0.0, 3.0, 60.0, 86_400.0])
def test_a_guest_ends_before_the_promise_after_the_pause_is_over_by_any_clock(seconds: float) -> None:
    ends = (count_pause(seconds) + NODES.lease + NODES.kill) * (1 + 2 * RATE_ERROR)
    assert ends < seconds + NODES.promise
    assert count_pause(seconds) <= seconds


def test_people_pause_it_by_a_verb() -> None:
    (verb,) = [verb for verb in NODE.verbs if verb.name == "guard"]
    assert (verb.needs, verb.input) == ("fabric", GuardInput)
