"""Trains between two nodes over loopback: what is measured, what strangers get, and what a node takes part in."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weft.agent.node import bandwidth
from weft.agent.node.bandwidth import CARS, MOST_TAKEN, SKIPPED, Address, Trains, find_rate
from weft.agent.node.link_load import LinkMeter
from weft.contracts.clock import SystemClock
from weft.protocol.heartbeat import LinkLoad
from weft.protocol.report import Peer, Peers
from weft.trust.probe.echo import node_key, pair_key
from weft.trust.probe.train import BUSY, CAR_BYTES, GO, OFF, WIRE_BYTES, Packet, read_packet, seal

SECRET = b"s" * 32
ONE, TWO, THREE = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
PLACES: dict[str, Address] = {ONE: ("10.0.0.1", 1), TWO: ("10.0.0.2", 2)}
GAP_NS = 100_000


def pair(asker: str, asked: str) -> bytes:
    return pair_key(node_key(SECRET, asked), asker)


class StepClock(SystemClock):
    """Each look at it is a little later than the one before, however long the process had to wait for a core."""

    def __init__(self) -> None:
        self._at = 0.0

    def elapsed(self) -> float:
        self._at += 1e-5
        return self._at

    async def sleep(self, seconds: float) -> None:
        self._at += seconds
        await asyncio.sleep(0)


class Wire:
    """Two nodes; a packet arrives at once, stamped as if a link let one through every GAP_NS, and ``spoil`` may change it."""

    def __init__(self, probes: int = 10, load: float | None = None) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.load = load
        self.spoil: Callable[[bytes], bytes] = lambda data: data
        self.stamp = 0
        self.nodes = {uid: self._make(uid) for uid in (ONE, TWO)}
        for uid, other in ((ONE, TWO), (TWO, ONE)):
            peer = Peer(other, *PLACES[other], pair(uid, other).hex())
            self.nodes[uid].put_peers(Peers("v", node_key(SECRET, uid).hex(), [peer], probes))

    def _make(self, uid: str) -> Trains:
        def send(data: bytes, address: Address) -> bool:
            self.sent.append((uid, data))
            to = next(name for name, place in PLACES.items() if place == address)
            self.stamp += GAP_NS
            self.nodes[to].take(self.spoil(data), PLACES[uid], self.stamp)
            return True

        return Trains(uid, StepClock(), send, lambda: self.load, pace=0.01)

    async def measure(self) -> float | None:
        await self.nodes[ONE].measure(Peer(TWO, *PLACES[TWO], pair(ONE, TWO).hex()))
        found = self.nodes[ONE].find(TWO)
        return None if found is None else found.mbps

    def ask(self, nonce: bytes, asker: str = ONE) -> int | None:
        """What TWO answers to a question of ``asker``."""
        before = len(self.sent)
        self.nodes[TWO].take(seal(pair(asker, TWO), "ask", asker, nonce), PLACES[ONE], 0)
        answers = [packet for uid, data in self.sent[before:] if uid == TWO and (packet := read_packet(data))]
        return answers[0].number if answers else None


async def test_a_train_gives_the_rate_of_its_packets_behind_the_first_five() -> None:
    assert await Wire().measure() == pytest.approx(WIRE_BYTES * 8e3 / GAP_NS)


@pytest.mark.parametrize(("saved", "rate"), [(5, 100.0), (12, 100.0), (20, 100.0)])
def test_packets_that_a_link_lets_pass_at_once_do_not_count(saved: int, rate: float) -> None:
    gap = round(WIRE_BYTES * 8e3 / rate)
    stamps = {number: max(number, saved + (number - saved) * gap) for number in range(CARS)}
    assert find_rate(stamps) == pytest.approx(rate, rel=0.01)


def test_a_train_of_which_too_little_arrives_says_nothing() -> None:
    assert find_rate({number: number for number in range(SKIPPED + 5)}) is None
    assert find_rate(dict.fromkeys(range(CARS), 7)) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],
        lambda data: data[:4],
        lambda data: data + b"x",
        lambda data: secrets.token_bytes(len(data)),
    ],
)
async def test_what_a_stranger_changes_on_the_way_gives_no_figure(spoil: Callable[[bytes], bytes]) -> None:
    wire = Wire()
    wire.spoil = spoil
    assert await wire.measure() is None
    assert not any(len(data) == CAR_BYTES for _, data in wire.sent), "a train without an agreement"


@pytest.fixture
def taken() -> Iterator[Wire]:
    """TWO has agreed to a train of ONE."""
    wire = Wire()
    assert wire.ask(b"12345678") == GO
    yield wire


async def test_a_stranger_neither_makes_a_node_send_nor_adds_to_a_train(taken: Wire) -> None:
    other, sent = pair(THREE, TWO), len(taken.sent)
    for sort in ("ask", "car", "end", "go", "done"):
        for key in (bytes(32), other):
            taken.nodes[TWO].take(seal(key, sort, ONE, b"12345678", 3, (9e9, 32)), PLACES[ONE], 1)
    assert len(taken.sent) == sent and taken.nodes[TWO]._session is not None
    assert not taken.nodes[TWO]._session.stamps
    assert taken.nodes[TWO].find(ONE) is None


async def test_an_answer_is_never_larger_than_its_question() -> None:
    wire = Wire()
    await wire.measure()
    ours = [len(data) for uid, data in wire.sent if uid == TWO]
    small = [len(data) for uid, data in wire.sent if uid == ONE and len(data) != CAR_BYTES]
    assert max(ours) <= min(small) and len(ours) == len(small)


async def test_a_node_takes_part_in_one_train_at_a_time_and_in_few_a_minute(
    taken: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth, "MINUTE_SECONDS", 1e9)
    assert taken.ask(b"12345678") == GO, "the same question came twice"
    assert taken.ask(b"another.", THREE) == BUSY
    for number in range(MOST_TAKEN):
        taken.nodes[TWO]._session = None
        assert taken.ask(b"%08d" % number) == (GO if number < MOST_TAKEN - 1 else BUSY)


async def test_nothing_is_measured_on_a_busy_link_or_where_probes_are_off() -> None:
    busy, off = Wire(load=0.8), Wire(probes=0)
    assert await busy.measure() is None and not busy.sent
    assert (busy.ask(b"12345678"), off.ask(b"12345678")) == (BUSY, OFF)
    assert await off.measure() is None and not any(len(data) == CAR_BYTES for _, data in off.sent)


async def test_a_peer_that_is_named_no_more_is_forgotten() -> None:
    wire = Wire()
    assert await wire.measure() is not None
    wire.nodes[ONE].put_peers(Peers("v2", node_key(SECRET, ONE).hex(), [], 10))
    assert wire.nodes[ONE].find(TWO) is None


async def test_a_rate_that_no_network_has_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (-1.0, 0.0, float("nan"), float("inf"), 1e9):
        monkeypatch.setattr(Packet, "result", property(lambda self, wrong=wrong: (wrong, 32)))
        assert await Wire().measure() is None


def test_rates_of_the_own_link_follow_its_counters_and_begin_again_with_them(tmp_path: Path) -> None:
    meter = LinkMeter("up0", tmp_path)
    (tmp_path / "up0/statistics").mkdir(parents=True)

    def note(received: float, sent: float, at: float) -> LinkLoad:
        (tmp_path / "up0/statistics/rx_bytes").write_text(f"{received:.0f}\n")
        (tmp_path / "up0/statistics/tx_bytes").write_text(f"{sent:.0f}\n")
        return meter.note(at)

    assert note(0.0, 0.0, 100.0) == LinkLoad()
    assert note(10e6, 1e6, 108.0) == LinkLoad(10.0, 1.0)
    assert meter.find_share(100.0) == pytest.approx(0.1) and meter.find_share(None) is None
    (tmp_path / "up0/speed").write_text("-1\n")
    assert note(5.0, 5.0, 116.0) == LinkLoad() and meter.find_share(100.0) is None
    (tmp_path / "up0/speed").write_text("1000\n")
    assert note(10e6 + 5, 5.0, 124.0) == LinkLoad(10.0, 0.0, 1000.0) and meter.find_share(None) == 0.01
    assert LinkMeter("gone", tmp_path).note(130.0) == LinkLoad()
