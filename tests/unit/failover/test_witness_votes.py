"""What the witness answers for one group, case by case, and what both clusters make of the answers."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from weft.failover.primary import is_confirmed, is_retired
from weft.failover.standby import WitnessQuestion, find_taken, find_unused, follow_renewals, may_ask, was_not_promoted
from weft.failover.timing import CLUSTERS, NODES, Timing, check_timing, find_least_promise
from weft.failover.witness import (
    Vote,
    VoteRecord,
    begin_vote,
    doubt_vote,
    inspect_claim,
    receive_claim,
    receive_question,
    receive_return,
)
from weft.objects.errors import InvalidInput
from weft.protocol.failover.claim import (
    Claim,
    ClaimAnswer,
    ClaimRefused,
    Conflict,
    Generation,
    Granted,
    Newer,
    Promised,
)
from weft.protocol.failover.witness import WitnessAnswer

FIRST = Claim(Generation(1, "first"), "a")
SECOND = Claim(Generation(2, "x"), "b")
LASTS = 27.0


@pytest.fixture
def vote() -> Vote:
    """Both have named the first claim, the primary at 100 s."""
    vote, _ = receive_claim(None, "b", FIRST, LASTS, 99.0)
    vote, answer = receive_claim(vote, "a", FIRST, LASTS, 100.0)
    assert answer == Promised(FIRST) and vote.is_armed
    return vote


def ask(vote: Vote | None, now: float, fresh_id: str = "x") -> tuple[Vote, ClaimAnswer]:
    return receive_question(vote, "b", FIRST, LASTS, now, fresh_id)


def test_nothing_is_granted_before_a_promise_is_over_and_then_the_next_generation(vote: Vote) -> None:
    assert ask(vote, 126.0)[1] == ClaimRefused("promised", 1.0)
    granted, answer = ask(vote, 127.0)
    assert answer == Granted(SECOND)
    assert receive_claim(granted, "a", FIRST, LASTS, 128.0)[1] == Newer(SECOND)


def test_a_grant_whose_answer_was_lost_is_given_again_until_it_was_used(vote: Vote) -> None:
    granted, _ = ask(vote, 127.0)
    again, answer = ask(granted, 130.0, "another")
    assert answer == Granted(SECOND)
    taken, _ = receive_claim(again, "b", SECOND, LASTS, 131.0)
    assert ask(taken, 500.0)[1] == Newer(SECOND)  # the standby's store was restored: people decide


def test_a_witness_that_starts_grants_nothing_for_a_whole_promise(vote: Vote) -> None:
    begun = begin_vote(vote.record, 5.0)
    assert ask(begun, 31.5)[1] == ClaimRefused("promised", 0.5)
    assert ask(begun, 32.0)[1] == Granted(SECOND)


def test_a_long_promise_holds_though_later_ones_are_shorter_and_the_witness_starts() -> None:
    vote, _ = receive_claim(None, "a", FIRST, 75.0, 0.0)
    vote, _ = receive_claim(vote, "a", FIRST, 27.0, 1.0)
    assert vote.until == 75.0 and begin_vote(vote.record, 2.0).until == 77.0
    vote, _ = receive_claim(vote, "a", FIRST, 27.0, 50.0)
    assert (vote.until, vote.record.seconds) == (77.0, 27.0)


def test_an_empty_witness_and_one_of_another_history_grant_nothing_until_both_have_spoken(vote: Vote) -> None:
    for before in (None, doubt_vote(vote)):
        asked, answer = ask(before, 1e6)
        assert answer == ClaimRefused("unconfirmed") and asked.record.claim == FIRST
        both, answer = receive_claim(asked, "a", FIRST, LASTS, 1e6 + 1)
        assert answer == Promised(FIRST) and both.is_armed
        assert isinstance(ask(both, 1e6 + 27)[1], ClaimRefused)
        assert isinstance(ask(both, 1e6 + 29)[1], Granted)


def test_a_witness_that_was_restored_adopts_what_is_newer_and_is_disarmed(vote: Vote) -> None:
    newer = Claim(Generation(4, "x"), "b")
    adopted, answer = receive_claim(vote, "b", newer, LASTS, 101.0)
    assert answer == Promised(newer) and adopted.record.claim == newer and not adopted.is_armed
    assert receive_claim(adopted, "a", FIRST, LASTS, 101.0)[1] == Newer(newer)
    assert not receive_claim(adopted, "a", FIRST, LASTS, 101.0)[0].is_armed
    assert receive_claim(adopted, "a", newer, LASTS, 101.0)[0].is_armed


def test_two_claims_of_one_number_refuse_each_other_and_people_decide() -> None:
    ours, theirs = Claim(Generation(2, "x"), "a"), Claim(Generation(2, "y"), "b")
    vote = begin_vote(VoteRecord(ours, LASTS, frozenset("ab")), 0.0)
    assert receive_question(vote, "b", theirs, LASTS, 100.0, "z")[1] == Conflict(ours)
    assert receive_claim(vote, "b", theirs, LASTS, 100.0)[1] == Conflict(ours)


@pytest.mark.parametrize(
    ("answer", "is_armed", "confirms"),
    [
        (Promised(FIRST), True, True),
        (Promised(FIRST), False, False),  # it lost its file: it doesn't know what it granted
        (Promised(SECOND), True, False),
        (Newer(SECOND), True, False),
        (Conflict(FIRST), True, False),
        (ClaimRefused("notHolder"), True, False),
        (Granted(FIRST), True, False),
    ],
)
def test_only_the_promise_of_an_armed_witness_confirms_a_primary(
    answer: ClaimAnswer, is_armed: bool, confirms: bool
) -> None:
    assert is_confirmed(FIRST, WitnessAnswer(answer=answer, epoch="e", is_armed=is_armed)) is confirms


def test_a_standby_asks_once_the_primary_was_silent_for_a_promise_by_its_own_clock() -> None:
    silence = follow_renewals(None, 7, 38.0, 100.0)
    assert follow_renewals(silence, 7, 38.0, 120.0) == silence
    assert (may_ask(silence, 137.9), may_ask(silence, 138.0)) == (False, True)
    renewed = follow_renewals(silence, 8, 38.0, 137.0)
    assert may_ask(renewed, 174.9) is False
    assert follow_renewals(None, 8, 38.0, 180.0).until == 218.0  # a process that starts knows nothing


@pytest.mark.parametrize(
    "answer",
    [
        ClaimRefused("promised", 3.0),
        Newer(SECOND),
        Promised(SECOND),
        Granted(Claim(Generation(2, "x"), "a")),  # another cluster's
        Granted(replace(FIRST, holder="b")),  # no newer generation
    ],
)
def test_nothing_but_a_grant_of_the_next_generation_makes_a_primary(answer: ClaimAnswer) -> None:
    assert find_taken(WitnessQuestion(7, FIRST, "b"), 7, answer, "") is None


def test_a_grant_counts_for_nothing_if_the_primary_renewed_its_hold_since_the_question() -> None:
    asked = WitnessQuestion(7, FIRST, "b")
    assert find_taken(asked, 7, Granted(SECOND), "") == SECOND
    assert find_taken(asked, 7, Granted(SECOND), SECOND.generation.id) is None  # it is being given back
    assert find_taken(asked, 8, Granted(SECOND), "") is None


def test_a_promise_that_could_end_before_the_guests_do_is_refused() -> None:
    timing = Timing(promise=LASTS)
    assert find_least_promise(timing) == pytest.approx(26.5) and find_least_promise(NODES) == pytest.approx(52.0)
    for used in (timing, CLUSTERS, NODES):
        check_timing(used)
    for wrong, field in (({"promise": 26.0}, "promise"), ({"renew": 6.0}, "renew"), ({"kill": 0.0}, "lease")):
        with pytest.raises(InvalidInput) as refusal:
            check_timing(replace(timing, **wrong))
        assert refusal.value.field == field


def test_a_copy_that_was_told_in_an_earlier_turn_is_granted_nothing(vote: Vote) -> None:
    told, answer = receive_claim(vote, "a", FIRST, LASTS, 200.0, turn=4)
    assert answer == Promised(FIRST) and told.record.turn == 4
    assert receive_claim(told, "a", FIRST, LASTS, 200.0, turn=3)[0].record.turn == 4
    assert receive_claim(told, "b", FIRST, LASTS, 200.0, turn=9)[0].record.turn == 4  # only the primary ends a turn
    later = told.until + 1
    assert receive_question(told, "b", FIRST, LASTS, later, "z", turn=3)[1] == ClaimRefused("earlierTurn")
    assert isinstance(receive_question(told, "b", FIRST, LASTS, later, "z", turn=4)[1], Granted)
    # Nor is a grant repeated to it.
    granted, _ = receive_question(told, "b", FIRST, LASTS, later, "z", turn=4)
    ended = replace(granted, record=replace(granted.record, turn=5))
    assert receive_question(ended, "b", FIRST, LASTS, later, "z", turn=4)[1] == Newer(granted.record.claim)


@pytest.mark.parametrize(
    ("turn", "known", "is_armed", "answer", "is_so"),
    [
        (4, 4, True, Promised(FIRST), True),
        (4, 0, True, Promised(FIRST), False),  # it hasn't heard of it, or is of an older release
        (4, 5, True, Promised(FIRST), False),  # this store is older than what the copy was told
        (4, 4, False, Promised(FIRST), False),
        (4, 4, True, Newer(SECOND), False),
        (0, 0, True, Promised(FIRST), False),
    ],
)
def test_the_witness_s_word_counts_only_for_the_very_turn(
    turn: int, known: int, is_armed: bool, answer: ClaimAnswer, is_so: bool
) -> None:
    said = WitnessAnswer(answer=answer, epoch="", is_armed=is_armed, turn=known)
    assert is_retired(FIRST, said, turn) is is_so


def test_a_grant_that_was_not_used_is_given_back_and_the_witness_promises_to_the_source_again(vote: Vote) -> None:
    granted, answer = ask(vote, 1e6)
    assert isinstance(answer, Granted) and not granted.record.is_taken
    given = answer.claim.generation.id
    assert receive_claim(granted, "a", FIRST, LASTS, 1e6 + 1)[1] == Newer(answer.claim)
    back, said = receive_return(granted, "b", FIRST, given, LASTS, 1e6 + 2)
    assert said == ClaimRefused("returned", LASTS) and back.record.claim == FIRST and not back.is_armed
    again, promised = receive_claim(back, "a", FIRST, LASTS, 1e6 + 3)
    assert promised == Promised(FIRST) and again.is_armed
    # A late repetition changes nothing, and nothing is granted before a whole promise is over.
    assert receive_return(again, "b", FIRST, given, LASTS, 1e6 + 4)[0].record == again.record
    assert isinstance(ask(again, 1e6 + 4)[1], ClaimRefused)


def test_only_the_site_that_got_a_grant_gives_it_back_and_only_while_it_is_not_used(vote: Vote) -> None:
    granted, answer = ask(vote, 1e6)
    assert isinstance(answer, Granted)
    claim, given = answer.claim, answer.claim.generation.id
    for site, named, which in (
        ("a", FIRST, given),
        ("b", FIRST, "another"),
        ("b", Claim(Generation(1, "x"), "b"), given),
    ):
        assert receive_return(granted, site, named, which, LASTS, 1e6 + 1)[0].record.claim == claim
    used, _ = receive_claim(granted, "b", claim, LASTS, 1e6 + 1)
    assert receive_return(used, "b", FIRST, given, LASTS, 1e6 + 2)[0].record.claim == claim


def test_a_standby_finds_a_grant_that_it_does_not_use() -> None:
    assert (
        find_unused("b", WitnessAnswer(answer=Newer(SECOND), epoch="", is_armed=True, is_used=False))
        == SECOND.generation.id
    )
    for answer, is_used in (
        (Newer(SECOND), True),
        (Newer(Claim(Generation(2, "y"), "a")), False),
        (ClaimRefused("x"), False),
    ):
        assert not find_unused("b", WitnessAnswer(answer=answer, epoch="", is_armed=True, is_used=is_used))


def test_who_was_restored_confirms_nothing_and_learns_whether_it_was_promoted(vote: Vote) -> None:
    def was_not(before: Vote | None) -> bool:
        armed = before is not None and before.is_armed
        return was_not_promoted(WitnessAnswer(answer=inspect_claim(before, FIRST), epoch="", is_armed=armed))

    assert was_not(vote)
    assert not was_not(None) and not was_not(doubt_vote(vote))
    assert not was_not(ask(vote, 1e6)[0])
