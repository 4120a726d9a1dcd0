"""Who may run the guests of a group, case by case. The clocks of the three are one here; the simulation gives each its own."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from weft.failover.site import begin_site, pass_time, receive_answer, receive_renewal
from weft.failover.timing import Timing, check_timing, find_least_promise
from weft.failover.witness import Vote, VoteRecord, begin_vote, doubt_vote, receive_claim, receive_question
from weft.objects.errors import InvalidInput
from weft.protocol.failover.claim import Answer, Claim, Conflict, Generation, Granted, Newer, Promised, Refused

FIRST = Claim(Generation(1, "first"), "a")
TIMING = Timing(watchdog=0.0, promise=27.0)


class Trio:
    """Both sites and the witness, a second at a time. ``cut``: pairs, like "aw", over which nothing comes."""

    def __init__(self) -> None:
        self.now, self.cut = 100.0, set[str]()
        self.sites = {name: begin_site(name, FIRST, TIMING, self.now) for name in "ab"}
        self.vote: Vote | None = None
        self.down = set[str]()

    def runs(self) -> str:
        return "".join(name for name in "ab" if name not in self.down and self.sites[name].may_run(self.now))

    def carries(self, source: str, target: str) -> bool:
        return not {source, target} & self.down and source + target not in self.cut

    def isolate(self, name: str, *others: str) -> None:
        self.cut |= {pair for other in others for pair in (name + other, other + name)}

    def ask_witness(self, name: str, what: str, claim: Claim) -> Answer:
        if what == "claim":
            self.vote, answer = receive_claim(self.vote, name, claim, TIMING.promise, self.now)
        else:
            self.vote, answer = receive_question(self.vote, name, claim, TIMING.promise, self.now, f"id-{self.now:g}")
        return answer

    def pass_seconds(self, seconds: int) -> set[str]:
        """Who ran in that time."""
        seen = set()
        for _ in range(seconds):
            self.now += 1.0
            for name in (name for name in "ab" if name not in self.down):
                self.sites[name], sends = pass_time(self.sites[name], self.now)
                for one in sends:
                    self._send(name, "w" if one.to == "witness" else "ba"["ab".index(name)], one.what, one.claim)
            seen.add(self.runs())
        return seen

    def _send(self, name: str, target: str, what: str, claim: Claim) -> None:
        if not self.carries(name, target):
            return
        if target == "w":
            answer = self.ask_witness(name, what, claim)
        else:
            self.sites[target], answer = receive_renewal(self.sites[target], claim, self.now)
        if self.carries(target, name):
            self.sites[name] = receive_answer(self.sites[name], self.now, claim, answer, self.now)


@pytest.fixture
def trio() -> Trio:
    trio = Trio()
    trio.pass_seconds(40)
    assert trio.runs() == "a" and trio.vote is not None and trio.vote.is_armed
    return trio


def test_neither_the_lost_link_nor_a_lost_witness_stops_anybody(trio: Trio) -> None:
    trio.isolate("a", "b")
    assert trio.pass_seconds(120) == {"a"}
    trio.cut.clear()
    trio.pass_seconds(10)
    trio.down = {"w"}
    assert trio.pass_seconds(120) == {"a"}


def test_a_site_that_is_cut_off_stops_and_the_other_takes_over_after_that(trio: Trio) -> None:
    trio.isolate("a", "b", "w")
    assert trio.pass_seconds(17) == {"a"}
    assert trio.pass_seconds(9) <= {"a", ""} and trio.runs() == ""
    trio.pass_seconds(8)
    assert trio.runs() == "b"
    trio.cut.clear()
    assert trio.pass_seconds(60) == {"b"}
    assert trio.sites["a"].claim == trio.sites["b"].claim and trio.sites["a"].claim.generation.number == 2


def test_a_dead_site_is_taken_over_once_its_promise_is_over(trio: Trio) -> None:
    trio.down = {"a"}
    assert trio.pass_seconds(26) == {""}
    trio.pass_seconds(8)
    assert trio.runs() == "b"


def test_without_witness_and_link_everything_stops_and_goes_on_where_it_was(trio: Trio) -> None:
    trio.isolate("a", "b", "w")
    trio.isolate("b", "w")
    trio.pass_seconds(60)
    assert trio.runs() == ""
    trio.cut.clear()
    trio.pass_seconds(10)
    assert trio.runs() in ("a", "b")
    assert trio.pass_seconds(60) in ({"a"}, {"b"})


@pytest.mark.parametrize("pair", ["aw", "wa"])
def test_one_direction_to_the_witness_stops_nobody(trio: Trio, pair: str) -> None:
    trio.cut = {pair}
    assert trio.pass_seconds(120) == {"a"}


def test_a_primary_whose_renewals_are_never_answered_lets_the_other_take_over(trio: Trio) -> None:
    trio.isolate("a", "w")
    trio.cut.add("ba")
    trio.pass_seconds(30)
    assert trio.runs() == ""
    trio.pass_seconds(30)
    assert trio.runs() == "b"


def test_a_grant_whose_answer_was_lost_is_given_again_and_only_to_who_asked(trio: Trio) -> None:
    trio.down, trio.cut = {"a"}, {"wb"}
    trio.pass_seconds(40)
    assert trio.runs() == "" and trio.vote is not None and trio.vote.record.claim.holder == "b"
    granted = trio.vote.record.claim
    trio.down = set()
    trio.pass_seconds(5)
    assert trio.sites["a"].claim == granted and trio.runs() == ""
    trio.cut.clear()
    trio.pass_seconds(5)
    assert trio.runs() == "b" and trio.sites["b"].claim == granted


def test_a_site_whose_server_starts_forgets_no_promise(trio: Trio) -> None:
    """The primary lives by this site's promises alone."""
    trio.isolate("a", "w")
    assert trio.pass_seconds(60) == {"a"}
    trio.isolate("a", "b")
    trio.sites["b"] = begin_site("b", FIRST, TIMING, trio.now)
    assert "b" not in trio.pass_seconds(26)
    trio.pass_seconds(10)
    assert trio.runs() == "b"


def test_a_late_repetition_of_a_question_gets_nothing_once_the_lease_was_renewed(trio: Trio) -> None:
    trio.down = {"a"}
    trio.pass_seconds(40)
    assert trio.runs() == "b" and trio.vote is not None and trio.vote.record.is_taken
    assert isinstance(trio.ask_witness("b", "question", FIRST), Newer)  # b's store was restored: people decide


def test_a_grant_counts_for_nothing_if_the_peer_was_promised_something_since() -> None:
    site = replace(begin_site("b", FIRST, TIMING, 0.0), asks_until=50.0)
    granted = Granted(Claim(Generation(2, "x"), "b"))
    refused, answer = receive_renewal(site, FIRST, 31.0)
    assert answer == Refused("asking") and refused == site
    assert receive_answer(site, 30.0, FIRST, granted, 32.0).may_run(32.0)
    promised, answer = receive_renewal(replace(site, asks_until=0.0), FIRST, 31.0)
    assert answer == Promised(FIRST)
    late = replace(promised, asks_until=60.0)
    assert not receive_answer(late, 30.0, FIRST, granted, 32.0).may_run(32.0)
    assert not receive_answer(site, 30.0, FIRST, granted, 30.0 + TIMING.lease).may_run(30.0 + TIMING.lease)  # too late


def test_a_witness_that_starts_grants_nothing_for_a_whole_promise_and_leases_go_on(trio: Trio) -> None:
    assert trio.vote is not None
    trio.vote = begin_vote(trio.vote.record, trio.now)
    trio.down = {"a"}
    trio.pass_seconds(26)
    assert trio.runs() == ""
    answer = trio.ask_witness("b", "question", FIRST)
    assert isinstance(answer, Refused) and answer.reason == "promised" and answer.seconds <= 1.0


def test_a_long_promise_holds_though_later_ones_are_shorter_and_the_witness_starts() -> None:
    vote, _ = receive_claim(None, "a", FIRST, 75.0, 0.0)
    vote, _ = receive_claim(vote, "a", FIRST, 27.0, 1.0)
    assert vote.until == 75.0 and begin_vote(vote.record, 2.0).until == 77.0
    vote, _ = receive_claim(vote, "a", FIRST, 27.0, 50.0)
    assert (vote.until, vote.record.seconds) == (77.0, 27.0)


def test_an_empty_witness_and_one_of_another_history_grant_nothing_until_both_sites_have_spoken(trio: Trio) -> None:
    assert trio.vote is not None
    for vote in (None, doubt_vote(trio.vote)):
        asked, answer = receive_question(vote, "b", FIRST, 27.0, 1e6, "x")
        assert answer == Refused("unconfirmed") and asked.record.claim == FIRST
        both, answer = receive_claim(asked, "a", FIRST, 27.0, 1e6 + 1)
        assert answer == Promised(FIRST) and both.is_armed
        assert isinstance(receive_question(both, "b", FIRST, 27.0, 1e6 + 27, "x")[1], Refused)
        assert isinstance(receive_question(both, "b", FIRST, 27.0, 1e6 + 29, "x")[1], Granted)


def test_a_witness_that_was_restored_adopts_what_is_newer_and_is_disarmed(trio: Trio) -> None:
    newer = Claim(Generation(4, "x"), "b")
    vote, answer = receive_claim(trio.vote, "b", newer, 27.0, trio.now)
    assert answer == Promised(newer) and vote.record.claim == newer and not vote.is_armed
    assert receive_claim(vote, "a", FIRST, 27.0, trio.now)[1] == Newer(newer)
    assert not receive_claim(vote, "a", FIRST, 27.0, trio.now)[0].is_armed
    assert receive_claim(vote, "a", newer, 27.0, trio.now)[0].is_armed


def test_two_claims_of_one_number_refuse_each_other_and_people_decide() -> None:
    ours, theirs = Claim(Generation(2, "x"), "a"), Claim(Generation(2, "y"), "b")
    site, answer = receive_renewal(begin_site("a", ours, TIMING, 0.0), theirs, 1.0)
    assert answer == Conflict(ours)
    told = receive_answer(site, 1.0, ours, Conflict(theirs), 1.0)
    assert told.problem.startswith("a and b are both primary in generation 2") and not told.may_run(1.5)
    vote = begin_vote(VoteRecord(ours, 27.0, frozenset("ab")), 0.0)
    assert receive_question(vote, "b", theirs, 27.0, 100.0, "z")[1] == Conflict(ours)


def test_a_lease_counts_from_before_it_was_asked_for_and_a_lapsed_primary_asks() -> None:
    site = begin_site("a", FIRST, TIMING, 0.0)
    held = receive_answer(site, 1.0, FIRST, Promised(FIRST), 9.0)
    assert held.valid_until == 21.0 and receive_answer(held, 0.5, FIRST, Promised(FIRST), 9.5).valid_until == 21.0
    assert receive_answer(site, 1.0, FIRST, Promised(FIRST), 21.0) == site  # too late
    _, sends = pass_time(held, 22.0)
    assert [one.what for one in sends] == ["question"]
    assert not receive_answer(held, 20.0, FIRST, Promised(FIRST), 22.0).may_run(22.0)  # nothing renews it any more


def test_who_hears_of_a_newer_generation_stops_at_once() -> None:
    newer = Claim(Generation(2, "x"), "b")
    held = receive_answer(begin_site("a", FIRST, TIMING, 0.0), 1.0, FIRST, Promised(FIRST), 1.0)
    for told in (receive_answer(held, 2.0, FIRST, Newer(newer), 2.0), receive_renewal(held, newer, 2.0)[0]):
        assert held.may_run(2.0) and not told.may_run(2.0) and told.claim == newer


def test_a_promise_that_could_end_before_the_guests_do_is_refused() -> None:
    assert find_least_promise(TIMING) == pytest.approx(26.5) and find_least_promise(Timing()) == pytest.approx(36.7)
    check_timing(TIMING)
    check_timing(Timing())
    for wrong, field in (({"promise": 26.0}, "promise"), ({"renew": 6.0}, "renew"), ({"kill": 0.0}, "lease")):
        with pytest.raises(InvalidInput) as refusal:
            check_timing(replace(TIMING, **wrong))
        assert refusal.value.field == field
