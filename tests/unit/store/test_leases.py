"""Leases by the clock: at the very moment when one lapses it is nobody's, whoever asks and in whatever way."""

from __future__ import annotations

from unittest import mock

import pytest

from weft.store import leases
from weft.store.leases import LeaseTable

BEFORE, AT = 9.999, 10.0


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def elapsed(self) -> float:
        return self.at


@pytest.mark.parametrize(("at", "lives"), [(BEFORE, True), (AT, False)])
def test_a_lease_lives_until_its_time_is_up_and_not_a_moment_longer(at: float, lives: bool) -> None:
    clock = Clock()
    table = LeaseTable(clock, ceiling=1)  # type: ignore[arg-type]
    granted = table.grant("web", "a", 10.0)
    assert granted is not None
    clock.at = at
    assert table.holds("web", granted.fence) is lives
    assert [lease.name for lease in table.live("")] == (["web"] if lives else [])
    assert table.needs_ceiling("web") is not lives, "who takes it next gets a fence of his own"
    table.raise_ceiling(2)
    taken = table.grant("web", "b", 10.0)
    assert (taken is None) is lives
    assert taken is None or taken.fence == granted.fence + 1


def test_what_has_lapsed_is_swept_and_what_lives_is_kept() -> None:
    clock = Clock()
    with mock.patch.object(leases, "_SWEEP_AT_LEAST", 2):
        table = LeaseTable(clock)  # type: ignore[arg-type]
        table.grant("old", "a", 10.0)
        clock.at = AT
        kept = table.grant("kept", "a", 10.0)
        table.grant("new", "a", 10.0)
    assert kept is not None and table.holds("kept", kept.fence)
    assert table._claims.keys() == {"kept", "new"}
