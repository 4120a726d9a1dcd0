"""Measures this node's round trips, losses and bandwidth to a few peers, which the server names.

Woken by the clock. The report follows only changes that matter, so that a stable network causes no writes. Small UDP packets,
sealed (``trust/probe/echo.py``); a peer without a key gets no answer. Trains of large ones (``bandwidth.py``) pass the same port.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from weft.agent.node.bandwidth import Address, Trains
from weft.agent.node.coordinates import Position
from weft.agent.node.links import BURST, Links
from weft.contracts.clock import Clock
from weft.protocol.heartbeat import MOST_PATHS, PathFigures
from weft.protocol.report import Peer, Peers, ReportAnswer
from weft.trust.probe.echo import (
    NONCE_BYTES,
    Coordinates,
    answer_probe,
    open_echo,
    pair_key,
    read_asker,
    read_nonce,
    seal_probe,
)
from weft.trust.probe.train import is_ours

log = logging.getLogger("weft.agent")
PROBE_SECONDS = 15.0
FIRST_PROBE_SECONDS = 2.0
FIRST_ROUNDS = 6  # with the shorter pause, so that a new node is soon known
LINK_SECONDS = 2.0  # between rounds, most of which are only about losses
_PROBES = 3  # of each peer in a round; the fastest counts, for a busy machine only adds delay
_GAP_SECONDS = 0.02
_PATIENCE_SECONDS = 1.0
_SUSPECT_SECONDS = 0.5  # without an answer; then more probes follow
_STOOD_STILL_SECONDS = 0.5  # this agent itself: then silence says nothing of a link
_KEPT = 4  # rounds; the second fastest of them counts
_SETTLED = 3  # rounds before anything is reported
_MATTERS_MS = 1.0
_MATTERS_SHARE = 0.3
_FARTHEST_MS = 60_000.0  # no node is farther; a peer that claims more is wrong, or lies
_SURE = 0.6  # a coordinate is reported once its error is below
_AT_ONCE = 64  # packets that are read before others have their turn
_LARGEST_BYTES = 2048  # of a packet
_STAMP = struct.Struct("@ll")  # struct timespec
_SO_TIMESTAMPNS = getattr(socket, "SO_TIMESTAMPNS", 35)


class Nearness(msgspec.Struct, frozen=True):
    """The reported distances, in ms."""

    port: int = 0  # the UDP port that answers
    coordinate: list[float] = []  # a position and, last, a height; empty until it is known
    round_trips: dict[str, float] = {}  # by the peer's uid


class Proximity:
    """The probes of node ``uid`` at ``address``. ``news`` is set when there is something new to report; ``find_load`` gives
    the share of the node's link that is in use, and gets the greatest bandwidth that was measured."""

    def __init__(
        self,
        uid: str,
        address: str,
        port: int,
        clock: Clock,
        news: asyncio.Event,
        *,
        pace: float = 1.0,
        find_load: Callable[[float | None], float | None] = lambda fastest: None,
    ) -> None:
        self._uid, self._address, self._port, self._clock, self._news = uid, address, port, clock, news
        self._pace, self._patience = pace, max(pace, 0.1)
        self.nearness = Nearness()
        self._peers = Peers()
        self._key = b""
        self._keys: dict[str, bytes] = {}
        self._position = Position(uid)
        self._places: dict[str, Coordinates] = {}
        self._samples: dict[str, deque[float]] = {}
        self._links = Links()
        self._asked: dict[bytes, tuple[Peer, float]] = {}  # by nonce: whom, when
        self._answered: dict[str, float] = {}  # in the current round
        self._answered_at: dict[str, float] = {}  # elapsed seconds
        self._socket: socket.socket | None = None
        self.trains = Trains(uid, clock, self._send, lambda: find_load(self._find_fastest()), pace=pace)
        self._awaited = asyncio.Event()

    @property
    def version(self) -> str:
        """The version of the peers that are known here."""
        return self._peers.version

    def take_answer(self, answer: ReportAnswer) -> None:
        if answer.peers is not None:
            self.put_peers(answer.peers)

    def put_peers(self, peers: Peers) -> None:
        """Probe these from now on."""
        self._peers = peers
        self._key = bytes.fromhex(peers.key)
        self._keys = {peer.uid: bytes.fromhex(peer.key) for peer in peers.peers}
        for uid in self._samples.keys() - self._keys.keys():
            del self._samples[uid]
            self._places.pop(uid, None)
            self._answered_at.pop(uid, None)
        self.trains.put_peers(peers)
        self._links.keep_only(self._keys)
        self._awaited.set()

    def list_paths(self) -> dict[str, PathFigures]:
        """List the paths measured so far, by the peers' uids; for heartbeats."""
        now, paths = self._clock.elapsed(), dict[str, PathFigures]()
        for peer in self._peers.peers[:MOST_PATHS]:
            trip, band = self._samples.get(peer.uid), self.trains.find(peer.uid)
            if trip or band is not None or self._links.find(peer.uid) is not None:
                paths[peer.uid] = PathFigures(
                    latency_ms=round(_settle(trip), 3) if trip else -1.0,
                    latency_age=round(now - self._answered_at[peer.uid], 1) if trip else -1.0,
                    bandwidth_mbps=float(f"{band.mbps:.4g}") if band is not None else -1.0,
                    bandwidth_age=round(now - band.at, 1) if band is not None else -1.0,
                    at_least=band is not None and band.at_least,
                    loss=loss if (loss := self._links.find(peer.uid)) is not None else -1.0,
                )
        return paths

    def _find_fastest(self) -> float | None:
        return max((band.mbps for peer in self._peers.peers if (band := self.trains.find(peer.uid))), default=None)

    async def keep(self) -> None:
        """Answer and ask for ever. If the port is taken, another one is opened and reported; without a free port, nothing is."""
        loop = asyncio.get_running_loop()
        for port in (self._port, 0):
            try:
                self._socket = _open(self._address, port)
                break
            except OSError as problem:
                log.warning("round trips: UDP port %s at %s: %s", port or "any", self._address, problem.strerror)
        if self._socket is None:
            return
        loop.add_reader(self._socket, self._receive)
        try:
            self._publish(msgspec.structs.replace(self.nearness, port=self._socket.getsockname()[1]))
            await asyncio.gather(self._ask_on(), self.trains.keep())
        finally:
            loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _send(self, packet: bytes, address: Address) -> bool:
        """Whether it went out: a full queue, or a peer that isn't there, is no fault."""
        try:
            return self._socket is not None and self._socket.sendto(packet, address) == len(packet)
        except OSError:
            return False

    def _receive(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                assert self._socket is not None
                data, about, _, address = self._socket.recvmsg(_LARGEST_BYTES, socket.CMSG_SPACE(_STAMP.size))
            except OSError:  # no more; or a peer that isn't there, which needs no handling
                return
            if is_ours(data):
                self.trains.take(data, address[:2], _read_stamp(about))
            else:
                self.datagram_received(data, address)

    async def _ask_on(self) -> None:
        rounds, next_at = 0, self._clock.elapsed()
        while True:
            await self._awaited.wait()
            if not self._peers.peers:
                self._awaited.clear()
                continue
            is_due = self._clock.elapsed() >= next_at
            await self._ask_round()
            if is_due:
                self._learn()
                rounds += 1
                pause = FIRST_PROBE_SECONDS if rounds < FIRST_ROUNDS else PROBE_SECONDS
                next_at = self._clock.elapsed() + self._pace * pause
            if not self._links.are_unsure:
                await self._clock.sleep(self._pace * LINK_SECONDS)

    async def _ask_round(self) -> None:
        """Ask all peers, and those that don't answer soon again and again: who answers these isn't lost."""
        peers = self._peers.peers
        self._answered.clear()
        self._asked.clear()
        await self._probe(peers, _PROBES)
        await self._await_answers(_SUSPECT_SECONDS)
        silent = {peer.uid for peer, _ in self._asked.values()}
        suspects = [peer for peer in peers if peer.uid in silent or self._links.is_suspect(peer.uid)]
        for peer in peers:
            if peer not in suspects:
                self._note_link(peer, 0, _PROBES)
        if not suspects:
            return
        before = set(self._asked)
        await self._probe(suspects, BURST)
        if not await self._await_answers(_PATIENCE_SECONDS):
            return
        lost = [peer.uid for nonce, (peer, _) in self._asked.items() if nonce not in before]
        for peer in suspects:
            self._note_link(peer, lost.count(peer.uid), BURST)

    async def _probe(self, peers: Sequence[Peer], times: int) -> None:
        for _ in range(times):
            for peer in peers:
                if peer.uid in self._keys:
                    self._ask(peer)
            await self._clock.sleep(_GAP_SECONDS)

    async def _await_answers(self, seconds: float) -> bool:
        """Wait until all is answered, or for so long; False: this agent itself stood still meanwhile."""
        began = last = self._clock.elapsed()
        while self._asked and last - began < seconds * self._patience:
            await self._clock.sleep(5 * _GAP_SECONDS * self._patience)
            before, last = last, self._clock.elapsed()
            if last - before > _STOOD_STILL_SECONDS:
                return False
        return True

    def _note_link(self, peer: Peer, lost: int, asked: int) -> None:
        if peer.uid not in self._keys or not self._links.note(peer.uid, lost, asked):
            return
        self._news.set()
        if self._links.is_lossy(peer.uid):
            log.warning("%d of %d packets to and from the node at %s get lost", lost, asked, peer.address)
        else:
            log.info("packets to and from the node at %s arrive again", peer.address)

    def _learn(self) -> None:
        """Round trips and the own coordinate, from the round that has just ended."""
        for uid, round_trip in self._answered.items():
            self._samples.setdefault(uid, deque(maxlen=_KEPT)).append(round_trip)
            self._answered_at[uid] = self._clock.elapsed()
        trips = {uid: _settle(kept) for uid, kept in self._samples.items()}
        self._position.learn([(self._places[uid][:3], self._places[uid][3], trips[uid]) for uid in self._answered])
        self._publish(self._weigh(trips))

    def _ask(self, peer: Peer) -> None:
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._asked[nonce] = peer, self._clock.elapsed()
        self._send(seal_probe(self._keys[peer.uid], self._uid, nonce), (peer.address, peer.port))

    def _weigh(self, trips: Mapping[str, float]) -> Nearness:
        """Choose what to report now: the reported values, updated where they have changed enough."""
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

    def datagram_received(self, data: bytes, addr: Address) -> None:
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

    def _answer(self, asker: str, data: bytes, addr: Address) -> None:
        if self._key:
            echo = answer_probe(pair_key(self._key, asker), data, (*self._position.at, self._position.error))
            if echo is not None:
                self._send(echo, addr)


def _open(address: str, port: int) -> socket.socket:
    """A UDP socket whose packets carry the time at which the kernel received them. Raises OSError."""
    opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        opened.bind((address, port))
    except OSError:
        opened.close()
        raise
    return opened


def _read_stamp(about: Sequence[tuple[int, int, bytes]]) -> int:
    """When the kernel received a packet, in ns."""
    for level, sort, data in about:
        if level == socket.SOL_SOCKET and sort == _SO_TIMESTAMPNS and len(data) >= _STAMP.size:
            seconds, ns = _STAMP.unpack_from(data)
            return int(seconds) * 1_000_000_000 + int(ns)
    return 0


def _settle(kept: Sequence[float]) -> float:
    """The round trip that counts, of the last rounds'."""
    return sorted(kept)[min(1, len(kept) - 1)]


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return math.dist(one[:-1], other[:-1]) + abs(one[-1] - other[-1])
