"""Sums over time: what the ledger counts by increments is what adding up each second gives, through restarts, and never twice."""

from __future__ import annotations

import random

import pytest
from tests.long import mark_seeds

from weft.controllers.accounting.ledger import NOTHING, Account, Ledger, Rate
from weft.kinds.accounting_record import DAY, HOUR, KEPT_HOURLY_DAYS, MOST_USERS, AccountingStatus, start_of_day

GIB = 1 << 30
NIGHT = 20_000 * DAY - 2 * HOUR  # two hours before a midnight in UTC
ANN = Account("web", "ann")
Stored = dict[tuple[str, float], AccountingStatus]


def make(stored: Stored | None = None, now: float = 0.0) -> Ledger:
    ledger = Ledger(lambda project, start: (stored or {}).get((project, start)))
    for (project, _), status in (stored or {}).items():
        ledger.skip(project, status.through, now)
    return ledger


def store(ledger: Ledger, now: float, stored: Stored) -> None:
    ledger.close(now)
    for key, day in ledger.days.items():
        stored[key] = AccountingStatus(through=now, entries=day.list_entries())


def sum_cpu(stored: Stored) -> dict[tuple[str, str, float], float]:
    return {
        (project, entry.user, entry.start): entry.cpu
        for (project, _), status in stored.items()
        for entry in status.entries
        if entry.cpu
    }


def test_amounts_are_counted_in_the_hours_and_days_that_they_fall_into() -> None:
    ledger, stored = make(), Stored()
    ledger.hold("a", ANN, "vm-a", (2000, 4 * GIB, 10 * GIB, 500), NIGHT + 1800, NIGHT + 1800)
    ledger.hold("a", ANN, "vm-a", (1000, 4 * GIB, 10 * GIB, 500), NIGHT, NIGHT + HOUR)  # it became smaller
    ledger.release("a", NIGHT + 2 * HOUR + 600)
    store(ledger, NIGHT + 3 * HOUR, stored)
    assert sum_cpu(stored) == {
        ("web", "ann", NIGHT): 3600,
        ("web", "ann", NIGHT + HOUR): 3600,
        ("web", "ann", NIGHT + 2 * HOUR): 600,
    }
    assert {start for _, start in stored} == {start_of_day(NIGHT), start_of_day(NIGHT) + DAY}
    last = stored["web", start_of_day(NIGHT) + DAY].entries[0]
    assert (last.memory, last.disk, last.gpu) == (2400, 6000, 300)


def test_what_begins_later_counts_from_its_own_moment() -> None:
    ledger, stored = make(), Stored()
    ledger.hold("a", ANN, "vm-a", (1000, 0, 0, 0), NIGHT + 100, NIGHT)
    ledger.hold("a", ANN, "vm-a", (2000, 0, 0, 0), NIGHT + 200, NIGHT + 50)  # planned anew
    store(ledger, NIGHT + 60, stored)
    assert sum_cpu(stored) == {}
    store(ledger, NIGHT + 300, stored)
    assert sum_cpu(stored) == {("web", "ann", NIGHT): 200}
    ledger.hold("b", ANN, "vm-b", (1000, 0, 0, 0), NIGHT + 400, NIGHT + 300)
    ledger.release("b", NIGHT + 350)
    store(ledger, NIGHT + 500, stored)
    assert sum_cpu(stored) == {("web", "ann", NIGHT): 600}


@pytest.mark.parametrize("seed", mark_seeds(20))
def test_increments_and_restarts_give_what_adding_up_each_second_gives(seed: int) -> None:
    luck, stored = random.Random(seed), Stored()
    ledger = make()
    held: dict[str, tuple[Account, Rate, int]] = {}
    expected: dict[tuple[str, str, float], float] = {}
    for now in range(NIGHT, NIGHT + 4 * HOUR, 40):
        for _ in range(luck.randrange(3)):
            key = f"a{luck.randrange(12)}"
            account = held[key][0] if key in held else Account(luck.choice(["web", "lab"]), luck.choice(["", "ann"]))
            if key in held and luck.random() < 0.4:
                ledger.release(key, now)
                store(ledger, now, stored)  # as the controller does soon after
                del held[key]
            else:
                begins = held[key][2] if key in held else now
                rate = (luck.randrange(1, 9) * 500, 0, 0, 0)
                if key in held:
                    store(ledger, now, stored)
                held[key] = (account, rate, begins)
                ledger.hold(key, account, f"vm-{key}", rate, begins, now)
        if luck.random() < 0.2:  # killed: whatever wasn't stored is counted again from the allocations
            ledger = make(stored, now)
            for key, (account, rate, begins) in held.items():
                ledger.hold(key, account, f"vm-{key}", rate, begins, now)
        hour = now // HOUR * HOUR
        for account, rate, _ in held.values():
            place = (account.project, account.user, float(hour))
            expected[place] = expected.get(place, 0.0) + rate[0] / 1000 * 40
    store(ledger, NIGHT + 4 * HOUR, stored)
    assert sum_cpu(stored) == pytest.approx(expected)


def test_a_clock_that_is_set_back_counts_no_time_twice_and_one_far_ahead_is_not_believed() -> None:
    ledger, stored = make(), Stored()
    ledger.hold("a", ANN, "vm-a", (1000, 0, 0, 0), NIGHT, NIGHT)
    ledger.close(NIGHT + 1000)
    ledger.close(NIGHT + 400)
    store(ledger, NIGHT + 1200, stored)
    assert sum_cpu(stored) == {("web", "ann", NIGHT): 1200}
    far = {("web", start_of_day(NIGHT)): AccountingStatus(through=NIGHT + 900 * DAY)}
    ledger = make(far, NIGHT)
    ledger.hold("a", ANN, "vm-a", (1000, 0, 0, 0), NIGHT, NIGHT)
    store(ledger, NIGHT + 60, far)
    assert sum_cpu(far) == {("web", "ann", NIGHT): 60}


def test_a_long_absence_is_counted_for_as_long_as_hours_are_kept() -> None:
    ledger, stored = make(), Stored()
    now = NIGHT + 300 * DAY
    ledger.hold("a", ANN, "vm-a", (1000, 0, 0, 0), NIGHT, now)
    store(ledger, now, stored)
    assert sum(sum_cpu(stored).values()) == KEPT_HOURLY_DAYS * DAY


def test_usage_goes_to_the_account_of_its_workload_until_its_last_allocation_is_gone() -> None:
    ledger, stored = make(), Stored()
    for key in ("a", "b"):  # source and target of a migration
        ledger.hold(key, ANN, "vm-a", NOTHING, NIGHT, NIGHT)
    ledger.use({"vm-a": (0.5, 2.0 * GIB, 0.0), "stranger": (9.0, 0.0, 0.0)}, 60, NIGHT + 60)
    ledger.release("a", NIGHT + 60)
    ledger.use({"vm-a": (0.5, 2.0 * GIB, 0.0)}, 60, NIGHT + 120)
    ledger.release("b", NIGHT + 120)
    ledger.use({"vm-a": (0.5, 2.0 * GIB, 0.0)}, 60, NIGHT + 180)
    store(ledger, NIGHT + 180, stored)
    [entry] = stored["web", start_of_day(NIGHT)].entries
    assert (entry.used_cpu, entry.used_memory, entry.cpu) == (60, 240, 0)


def test_a_day_tells_only_so_many_users_apart_and_loses_nothing() -> None:
    ledger, stored = make(), Stored()
    for n in range(500):
        ledger.hold(f"a{n}", Account("web", f"user{n}"), f"vm{n}", (1000, 0, 0, 0), NIGHT, NIGHT)
    store(ledger, NIGHT + 10, stored)
    [status] = stored.values()
    assert len(status.entries) == MOST_USERS and sum(entry.cpu for entry in status.entries) == 5000
