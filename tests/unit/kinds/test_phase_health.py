"""Every phase that an object can have has a health, which the CLI and the dashboard colour."""

from __future__ import annotations

import pytest

from weft.kinds.fields.health import HEALTH
from weft.kinds.record import Kind
from weft.kinds.registry import KINDS
from weft.objects.lifecycle import Phase
from weft.objects.schema import find_place


def list_phases(kind: Kind) -> set[str]:
    places = [find_place(kind.status, [name]) for name in ("phase", "state")]
    return {word for place in places if place is not None for word in place.words}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_phase_of_a_kind_has_a_health(kind: Kind) -> None:
    assert list_phases(kind) <= HEALTH.keys()


def test_every_phase_of_a_workload_has_a_health() -> None:
    assert {str(phase) for phase in Phase} <= HEALTH.keys()
    assert HEALTH["Running"] == "running" and HEALTH["Failed"] == "failed" and HEALTH["Stopped"] == "ended"
