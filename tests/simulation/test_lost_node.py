"""A node is cut off, stopped, killed, asleep: in 200 runs a container that may start elsewhere runs in two places at no moment.
Without any one of the rules it does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.long import mark_long
from tests.simulation.lost_node import tell_story
from weft.agent.guard import guests
from weft.agent.guard.guests import GuardedGuests
from weft.agent.server.contact import Contact
from weft.controllers.loss import controller, plan
from weft.controllers.power import controller as power
from weft.controllers.power.controller import Power
from weft.failover.timing import NODES
from weft.informer.loss.renewals import Renewals
from weft.informer.view import Item
from weft.kinds.parts.node.power import PowerReading
from weft.objects.errors import WeftError

RUNS, RUNS_WITH_ETCD = 10, 4


@pytest.mark.parametrize("first", mark_long(range(0, 200, RUNS), *range(RUNS, 200, RUNS)))
def test_it_runs_in_one_place_at_most(first: int) -> None:
    stories = {seed: tell_story(seed) for seed in range(first, first + RUNS)}
    assert {seed: broken for seed, (broken, _) in stories.items() if broken} == {}
    assert sum(losses.total() for _, losses in stories.values()) > 0


@pytest.mark.parametrize("first", mark_long(range(0, 200, RUNS_WITH_ETCD), *range(RUNS_WITH_ETCD, 200, RUNS_WITH_ETCD)))
def test_so_it_does_while_the_store_is_away_for_some_servers_and_with_bmcs_and_autonomy(first: int) -> None:
    stories = {
        seed: tell_story(seed, servers=2 + seed % 2, mixed=seed % 2 > 0)
        for seed in range(first, first + RUNS_WITH_ETCD)
    }
    assert {seed: broken for seed, (broken, _) in stories.items() if broken} == {}


@pytest.mark.long
def test_each_way_of_knowing_frees_it_in_such_stories() -> None:
    losses, seeds = Counter[str](), iter(range(100))
    while not losses.keys() >= {"guard", "power", "person"}:
        losses += tell_story(next(seeds), mixed=True)[1]


@pytest.mark.long
@pytest.mark.parametrize("wrong", ["late word", "autonomy"])
def test_a_late_word_of_a_bmc_and_a_forgotten_autonomy_are_found_out(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong == "autonomy":
        monkeypatch.setattr(plan, "stretch", lambda _: 0.0)
    else:
        monkeypatch.setattr(Power, "_read", _read_late)
    found = (broken for seed in range(100) if (broken := tell_story(seed, 3, mixed=True)[0]))
    assert "was freed while it runs" in next(found, [""])[0]


async def _read_late(self: Power, node: Item, known: PowerReading) -> PowerReading:
    """The contact at the time of the answer, as if nothing could have happened since the BMC was asked."""
    at = self._clock.now()
    try:
        state = await power.in_thread(self._find_bmc(node).read)
    except WeftError as problem:
        return power._note_problem(known, problem, at)
    return power._note_state(known, state, at, self._leadership.cache.view.get(node.key) or node)


def expect_two(seed: int) -> None:
    broken, _ = tell_story(seed)
    assert broken and ("runs twice" in broken[0] or "was freed while it runs" in broken[0]), broken


def test_a_promise_that_is_shorter_than_a_lease_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROMISE_SECONDS", NODES.lease - 10.0)
    expect_two(2)


def test_a_server_that_begins_and_counts_from_before_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Renewals.__init__

    def begin_early(self: Renewals, *given: Any) -> None:
        begin(self, *given)
        self._floor, self._read_at = self._floor - NODES.promise, self._floor

    monkeypatch.setattr(Renewals, "__init__", begin_early)
    monkeypatch.setattr(Renewals, "note_report", lambda *_: None)
    expect_two(0)


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
    monkeypatch.setattr(controller, "find_pause_end", lambda node: 0.0)
    expect_two(1)
