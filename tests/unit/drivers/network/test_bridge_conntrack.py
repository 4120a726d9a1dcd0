"""What conntrack saves of guests that move."""

from __future__ import annotations

from weft.drivers.network.bridge.conntrack import count_open, pick_flows, rezone

GUEST = "10.20.0.11"
ENDS = "-p tcp --sport 5000 --dport 9090 --reply-port-src 9 --reply-port-dst 5000 --state ESTABLISHED"
PUBLISHED = f"-A -t 3598 -u SEEN_REPLY,ASSURED -s 203.0.113.2 -d 169.254.64.1 -g {GUEST} {ENDS}"
OUTWARD = f"-A -t 3598 -u SEEN_REPLY,ASSURED -s {GUEST} -d 203.0.113.2 -n 169.254.64.1 {ENDS}"
INSIDE = f"-A -t 300 -u ASSURED -w 17 -s {GUEST} -d 10.20.0.12 -r 10.20.0.12 -q {GUEST} {ENDS}"


def test_connections_through_a_router_count_while_they_are_open() -> None:
    assert count_open([PUBLISHED, OUTWARD], GUEST) == 2
    assert count_open([PUBLISHED, OUTWARD], "10.20.0.1") == 0
    assert count_open([PUBLISHED.replace("ESTABLISHED", "TIME_WAIT")], GUEST) == 0


def test_a_filters_connections_go_along_into_the_zone_of_the_target_but_no_translated_ones() -> None:
    assert pick_flows([INSIDE, PUBLISHED, OUTWARD], GUEST) == [INSIDE]
    assert pick_flows([INSIDE], "10.20.0.1") == []
    assert rezone(INSIDE, 5) == INSIDE.replace(" -w 17", "") + " -w 5"
