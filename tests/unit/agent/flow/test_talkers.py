"""Rates of who talks to whom: decayed by the minute, remembered for a day, bounded, and found again in the recorded flows."""

from __future__ import annotations

import pytest

from weft.agent.flow.folded import HOUR, MINUTE, OTHERS, FlowEntry, Interval, Key
from weft.agent.flow.talkers import LEAST_RATE, Talkers
from weft.protocol.heartbeat import MOST_TALKERS, MOST_TALKERS_BYTES, Digest, add_talkers, write_digest
from weft.protocol.traffic import OTHER_PROJECT

NOW = 1_800_000_000.0
DB, CACHE = ("net", "10.0.0.2"), ("net", "10.0.0.3")


def entry(address: str, count: int, name: str = "db", verdict: str = "allowed") -> FlowEntry:
    return FlowEntry(Key("out", "default", address, name, "tcp", 80, verdict), sent_bytes=count)


def minutes(*entries: list[FlowEntry]) -> list[Interval]:
    """The last minutes, the newest last."""
    start = int(NOW) - len(entries) * MINUTE
    return [Interval(start + n * MINUTE, MINUTE, "n1", one) for n, one in enumerate(entries)]


def test_a_rate_follows_by_a_tenth_each_minute_and_fades() -> None:
    talkers = Talkers()
    for _ in range(3):
        talkers.count("web", DB, 60_000)
        talkers.turn(["web"])
    assert talkers.rates["web"] == {DB: pytest.approx(1000 * (0.1 + 0.09 + 0.081))}
    for _ in range(100):
        talkers.turn(["web"])
    assert talkers.rates["web"] == {}


def test_a_new_process_finds_the_same_in_the_recorded_flows() -> None:
    kept, again = Talkers(), Talkers()
    for count in (60_000, 0, 6_000):
        kept.count("web", DB, count)
        kept.turn(["web"])
    again.begin("web", minutes([entry(DB[1], 60_000)], [], [entry(DB[1], 6_000)]), {"default": "net"}, NOW)
    assert again.rates["web"][DB] == pytest.approx(kept.rates["web"][DB])


def test_whom_it_talked_to_hours_ago_is_known_by_the_mean_of_the_day() -> None:
    talkers = Talkers()
    hour = Interval(int(NOW) - 10 * HOUR, HOUR, "n1", [entry(DB[1], 36_000_000)])
    talkers.begin("web", [hour], {"default": "net"}, NOW)
    talkers.turn(["web"])
    assert talkers.rates["web"] == {DB: pytest.approx(1000.0)}
    assert not talkers.is_stale("web", NOW + 60) and talkers.is_stale("web", NOW + 7200)


def test_what_is_no_peer_is_left_out() -> None:
    talkers = Talkers()
    others = [entry(OTHERS, 10**9), entry("1.2.3.4", 10**9, name=""), entry("10.0.0.9", 10**9, verdict="refused")]
    talkers.begin("web", minutes([*others, entry(CACHE[1], 60_000, OTHER_PROJECT)]), {"default": "net"}, NOW)
    assert list(talkers.rates["web"]) == [CACHE]


def test_the_greatest_peers_are_kept_and_a_workload_that_left_is_forgotten() -> None:
    talkers = Talkers()
    for number in range(500):
        talkers.count("web", ("net", f"10.0.{number}.1"), 60_000 * (number + 1))
    talkers.turn(["web"])
    assert len(talkers.rates["web"]) == MOST_TALKERS and min(talkers.rates["web"].values()) >= LEAST_RATE
    talkers.turn([])
    assert not talkers.rates and talkers.is_stale("web", NOW)


def test_a_heartbeat_has_the_greatest_rates_of_all_and_no_more_than_fit() -> None:
    rates = {
        f"{number:036d}": {
            ("n" * 36, f"10.0.{peer}.{number % 250}"): 100.0 * number + peer for peer in range(MOST_TALKERS)
        }
        for number in range(1000)
    }
    digest = add_talkers(Digest(), rates)
    assert 0 < len(write_digest(digest)) <= MOST_TALKERS_BYTES
    assert f"{999:036d}" in digest.talkers and f"{0:036d}" not in digest.talkers
    assert add_talkers(Digest(), {"web": {DB: 1234.5}}).talkers == {"web": [("net.10.0.0.2", 1230.0)]}
