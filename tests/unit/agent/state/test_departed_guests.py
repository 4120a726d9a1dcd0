"""What a node remembers of guests that left it or came to it, and says of them when an older store lists them again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.agent_lab import make_allocation

from weft.agent.state import checkpoint
from weft.agent.state.allocation import Checkpoint, MigrationState, read_allocation
from weft.agent.state.checkpoint import CheckpointStore
from weft.agent.state.departure import find_departed, recall_departed, recall_migration
from weft.kinds.allocation import AllocationSpec
from weft.kinds.fields.allocated_migration import AllocatedMigration

MOVE = AllocatedMigration(key="m", peer="n2", peer_uid="node-2", peer_allocation="b")
LEFT = MigrationState("m", "source", "b", taken=True, over=True)
CAME = MigrationState("m", "target", "", taken=True)


def spec(**fields: Any) -> AllocationSpec:
    return read_allocation(make_allocation("web", **fields)).spec


@pytest.mark.parametrize(
    ("settled", "kept"),
    [
        (Checkpoint(), None),
        (Checkpoint(migration=LEFT), LEFT),
        (Checkpoint(migration=LEFT, arrived_by="before"), LEFT),
        (Checkpoint(migration=MigrationState("m", "source", "b", taken=True)), None),  # its node hasn't left it yet
        (Checkpoint(migration=MigrationState("m", "source", "b", over=True)), None),  # it was never taken over
        (Checkpoint(migration=MigrationState("m", "target", "b", over=True)), None),  # it was given up
        (
            Checkpoint(migration=MigrationState("m", "target", "b", taken=True)),
            MigrationState("m", "target", "b", taken=True),
        ),
        (Checkpoint(arrived_by="m"), CAME),
    ],
)
def test_only_what_a_move_has_settled_is_remembered(
    settled: Checkpoint, kept: MigrationState | None, tmp_path: Path
) -> None:
    assert find_departed(settled) == kept
    if kept is not None:
        copies = CheckpointStore(str(tmp_path))
        copies.save_departure("abc", kept)
        assert copies.load_departure("abc") == kept


def test_of_guests_that_left_the_newest_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "MOST_DEPARTURES", 3)
    copies = CheckpointStore(str(tmp_path))
    for number in range(5):
        copies.save_departure(f"guest{number}", LEFT)
        os.utime(tmp_path / "departures" / f"guest{number}.json", (number, number))
    copies.drop_departures()
    assert [copies.load_departure(f"guest{number}") == LEFT for number in range(5)] == [False, False, True, True, True]


def test_what_came_and_was_taken_away_is_no_place_that_never_ran() -> None:
    """Else its source, of an older store too, would believe that and begin the guest anew with empty disks."""
    recalled = recall_departed(Checkpoint(), CAME)
    assert recall_migration(recalled, spec(role="target", migration=MOVE)) == MigrationState(
        "m", "target", "b", taken=True, over=True, node="n2"
    )
    assert recall_migration(
        Checkpoint(made=True, arrived_by="m"), spec(role="target", migration=MOVE)
    ) == MigrationState("m", "target", "b", taken=True, node="n2"), "while it is here, it is what the target has"
    for other in (
        spec(),
        spec(role="source", migration=MOVE),
        spec(role="target", migration=AllocatedMigration(key="m.2", peer="n2", peer_uid="node-2", peer_allocation="b")),
    ):
        assert recall_migration(recalled, other) is None, "it is nobody's side of that move"


def test_what_has_left_is_away_still() -> None:
    assert recall_departed(Checkpoint(restart_generation=3), LEFT) == Checkpoint(restart_generation=3, migration=LEFT)
    assert recall_departed(Checkpoint(restart_generation=3), None) == Checkpoint(restart_generation=3)
