"""When a link is lossy, dead, or good again."""

from __future__ import annotations

from weft.agent.node.links import BURST, Links


def read(links: Links) -> float | None:
    return links.find("peer")


def test_one_lost_packet_is_no_loss_and_two_bad_bursts_are() -> None:
    links = Links()
    assert not links.note("peer", 1, 3) and links.is_suspect("peer") and links.are_unsure
    assert not links.note("peer", 0, BURST) and read(links) == 0.0 and not links.is_lossy("peer")
    assert not links.note("peer", 0, BURST) and not links.is_suspect("peer")
    assert not links.note("peer", 6, BURST) and links.are_unsure
    assert links.note("peer", 5, BURST) and read(links) == 0.25 and links.is_lossy("peer") and not links.are_unsure
    assert not links.note("peer", 8, BURST), "as lossy as it was"


def test_a_lossy_link_is_good_after_two_good_bursts_and_not_after_a_lucky_one() -> None:
    links = Links()
    links.note("peer", 6, BURST)
    links.note("peer", 6, BURST)
    assert not links.note("peer", 0, BURST) and read(links) == 0.3 and links.is_suspect("peer") and links.are_unsure
    assert not links.note("peer", 6, BURST) and not links.note("peer", 0, BURST)
    assert links.note("peer", 0, BURST) and read(links) == 0.0


def test_a_dead_link_is_of_another_kind_than_a_lossy_one() -> None:
    links = Links()
    links.note("peer", 6, BURST)
    assert links.note("peer", 6, BURST) and links.note("peer", BURST, BURST) and read(links) == 1.0
    assert not links.note("peer", BURST, BURST)
    links.note("peer", 0, BURST)
    assert links.note("peer", 0, BURST)


def test_who_is_no_peer_any_more_is_forgotten() -> None:
    links = Links()
    links.note("peer", 0, 3)
    links.keep_only(["other"])
    assert links.find("peer") is None
