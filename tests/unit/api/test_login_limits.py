"""Failed logins use up tries, which come back with time; the table of them is bounded."""

from __future__ import annotations

import asyncio
import threading

import pytest

from weft.api.state.login_limits import MOST_AT_ONCE, MOST_WAITING, USER_TRIES, LoginLimits, Tries
from weft.objects.errors import Throttled, Unavailable


def test_tries_run_out_and_come_back_one_by_one() -> None:
    tries = Tries(3, 10.0)
    for _ in range(3):
        assert tries.find_wait("ann", 100.0) == 0
        tries.take("ann", 100.0)
    assert tries.find_wait("ann", 100.0) == 10.0 and tries.find_wait("bob", 100.0) == 0
    assert tries.find_wait("ann", 109.0) == 1.0 and tries.find_wait("ann", 110.0) == 0
    tries.take("ann", 110.0)
    assert tries.find_wait("ann", 110.0) == 10.0


def test_a_try_that_succeeds_is_given_back() -> None:
    limits = LoginLimits()
    for _ in range(5 * USER_TRIES):
        limits.take("ann", "10.0.0.1", 1.0)
        limits.give_back("ann", "10.0.0.1")
    for _ in range(USER_TRIES):
        limits.take("ann", "10.0.0.1", 1.0)
    with pytest.raises(Throttled):
        limits.take("ann", "10.0.0.2", 1.0)


def test_an_address_that_tries_many_names_waits() -> None:
    limits = LoginLimits()
    with pytest.raises(Throttled):
        for number in range(1000):
            limits.take(f"user{number}", "10.0.0.1", 1.0)
    limits.take("user1000", "10.0.0.2", 1.0)


def test_the_table_is_bounded_and_forgets_those_who_failed_longest_ago() -> None:
    tries = Tries(1, 10.0, most=100)
    for number in range(1000):
        tries.take(f"u{number}", float(number))
    assert len(tries._full_at) == 100
    assert tries.find_wait("u999", 999.0) > 0 and tries.find_wait("u0", 999.0) == 0


async def test_only_so_many_passwords_are_hashed_at_once_and_only_so_many_wait() -> None:
    limits, go, most, under_way = LoginLimits(), threading.Event(), 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal most, under_way
        with lock:
            under_way += 1
            most = max(most, under_way)
        go.wait(20)
        with lock:
            under_way -= 1

    waiting = [asyncio.ensure_future(limits.hash(work)) for _ in range(MOST_WAITING)]
    await asyncio.sleep(0.1)
    with pytest.raises(Unavailable):
        await limits.hash(work)
    go.set()
    await asyncio.gather(*waiting)
    assert most == MOST_AT_ONCE
