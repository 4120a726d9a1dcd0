"""What a node remembers of guests that left it or came to it, and says of them when an older store lists them again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.agent_lab import make_allocation

from weft.agent.state import checkpoint
from weft.agent.state.allocation import Memory, Part, read_wanted
from weft.agent.state.checkpoint import Copies
from weft.agent.state.departure import find_bygone, recall_bygone, recall_part
from weft.kinds.allocation import AllocatedMove, AllocationSpec

MOVE = AllocatedMove(key="m", peer="n2", peer_uid="node-2", peer_allocation="b")
LEFT = Part("m", "source", "b", taken=True, over=True)
CAME = Part("m", "target", "", taken=True)


def spec(**fields: Any) -> AllocationSpec:
    return read_wanted(make_allocation("web", **fields)).spec


@pytest.mark.parametrize(
    ("memory", "kept"),
    [
        (Memory(), None),
        (Memory(part=LEFT), LEFT),
        (Memory(part=LEFT, took="before"), LEFT),
        (Memory(part=Part("m", "source", "b", taken=True)), None),  # its node hasn't left it yet
        (Memory(part=Part("m", "source", "b", over=True)), None),  # it was never taken over
        (Memory(part=Part("m", "target", "b", over=True)), None),  # it was given up
        (Memory(part=Part("m", "target", "b", taken=True)), Part("m", "target", "b", taken=True)),
        (Memory(took="m"), CAME),
    ],
)
def test_only_what_a_move_has_settled_is_remembered(memory: Memory, kept: Part | None, tmp_path: Path) -> None:
    assert find_bygone(memory) == kept
    if kept is not None:
        copies = Copies(str(tmp_path))
        copies.save_departure("abc", kept)
        assert copies.load_departure("abc") == kept


def test_of_guests_that_left_the_newest_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MOST_DEPARTURES", 3)
    copies = Copies(str(tmp_path))
    for number in range(5):
        copies.save_departure(f"guest{number}", LEFT)
        os.utime(tmp_path / "departures" / f"guest{number}.json", (number, number))
    copies.drop_departures()
    assert [copies.load_departure(f"guest{number}") == LEFT for number in range(5)] == [False, False, True, True, True]


def test_what_came_and_was_taken_away_is_no_place_that_never_ran() -> None:
    """Else its source, of an older store too, would believe that and begin the guest anew with empty disks."""
    memory = recall_bygone(Memory(), CAME)
    assert recall_part(memory, spec(role="target", move=MOVE)) == Part(
        "m", "target", "b", taken=True, over=True, node="n2"
    )
    assert recall_part(Memory(made=True, took="m"), spec(role="target", move=MOVE)) == Part(
        "m", "target", "b", taken=True, node="n2"
    ), "while it is here, it is what the target has"
    for other in (
        spec(),
        spec(role="source", move=MOVE),
        spec(role="target", move=AllocatedMove(key="m.2", peer="n2", peer_uid="node-2", peer_allocation="b")),
    ):
        assert recall_part(memory, other) is None, "it is nobody's side of that move"


def test_what_has_left_is_away_still() -> None:
    assert recall_bygone(Memory(boots=3), LEFT) == Memory(boots=3, part=LEFT)
    assert recall_bygone(Memory(boots=3), None) == Memory(boots=3)
