"""A node is cut off, stopped, killed, asleep: in 200 runs a container that may start elsewhere runs in two places at no moment.
Without any one of the rules it does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.long import mark_long
from tests.simulation.lost_node import tell_story
from weft.agent.guard import guests
from weft.agent.guard.guests import GuardedGuests
from weft.agent.server.contact import Contact
from weft.controllers.loss import plan
from weft.failover.timing import NODES
from weft.informer.loss.renewals import Renewals

RUNS = 10


@pytest.mark.parametrize("first", mark_long(range(0, 200, RUNS), *range(2 * RUNS, 200, RUNS)))
def test_it_runs_in_one_place_at_most(first: int) -> None:
    stories = {seed: tell_story(seed) for seed in range(first, first + RUNS)}
    assert {seed: broken for seed, (broken, _) in stories.items() if broken} == {}
    assert sum(losses for _, losses in stories.values()) > 0


def expect_two(seed: int) -> None:
    broken, _ = tell_story(seed)
    assert broken and ("runs twice" in broken[0] or "was freed while it runs" in broken[0]), broken


def test_a_promise_that_is_shorter_than_a_lease_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROMISE_SECONDS", NODES.lease - 10.0)
    expect_two(0)


def test_a_server_that_begins_and_counts_from_before_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Renewals.__init__

    def begin_early(self: Renewals, *given: Any) -> None:
        begin(self, *given)
        self._began_at -= NODES.promise

    monkeypatch.setattr(Renewals, "__init__", begin_early)
    monkeypatch.setattr(Renewals, "note_report", lambda *_: None)
    expect_two(43)


def test_an_agent_that_starts_what_nobody_has_confirmed_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "explain_wait", lambda *_, **__: "")
    expect_two(0)


def test_an_answer_that_counts_before_the_list_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(self: GuardedGuests, state: Any) -> float | None:
        contact = self._reporter.contact
        return contact.sent_at + NODES.lease if contact.is_in_contact else None

    monkeypatch.setattr(GuardedGuests, "_find_answered", find)
    expect_two(2)


def test_a_silence_without_a_new_token_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contact, "_is_silent", lambda _: False)
    expect_two(2)


def test_a_pause_of_which_only_nodes_know_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "find_pause_end", lambda node: 0.0)
    expect_two(1)
