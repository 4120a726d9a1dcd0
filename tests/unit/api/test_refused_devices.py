"""How long a found device stays away that people have deleted."""

from __future__ import annotations

from weft.api.node.devices import REFUSED_SECONDS, MadeDevices, _is_refused

NOW = 1_000_000_000.0


def test_a_found_device_stays_away_for_a_day_whatever_the_clock_was_set_to() -> None:
    """It was missed first by a clock that was a year ahead."""
    record = MadeDevices(made={"d": NOW}, missed={"d": NOW + 365 * 86400.0})
    assert _is_refused(record, "d", NOW)
    assert _is_refused(record, "d", NOW + REFUSED_SECONDS - 1.0)
    assert not _is_refused(record, "d", NOW + REFUSED_SECONDS)
    assert not _is_refused(record, "other", NOW)
