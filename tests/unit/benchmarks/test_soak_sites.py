"""The oracle of the soak of two sites: it finds two guests of one VM, what a guest lacks, and loss that was stated wrongly."""

from __future__ import annotations

import pytest
from benchmarks.soak.sites.faults import KINDS, draw_fault
from benchmarks.soak.sites.oracle import Beat, Chronicle, Passage, Seen, find_doubles, judge_loss


def tell(chronicle: Chronicle, boot: str, site: str, began: int, since: float, *numbers: int, wrong: int = 0) -> None:
    for place, n in enumerate(numbers):
        chronicle.note(Beat(since + place / 10, "db", boot, n, began, wrong, site))


def test_what_a_guest_lacks_is_counted_from_the_newest_number_that_it_has() -> None:
    chronicle = Chronicle()
    tell(chronicle, "a", "east", 0, 100.0, *range(1, 51))
    tell(chronicle, "b", "west", 30, 140.0, 31, 32)
    (passage,) = chronicle.passages
    assert (passage.former.site, passage.next.site, passage.lost) == ("east", "west", 20)
    assert passage.kept_at == pytest.approx(102.9) and passage.last_at == pytest.approx(104.9)
    assert judge_loss(passage, 139.0, 36.2, 0.5) == ""
    assert "are lost" in judge_loss(passage, 139.0, 20.0, 0.5)
    tell(chronicle, "c", "west", 32, 150.0, 33)
    assert chronicle.passages[1].lost == 0 and chronicle.problems == []


def test_a_guest_that_goes_on_beside_the_next_one_is_found() -> None:
    chronicle = Chronicle()
    tell(chronicle, "a", "east", 0, 100.0, 1, 2, 3)
    tell(chronicle, "b", "west", 3, 140.0, 4, 5)
    assert chronicle.list_doubles(0.0) == []
    tell(chronicle, "a", "east", 0, 160.0, 4)
    assert (
        chronicle.list_doubles(0.0) == [] and chronicle.count_slipped(0.0) == 1
    )  # it stood still, and was ended as it went on
    tell(chronicle, "a", "east", 0, 160.1, 5, 6, 7)
    ((life, seconds),) = chronicle.list_doubles(0.0)
    assert life.site == "east" and seconds == pytest.approx(0.3) and chronicle.count_slipped(0.0) == 0
    assert chronicle.list_doubles(161.0) == []
    tell(chronicle, "b", "west", 3, 161.0, 6)
    assert [passage.lost for passage in chronicle.passages] == [0]


def test_spoilt_records_and_a_guest_at_two_sites_are_told() -> None:
    chronicle = Chronicle()
    tell(chronicle, "a", "east", 7, 100.0, 8, wrong=2)
    tell(chronicle, "a", "west", 7, 101.0, 9)
    assert [("spoilt" in one, "east and at west" in one) for one in chronicle.problems] == [
        (True, False),
        (False, True),
    ]


def test_two_processes_count_once_both_have_run_for_two_looks() -> None:
    east, west, still = Seen("east", 1, True), Seen("west", 2, True), Seen("east", 1, False)
    assert find_doubles({"db": [east]}, {"db": [east, west]}) == {}
    assert find_doubles({"db": [still, west]}, {"db": [east, west]}) == {}
    assert find_doubles({"db": [east, west]}, {"db": [east, west], "web": [west]}) == {"db": [east, west]}


def test_nothing_is_lost_where_all_is_there() -> None:
    chronicle = Chronicle()
    tell(chronicle, "a", "east", 0, 100.0, 1, 2, 3)
    tell(chronicle, "b", "west", 4, 110.0, 5)
    passage: Passage = chronicle.passages[0]
    assert judge_loss(passage, 1e9, 0.0, 0.0) == ""


def test_each_kind_comes_once_in_so_many_rounds_and_the_seed_decides() -> None:
    for block in range(3):
        rounds = [draw_fault(7, number) for number in range(block * len(KINDS), (block + 1) * len(KINDS))]
        assert sorted(one.kind for one in rounds) == sorted(KINDS)
        for one in rounds:
            assert not any(
                extra.where == "home" and one.kind in ("frozen", "all frozen", "killed") for extra in one.extras
            ), one
    assert draw_fault(7, 4) == draw_fault(7, 4)
