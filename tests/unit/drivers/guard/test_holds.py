"""What the guard lets run, in virtual time, and what it takes from a caller."""

from __future__ import annotations

import json
import random

import pytest

from weft.drivers.guard.holds import (
    LOOK_SECONDS,
    MOST_GROUPS,
    MOST_HOLDS,
    MOST_ID,
    MOST_REQUEST_BYTES,
    Hold,
    HoldRequest,
    apply_request,
    find_next,
    list_due,
    note_ended,
    read_answer,
    read_holds,
    read_request,
    write_answer,
    write_holds,
)

GROUPS = ("/g",)


def test_a_guest_is_due_from_its_time_on_and_stays_so() -> None:
    holds = {"a": Hold(10.0, GROUPS), "b": Hold(20.0, GROUPS)}
    assert (list_due(holds, 9.9), find_next(holds, 9.9)) == ([], 10.0)
    assert list_due(holds, 10.0) == ["a"]
    assert find_next(holds, 12.0) == 12.0 + LOOK_SECONDS  # whatever is started of it now is found soon
    assert list_due(holds, 99.0) == ["a", "b"]
    assert find_next({}, 5.0) is None


def test_renewing_one_leaves_the_others_and_forgets_that_it_was_ended() -> None:
    holds = note_ended({"a": Hold(10.0, GROUPS), "b": Hold(20.0, GROUPS)}, "a", 11.0)
    assert holds["a"].ended_at == 11.0
    after = apply_request(holds, HoldRequest({"a": Hold(30.0, GROUPS)}, ()))
    assert after == {"a": Hold(30.0, GROUPS), "b": Hold(20.0, GROUPS)}
    assert apply_request(after, HoldRequest({}, ("b", "unknown"))) == {"a": Hold(30.0, GROUPS)}


def test_no_guest_runs_past_its_time_under_drawn_requests_and_sleeps() -> None:
    """The process sleeps until ``find_next``, or longer where its machine does; whenever it wakes, nothing is left that is due."""
    for seed in range(50):
        chance, now, holds = random.Random(seed), 0.0, dict[str, Hold]()
        running = dict[str, float]()  # until when each may run
        for _ in range(200):
            if chance.random() < 0.5:
                name, until = chance.choice("abc"), now + chance.uniform(-1, 30)
                holds = apply_request(holds, HoldRequest({name: Hold(until, GROUPS)}, ()))
                running[name] = until
            wake = find_next(holds, now)
            now = (
                now + 1.0 if wake is None else max(now, wake) + (chance.uniform(0, 500) if chance.random() < 0.1 else 0)
            )
            for name in list_due(holds, now):
                running.pop(name, None)
            assert all(until > now for until in running.values()), (seed, now, running)


def test_the_file_is_read_again_on_the_same_start_of_the_machine_only() -> None:
    holds = {"a": Hold(10.0, GROUPS, 11.0)}
    assert read_holds(write_holds(holds, "boot"), "boot") == holds
    assert read_holds(write_holds(holds, "boot"), "another") == {}
    for damaged in (b"", b"{}", b"[]", b'{"boot":"boot","holds":{"a":[1]}}', b'{"boot":"boot","holds":[1]}'):
        with pytest.raises(ValueError, match=r"not JSON|of a guard|a hold must"):
            read_holds(damaged, "boot")


def test_an_answer_says_until_when_and_when_ended_and_one_of_an_older_guard_is_read_too() -> None:
    holds = {"a": Hold(10.0, GROUPS, 11.0)}
    assert read_answer(write_answer(holds, "boot"), "boot") == {"a": Hold(10.0, (), 11.0)}
    assert read_answer(write_answer(holds, "boot"), "another") == {}
    assert read_answer(write_holds(holds, "boot"), "boot") == holds
    for damaged in (b"", b"[]", b'{"held": {"a": [1]}}', b'{"held": {"a": 1}}', b'{"held": {"a": [1, "x"]}}'):
        with pytest.raises(ValueError):
            read_answer(damaged, "boot")
    most = {
        "x" * MOST_ID + str(n): Hold(1e11 / 7, ("/" + "p" * 511,) * MOST_GROUPS, 1e11 / 7) for n in range(MOST_HOLDS)
    }
    assert len(write_answer(most, "b" * 36)) < 150_000


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (b"x" * (MOST_REQUEST_BYTES + 1), "longer than"),
        (b"\xff", "not JSON"),
        (b"[" * 30_000, "not JSON"),
        (b"[]", "must be an object"),
        (b'{"renew": {}, "other": 1}', "must be an object"),
        (b'{"renew": {"": [1, ["/g"]]}}', "at most 64 characters"),
        (b'{"drop": [1]}', "at most 64 characters"),
        (b'{"renew": {"a": [1]}}', "until, groups"),
        (b'{"renew": {"a": [1e13, ["/g"]]}}', "CLOCK_BOOTTIME"),
        (b'{"renew": {"a": [NaN, ["/g"]]}}', "CLOCK_BOOTTIME"),
        (b'{"renew": {"a": ["1", ["/g"]]}}', "CLOCK_BOOTTIME"),
        (b'{"renew": {"a": [1, ["g"]]}}', "absolute paths"),
        (b'{"renew": {"a": [1, []]}}', "absolute paths"),
        (json.dumps({"renew": {"a": [1, ["/g"] * (MOST_GROUPS + 1)]}}).encode(), "absolute paths"),
    ],
)
def test_a_wrong_request_is_refused_with_its_reason(given: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_request(given)


def test_one_guest_too_many_is_refused_and_nothing_changes() -> None:
    holds = {f"g{number}": Hold(1.0, GROUPS) for number in range(MOST_HOLDS)}
    with pytest.raises(ValueError, match="at most 1000 guests"):
        apply_request(holds, HoldRequest({"one-more": Hold(1.0, GROUPS)}, ()))
    assert len(apply_request(holds, HoldRequest({"one-more": Hold(1.0, GROUPS)}, ("g0",)))) == MOST_HOLDS
