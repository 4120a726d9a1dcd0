"""Which backups are kept long enough, and when the next is due; whatever the clock says, the newest good one stays."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from weft.controllers.backup.retention import is_over, list_old, read_made
from weft.informer.view import Item
from weft.kinds.backup import BACKUP, BackupSpec, BackupStatus
from weft.kinds.backup_policy import BackupPolicySpec, check_policy, find_due, is_quiet
from weft.objects.errors import InvalidInput

DAY = 86400.0
NOW = datetime(2026, 6, 30, 12, tzinfo=UTC).timestamp()  # a Tuesday


def policy(**given: Any) -> BackupPolicySpec:
    spec = BackupPolicySpec(of=["vm/web"], to="safe", **given)
    check_policy(spec)
    return spec


def made(days_ago: float, phase: str = "Ready", state: str = "unproven", keep: float = 0.0, to: str = "safe") -> Item:
    name = f"{state if state == 'damaged' else phase.lower()}-{days_ago:g}"
    at = NOW - days_ago * DAY
    status = BackupStatus(phase=phase, state=state, taken_at=at)
    return Item(BACKUP.make(name, BackupSpec(of="vm/web", to=to, keep=keep), at, uid=f"{name}{to}", status=status))


def names(own: list[Item], spec: BackupPolicySpec, now: float = NOW) -> list[str]:
    return [item.envelope.name for item in list_old(map(read_made, own), spec, now)]


@pytest.mark.parametrize(
    ("own", "old"),
    [
        ([made(1), made(29), made(31), made(40)], ["ready-31", "ready-40"]),
        ([made(40)], []),  # the only good one
        ([made(40), made(50), made(1, "Failed")], ["ready-50"]),
        ([made(40), made(50), made(1, state="damaged")], ["ready-50"]),
        (
            [made(40, state="failed"), made(50, state="failed")],
            ["ready-50"],
        ),  # no boot was right: better that than none
        ([made(40, state="failed"), made(50)], ["ready-40"]),
        ([made(40, "Failed"), made(1)], ["failed-40"]),
        ([made(40, "Copying"), made(45, "Snapshotting"), made(1)], []),  # they are being made
        ([], []),
    ],
)
def test_old_ones_go_but_never_the_newest_good_one(own: list[Item], old: list[str]) -> None:
    assert names(own, policy()) == old == names(own, policy(keep=30 * DAY))


def test_the_newest_of_days_weeks_and_months_stay() -> None:
    twice_a_day = [made(half / 2) for half in range(2 * 200)]
    spec = policy(keep_daily=7, keep_weekly=4, keep_monthly=3)
    old = names(twice_a_day, spec)
    kept = [item.envelope.name for item in twice_a_day if item.envelope.name not in old]
    days, sundays, ends_of_months = range(7), (2, 9, 16), (30, 61)
    assert kept == [f"ready-{ago}" for ago in sorted({*days, *sundays, *ends_of_months})]


def test_days_are_those_of_the_time_zone() -> None:
    evening = datetime(2026, 6, 29, 22, 30, tzinfo=UTC).timestamp()  # in Berlin it is half past midnight
    own = [made(0), made((NOW - evening) / DAY)]
    assert len(names(own, policy(keep_daily=9))) == 0
    assert names(own, policy(keep_daily=9, time_zone="Europe/Berlin")) == [own[1].envelope.name]


def test_a_time_and_days_add_up() -> None:
    own = [made(hours / 24) for hours in range(72)]
    old = names(own, policy(keep=DAY, keep_daily=3))
    assert len(own) - len(old) == 25 + 1  # all of a day, and the newest of the day before that


def test_a_clock_that_jumps_deletes_neither_the_newest_nor_what_seems_to_be_of_the_future() -> None:
    own = [made(3), made(2), made(1)]
    assert names(own, policy(), NOW + 10 * 365 * DAY) == ["ready-3", "ready-2"]
    assert names([*own, made(-400)], policy(), NOW) == []
    assert names([*own, made(-400)], policy(), NOW + 60 * DAY) == ["ready-3", "ready-2"]
    assert names(own, policy(), NOW - 365 * DAY) == []


@pytest.mark.parametrize(
    ("backup", "others", "over"),
    [
        (made(31, keep=30 * DAY), [made(1)], True),
        (made(29, keep=30 * DAY), [made(1)], False),
        (made(31), [made(1)], False),  # it has no time
        (made(31, keep=30 * DAY), [], False),
        (made(31, keep=30 * DAY), [made(40)], False),
        (made(31, keep=30 * DAY), [made(1, state="damaged"), made(2, "Failed")], False),
        (made(31, keep=30 * DAY), [made(1, to="other")], False),  # another repository may burn
        (made(31, "Failed", keep=30 * DAY), [], True),
        (made(31, "Copying", keep=30 * DAY), [made(1)], False),
    ],
)
def test_one_of_people_goes_when_its_time_is_over_but_for_the_newest_good_one(
    backup: Item, others: list[Item], over: bool
) -> None:
    assert is_over(read_made(backup), map(read_made, others), NOW) is over


def test_backups_are_due_by_schedule_or_interval_and_a_clock_set_back_puts_none_off() -> None:
    assert find_due(policy(schedule="daily"), NOW - DAY / 4, NOW) == NOW + DAY / 2
    berlin = policy(schedule="0 3 * * *", time_zone="Europe/Berlin")
    assert find_due(berlin, NOW, NOW) == datetime(2026, 7, 1, 1, tzinfo=UTC).timestamp()
    assert find_due(policy(every=3600.0), NOW - 1800, NOW) == NOW + 1800
    assert find_due(policy(), NOW + 400 * DAY, NOW) == NOW + DAY
    assert find_due(policy(schedule="hourly"), NOW + 400 * DAY, NOW) == NOW + 3600


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"schedule": "sometimes"}, "spec.schedule"),
        ({"schedule": "0 0 30 2 *"}, "spec.schedule"),
        ({"schedule": "daily", "time_zone": "Mars/Olympus"}, "spec.time_zone"),
        ({"keep_daily": 7, "time_zone": "Mars/Olympus"}, "spec.time_zone"),
        ({"schedule": "daily", "every": 3600.0}, "spec.every"),
        ({"every": 59.0}, "spec.every"),
        ({"every": 7200.0, "keep": 3600.0}, "spec.keep"),
        ({"keep": 3600.0}, "spec.keep"),  # it is made each day
        ({"schedule": "hourly", "keep": 1.0}, "spec.keep"),
    ],
)
def test_a_wrong_time_is_refused_with_its_field(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        policy(**given)
    assert refused.value.field == field and refused.value.hint


@pytest.mark.parametrize(
    ("hours", "zone", "quiet"),
    [
        ("01:00-05:00", "UTC", False),
        ("11:59-12:01", "UTC", True),
        ("13:30-14:30", "Europe/Berlin", True),
        ("22:00-12:00", "UTC", False),
        ("11:00-01:00", "UTC", True),
    ],
)
def test_quiet_hours_are_of_the_policy_s_time_zone_and_may_go_over_midnight(hours: str, zone: str, quiet: bool) -> None:
    assert is_quiet(policy(verify_hours=hours, time_zone=zone), NOW) is quiet


@pytest.mark.parametrize("hours", ["", "25:00-26:00", "01:00", "05:00-05:00"])
def test_hours_that_are_none_are_refused(hours: str) -> None:
    with pytest.raises(InvalidInput, match=r"spec\.verify_hours"):
        policy(verify_hours=hours)
