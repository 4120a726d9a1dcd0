"""Nodes that ask each other how far away they are, over loopback; and what strangers get."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable
from contextlib import suppress

import pytest

from weft.agent.node.proximity import Nearness, Proximity
from weft.contracts.clock import SystemClock
from weft.protocol.report import Peer, Peers
from weft.trust.probe.echo import (
    PACKET_BYTES,
    answer_probe,
    node_key,
    open_echo,
    pair_key,
    read_asker,
    read_nonce,
    seal_probe,
)

SECRET, HERE = b"s" * 32, "127.0.0.1"
ONE, TWO, THREE = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
NONCE = b"12345678"


def make_probe(asker: str = ONE, asked: str = TWO) -> bytes:
    return seal_probe(pair_key(node_key(SECRET, asked), asker), asker, NONCE)


def test_an_echo_tells_who_asked_where_the_node_lies_and_is_no_larger_than_the_probe() -> None:
    probe, key = make_probe(), pair_key(node_key(SECRET, TWO), ONE)
    assert read_asker(probe) == ONE
    echo = answer_probe(key, probe, (1.0, 2.0, 0.5, 0.25))
    assert echo is not None and len(echo) == len(probe) == PACKET_BYTES
    assert (read_nonce(echo), open_echo(key, echo)) == (NONCE, (1.0, 2.0, 0.5, 0.25))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda probe: probe[:-1] + bytes([probe[-1] ^ 1]),
        lambda probe: probe[:10] + bytes([probe[10] ^ 1]) + probe[11:],
        lambda probe: make_probe(THREE)[:22] + probe[22:],
    ],
)
def test_a_probe_that_was_not_sealed_for_this_node_gets_no_answer(spoil: Callable[[bytes], bytes]) -> None:
    assert answer_probe(pair_key(node_key(SECRET, TWO), ONE), spoil(make_probe()), (0, 0, 0, 0)) is None


def test_what_is_no_packet_of_ours_is_none() -> None:
    for data in (b"", b"x" * PACKET_BYTES, make_probe()[:-1], make_probe() + b"x"):
        assert read_asker(data) is None and read_nonce(data) is None


def test_a_node_cannot_speak_for_another() -> None:
    """What a node knows (its own key, and those it asks others with) seals no probe of anybody else."""
    mine = node_key(SECRET, ONE)
    for key in (mine, pair_key(mine, TWO), pair_key(node_key(SECRET, TWO), ONE)):
        forged = seal_probe(key, THREE, NONCE)
        assert answer_probe(pair_key(node_key(SECRET, TWO), THREE), forged, (0, 0, 0, 0)) is None


class Lab:
    """Some nodes on loopback that ask each other, quickly."""

    def __init__(self, *uids: str) -> None:
        self.changed = asyncio.Event()
        self.nodes = {uid: Proximity(uid, HERE, 0, SystemClock(), self.changed, pace=0.005) for uid in uids}
        self.tasks = [asyncio.create_task(node.keep()) for node in self.nodes.values()]

    async def until(self, so: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not so():
                self.changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 0.1)

    def told(self, uid: str) -> Nearness:
        return self.nodes[uid].nearness

    async def introduce(self, *asked: str) -> None:
        await self.until(lambda: all(node.nearness.port for node in self.nodes.values()))
        for uid, node in self.nodes.items():
            peers = [
                Peer(other, HERE, self.told(other).port, pair_key(node_key(SECRET, other), uid).hex())
                for other in (asked or self.nodes)
                if other != uid
            ]
            node.put_peers(Peers("v1", node_key(SECRET, uid).hex(), peers))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_nodes_find_round_trips_and_coordinates_and_then_have_nothing_new_to_tell() -> None:
    lab = Lab(ONE, TWO, THREE)
    try:
        await lab.introduce()
        await lab.until(lambda: all(len(lab.told(uid).round_trips) == 2 for uid in lab.nodes))
        assert set(lab.told(ONE).round_trips) == {TWO, THREE}
        await lab.until(lambda: all(lab.told(uid).coordinate for uid in lab.nodes))
        assert all(len(lab.told(uid).coordinate) == 3 for uid in lab.nodes)
    finally:
        await lab.close()


async def test_a_peer_that_is_not_there_is_not_told_and_one_that_is_no_peer_any_more_is_forgotten() -> None:
    lab = Lab(ONE, TWO)
    try:
        await lab.introduce()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind((HERE, 0))
            key = node_key(SECRET, ONE).hex()
            known = Peer(TWO, HERE, lab.told(TWO).port, pair_key(node_key(SECRET, TWO), ONE).hex())
            absent = Peer(THREE, HERE, silent.getsockname()[1], "00" * 32)
            lab.nodes[ONE].put_peers(Peers("v2", key, [known, absent]))
            await lab.until(lambda: set(lab.told(ONE).round_trips) == {TWO})
            lab.nodes[ONE].put_peers(Peers("v3", key, [absent]))
            await lab.until(lambda: not lab.told(ONE).round_trips)
    finally:
        await lab.close()


async def test_a_peer_that_no_longer_answers_is_a_dead_link_until_it_answers_again() -> None:
    lab = Lab(ONE, TWO)
    try:
        await lab.introduce()
        await lab.until(lambda: bool(lab.told(ONE).round_trips))
        link = lab.nodes[ONE].list_paths()[TWO]
        assert link.loss == 0.0 and 0 < link.latency_ms < 10_000
        hung = lab.nodes[TWO].datagram_received
        lab.nodes[TWO].datagram_received = lambda data, addr: None  # type: ignore[method-assign]
        await lab.until(lambda: lab.nodes[ONE].list_paths()[TWO].loss == 1.0)
        lab.nodes[TWO].datagram_received = hung  # type: ignore[method-assign]
        await lab.until(lambda: lab.nodes[ONE].list_paths()[TWO].loss == 0.0)
    finally:
        await lab.close()


async def test_a_lossy_link_stays_lossy_also_when_some_packets_arrive() -> None:
    lab = Lab(ONE, TWO)
    try:
        await lab.introduce()
        await lab.until(lambda: bool(lab.told(ONE).round_trips))
        answer, got = lab.nodes[TWO].datagram_received, [0]

        def lose(data: bytes, addr: tuple[str, int]) -> None:
            got[0] += 1
            if got[0] % 5:
                answer(data, addr)

        lab.nodes[TWO].datagram_received = lose  # type: ignore[method-assign]
        await lab.until(lambda: 0.1 <= lab.nodes[ONE].list_paths()[TWO].loss <= 0.3)
        seen = got[0]
        while got[0] < seen + 200:
            await asyncio.sleep(0.01)
            assert lab.nodes[ONE].list_paths()[TWO].loss > 0.05
    finally:
        await lab.close()


async def test_a_stranger_gets_no_answer_and_changes_nothing() -> None:
    lab = Lab(ONE, TWO)
    try:
        await lab.introduce()
        await lab.until(lambda: bool(lab.told(ONE).round_trips))
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.setblocking(False)
            at = (HERE, lab.told(ONE).port)
            forged = seal_probe(b"guess" * 8, TWO, NONCE)
            for packet in (forged, b"", b"weft!1" + bytes(PACKET_BYTES - 6), bytes(1000)):
                stranger.sendto(packet, at)
            stranger.sendto(seal_probe(pair_key(node_key(SECRET, ONE), THREE), THREE, NONCE), at)  # one with a key
            data = await asyncio.wait_for(loop.sock_recv(stranger, 2000), 60)
            assert read_nonce(data) == NONCE  # only the last was answered
            with pytest.raises(BlockingIOError):
                stranger.recv(2000)
    finally:
        await lab.close()
