"""Measures this node's round trips to a few peers, which the server names.

Woken by the clock. The report follows only changes that matter, so that a stable network causes no writes. Small UDP packets,
sealed (``trust/echo.py``); a peer without a key gets no answer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from weft.agent.node.coordinates import Position
from weft.contracts.clock import Clock
from weft.protocol.report import Peer, Peers
from weft.trust.echo import (
    NONCE_BYTES,
    Place,
    answer_probe,
    open_echo,
    pair_key,
    read_asker,
    read_nonce,
    seal_probe,
)

log = logging.getLogger("weft.agent")
PROBE_SECONDS = 15.0
FIRST_PROBE_SECONDS = 2.0
FIRST_ROUNDS = 6  # with the shorter pause, so that a new node is soon known
_PROBES = 3  # of each peer in a round; the fastest counts, for a busy machine only adds delay
_GAP_SECONDS = 0.02
_PATIENCE_SECONDS = 2.0
_KEPT = 4  # rounds; the second fastest of them counts
_SETTLED = 3  # rounds before anything is reported
_MATTERS_MS = 1.0
_MATTERS_SHARE = 0.3
_FARTHEST_MS = 60_000.0  # no node is farther; a peer that claims more is wrong, or lies
_SURE = 0.6  # a coordinate is reported once its error is below


class Nearness(msgspec.Struct, frozen=True):
    """The reported distances, in ms."""

    port: int = 0  # the UDP port that answers
    coordinate: list[float] = []  # a position and, last, a height; empty until it is known
    round_trips: dict[str, float] = {}  # by the peer's uid


class Proximity(asyncio.DatagramProtocol):
    """The probes of node ``uid`` at ``address``. ``news`` is set when there is something new to report."""

    def __init__(
        self, uid: str, address: str, port: int, clock: Clock, news: asyncio.Event, *, pace: float = 1.0
    ) -> None:
        self._uid, self._address, self._port, self._clock, self._news = uid, address, port, clock, news
        self._pace, self._patience_seconds = pace, _PATIENCE_SECONDS * max(pace, 0.1)
        self.nearness = Nearness()
        self._peers = Peers()
        self._key = b""
        self._keys: dict[str, bytes] = {}
        self._position = Position(uid)
        self._places: dict[str, Place] = {}
        self._samples: dict[str, deque[float]] = {}
        self._asked: dict[bytes, tuple[Peer, float]] = {}  # by nonce: whom, when
        self._answered: dict[str, float] = {}  # in the current round
        self._transport: asyncio.DatagramTransport | None = None
        self._awaited = asyncio.Event()

    @property
    def version(self) -> str:
        """The version of the peers that are known here."""
        return self._peers.version

    def put_peers(self, peers: Peers) -> None:
        """Probe these from now on."""
        self._peers = peers
        self._key = bytes.fromhex(peers.key)
        self._keys = {peer.uid: bytes.fromhex(peer.key) for peer in peers.peers}
        for uid in self._samples.keys() - self._keys.keys():
            del self._samples[uid]
            self._places.pop(uid, None)
        self._awaited.set()

    async def keep(self) -> None:
        """Answer and ask for ever. If the port is taken, another one is opened and reported; without a free port, nothing is."""
        loop = asyncio.get_running_loop()
        for port in (self._port, 0):
            try:
                self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(self._address, port))
                break
            except OSError as problem:
                log.warning("round trips: UDP port %s at %s: %s", port or "any", self._address, problem.strerror)
        if self._transport is None:
            return
        try:
            self._publish(msgspec.structs.replace(self.nearness, port=self._transport.get_extra_info("sockname")[1]))
            await self._ask_on()
        finally:
            self._transport.close()

    async def _ask_on(self) -> None:
        rounds = 0
        while True:
            await self._awaited.wait()
            if not self._peers.peers:
                self._awaited.clear()
                continue
            await self._ask_round()
            rounds += 1
            await self._clock.sleep(self._pace * (FIRST_PROBE_SECONDS if rounds < FIRST_ROUNDS else PROBE_SECONDS))

    async def _ask_round(self) -> None:
        self._answered.clear()
        self._asked.clear()
        for _ in range(_PROBES):
            for peer in self._peers.peers:
                self._ask(peer)
            await self._clock.sleep(_GAP_SECONDS)
        began = self._clock.elapsed()
        while self._asked and self._clock.elapsed() - began < self._patience_seconds:
            await self._clock.sleep(5 * _GAP_SECONDS)
        for uid, round_trip in self._answered.items():
            self._samples.setdefault(uid, deque(maxlen=_KEPT)).append(round_trip)
        trips = {uid: sorted(kept)[min(1, len(kept) - 1)] for uid, kept in self._samples.items()}
        self._position.learn([(self._places[uid][:3], self._places[uid][3], trips[uid]) for uid in self._answered])
        self._publish(self._weigh(trips))

    def _ask(self, peer: Peer) -> None:
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._asked[nonce] = peer, self._clock.elapsed()
        assert self._transport is not None
        self._transport.sendto(seal_probe(self._keys[peer.uid], self._uid, nonce), (peer.address, peer.port))

    def _weigh(self, trips: Mapping[str, float]) -> Nearness:
        """What to report now: the reported values, updated where they have changed enough."""
        reported = self.nearness
        settled = {uid: trip for uid, trip in trips.items() if len(self._samples[uid]) >= _SETTLED}
        round_trips = {}
        for uid, trip in settled.items():
            before = reported.round_trips.get(uid)
            is_new = before is None or abs(trip - before) > max(_MATTERS_MS, _MATTERS_SHARE * before)
            round_trips[uid] = round(trip, 3) if is_new or before is None else before
        coordinate = reported.coordinate
        if settled and self._position.error < _SURE:
            matters = max(_MATTERS_MS, _MATTERS_SHARE * min(settled.values()))
            if not coordinate or _distance(coordinate, self._position.at) > matters:
                coordinate = [round(part, 3) for part in self._position.at]
        return Nearness(reported.port, coordinate, round_trips)

    def _publish(self, nearness: Nearness) -> None:
        if nearness != self.nearness:
            self.nearness = nearness
            self._news.set()

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        asker = read_asker(data)
        if asker is not None:
            self._answer(asker, data, addr)
            return
        nonce = read_nonce(data)
        peer, sent = self._asked.get(nonce, (None, 0.0)) if nonce is not None else (None, 0.0)
        if peer is None or peer.uid not in self._keys or addr[:2] != (peer.address, peer.port):
            return
        place = open_echo(self._keys[peer.uid], data)
        if place is None or not all(abs(part) <= _FARTHEST_MS for part in place):
            return
        assert nonce is not None
        del self._asked[nonce]
        self._places[peer.uid] = place
        took = max((self._clock.elapsed() - sent) * 1000.0, 0.001)
        self._answered[peer.uid] = min(took, self._answered.get(peer.uid, took))

    def _answer(self, asker: str, data: bytes, addr: tuple[str | Any, int]) -> None:
        if self._key and self._transport is not None:
            echo = answer_probe(pair_key(self._key, asker), data, (*self._position.at, self._position.error))
            if echo is not None:
                self._transport.sendto(echo, addr)

    def error_received(self, exc: Exception) -> None:
        """A peer that isn't there gives no answer, which needs no handling."""


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return math.dist(one[:-1], other[:-1]) + abs(one[-1] - other[-1])
