"""Measures the bandwidth to a few peers: a train of packets, whose spacing at the other end is what the narrowest link made of it.

The rate is that of the packets 6 to 32, by the times at which the other's kernel received them: the first ones may pass in a burst
that a shaped link saves up. It is the capacity of the path, whatever else passes there (packet pairs: Keshav, A control-theoretic
approach to flow control, SIGCOMM 1991). A train that arrives as fast as this node could send it only says that the path is at
least as fast.

A node sends few trains a minute (``Peers.probes``), takes part in few, in one at a time, and in none while its own link is busy.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

import msgspec

from weft.contracts.clock import Clock
from weft.kinds.network_topology import FASTEST_MBPS
from weft.protocol.report import Peer, Peers
from weft.trust.probe.echo import pair_key
from weft.trust.probe.train import BUSY, CARS, GO, NONCE_BYTES, OFF, WIRE_BYTES, Packet, read_packet, seal

Address = tuple[str, int]
SKIPPED = 5  # packets of a train
PAUSE_SHARE = 0.4  # of the time of a train: where one packet took that, the process had to wait for a core
LEAST_ARRIVED = 12  # of those that count: fewer say nothing
LEAST_GAPS = 6  # behind those that a link let pass at once
MOST_TAKEN = 12  # trains of others in a minute
MINUTE_SECONDS = 60.0
FIRST_SECONDS = 10.0
BUSY_SHARE = 0.5  # of the own link
UNSURE_MBPS = 5_000.0  # above this, receivers take packets in batches, and their times say little
# A link of 1 Gbit/s is told apart even by a node that sends hardly faster.
GIGABIT_MBPS = (850.0, 1_100.0)
SOURCE_SHARE = 0.8  # of this node's own rate of sending: a train that arrives that fast was held up by nothing else
_KEPT = 3  # figures of a peer, whose median counts
_TRIES, _TRY_SECONDS = 4, 0.5
_SESSION_SECONDS = 5.0


class Bandwidth(msgspec.Struct, frozen=True):
    """The known bandwidth of a path."""

    mbps: float
    at: float  # elapsed seconds
    at_least: bool  # this node couldn't send faster


class _Session:
    """A train that arrives."""

    def __init__(self, asker: str, nonce: bytes, at: float) -> None:
        self.asker, self.nonce, self.at = asker, nonce, at
        self.stamps: dict[int, int] = {}


class Trains:
    """Packet trains of node ``uid``; ``send`` sends a packet, ``find_load`` gives the share of the own link that is in use, None if
    unknown."""

    def __init__(
        self,
        uid: str,
        clock: Clock,
        send: Callable[[bytes, Address], bool],
        find_load: Callable[[], float | None],
        *,
        pace: float = 1.0,
    ) -> None:
        self._uid, self._clock, self._send, self._find_load, self._pace = uid, clock, send, find_load, pace
        self._peers = Peers()
        self._key = b""
        self._turn = 0
        self._figures: dict[str, deque[Bandwidth]] = {}
        self._waits: dict[bytes, tuple[Peer, asyncio.Future[Packet]]] = {}  # by nonce: whose answer, and where it goes
        self._session: _Session | None = None
        self._taken: deque[float] = deque(maxlen=MOST_TAKEN)
        self._put = asyncio.Event()

    def put_peers(self, peers: Peers) -> None:
        """Measure these from now on, as often as they say."""
        self._peers, self._key = peers, bytes.fromhex(peers.key)
        known = {peer.uid for peer in peers.peers} if peers.probes else set[str]()
        self._figures = {uid: found for uid, found in self._figures.items() if uid in known}
        self._put.set()

    def find(self, uid: str) -> Bandwidth | None:
        """Find the bandwidth to this peer."""
        figures = self._figures.get(uid)
        if not figures:
            return None
        sure = [figure for figure in figures if not figure.at_least]
        rates = sorted(figure.mbps for figure in sure or figures)
        mbps = rates[len(rates) // 2]  # the median, the higher of two
        return Bandwidth(mbps, figures[-1].at, at_least=not sure)

    async def keep(self) -> None:
        """Measure for ever."""
        await self._clock.sleep(self._pace * FIRST_SECONDS)
        while True:
            await self._put.wait()
            if not (self._peers.peers and self._peers.probes):
                self._put.clear()
                continue
            peer = self._peers.peers[self._turn % len(self._peers.peers)]
            self._turn += 1
            await self.measure(peer)
            # Not all nodes at the same moment: the pause is up to a fifth shorter or longer.
            pause = MINUTE_SECONDS / self._peers.probes * (0.8 + 0.4 * secrets.randbelow(1000) / 1000)
            await self._clock.sleep(self._pace * pause)

    async def measure(self, peer: Peer) -> None:
        """Send one train, unless one of the two is busy."""
        if self._is_busy():
            return
        key, nonce = bytes.fromhex(peer.key), secrets.token_bytes(NONCE_BYTES)
        agreed = await self._ask(peer, nonce, seal(key, "ask", self._uid, nonce))
        if agreed is None or agreed.sort != "go" or agreed.number != GO:
            return
        cars = [seal(key, "car", self._uid, nonce, number) for number in range(CARS)]
        own = self._send_train(cars, (peer.address, peer.port))
        done = await self._ask(peer, nonce, seal(key, "end", self._uid, nonce))
        if own is None or done is None or done.sort != "done":
            return
        mbps, _ = done.result
        if not 0.0 < mbps <= FASTEST_MBPS:
            return
        is_gigabit = GIGABIT_MBPS[0] <= mbps <= GIGABIT_MBPS[1]
        at_least = mbps >= UNSURE_MBPS or (mbps >= SOURCE_SHARE * own and not is_gigabit)
        figure = Bandwidth(mbps, self._clock.elapsed(), at_least)
        self._figures.setdefault(peer.uid, deque(maxlen=_KEPT)).append(figure)

    def _send_train(self, cars: Sequence[bytes], address: Address) -> float | None:
        """Send all of it at once; the rate in Mbit/s at which that went, None if it didn't, or if this process had to pause."""
        times = list[float]()
        for car in cars:
            if not self._send(car, address):
                return None
            times.append(self._clock.elapsed())
        took = max(1e-9, times[-1] - times[SKIPPED - 1])
        if max(after - before for before, after in pairwise(times[SKIPPED - 1 :])) > PAUSE_SHARE * took:
            return None
        return (len(cars) - SKIPPED) * WIRE_BYTES * 8 / 1e6 / took

    async def _ask(self, peer: Peer, nonce: bytes, packet: bytes) -> Packet | None:
        """The peer's answer; None if there is none."""
        answer: asyncio.Future[Packet] = asyncio.get_running_loop().create_future()
        self._waits[nonce] = peer, answer
        try:
            for _ in range(_TRIES):
                self._send(packet, (peer.address, peer.port))
                until = self._clock.elapsed() + _TRY_SECONDS * max(self._pace, 0.1)
                while not answer.done() and self._clock.elapsed() < until:
                    await self._clock.sleep(0.01)
                if answer.done():
                    return answer.result()
            return None
        finally:
            del self._waits[nonce]

    def take(self, data: bytes, address: Address, stamp_ns: int) -> None:
        """A packet that the kernel received at ``stamp_ns``, from anybody."""
        packet = read_packet(data)
        if packet is None:
            return
        if packet.sort in ("go", "done"):
            self._take_answer(packet, address)
        elif not self._key:
            return
        elif packet.sort == "car":
            self._take_car(packet, stamp_ns)
        else:
            key = pair_key(self._key, packet.asker)
            if packet.is_sealed(key):
                answer = self._answer_ask(key, packet) if packet.sort == "ask" else self._answer_end(key, packet)
                if answer is not None:
                    self._send(answer, address)

    def _take_answer(self, packet: Packet, address: Address) -> None:
        peer, answer = self._waits.get(packet.nonce, (None, None))
        if peer is None or answer is None or answer.done() or packet.asker != self._uid:
            return
        if address == (peer.address, peer.port) and packet.is_sealed(bytes.fromhex(peer.key)):
            answer.set_result(packet)

    def _answer_ask(self, key: bytes, packet: Packet) -> bytes | None:
        now, session = self._clock.elapsed(), self._session
        if session is not None and (session.asker, session.nonce) == (packet.asker, packet.nonce):
            return seal(key, "go", packet.asker, packet.nonce, GO)  # the question came twice
        word = GO
        if not self._peers.probes:
            word = OFF
        elif (
            (session is not None and now - session.at < _SESSION_SECONDS)
            or (len(self._taken) == MOST_TAKEN and now - self._taken[0] < MINUTE_SECONDS * self._pace)
            or self._is_busy()
        ):
            word = BUSY
        if word == GO:
            self._session = _Session(packet.asker, packet.nonce, now)
            self._taken.append(now)
        return seal(key, "go", packet.asker, packet.nonce, word)

    def _take_car(self, packet: Packet, stamp_ns: int) -> None:
        session = self._session
        if session is None or (session.asker, session.nonce) != (packet.asker, packet.nonce):
            return
        if packet.number >= CARS or packet.number in session.stamps:
            return
        if packet.is_sealed(pair_key(self._key, packet.asker)):
            session.stamps[packet.number] = stamp_ns

    def _answer_end(self, key: bytes, packet: Packet) -> bytes | None:
        session = self._session
        if session is None or (session.asker, session.nonce) != (packet.asker, packet.nonce):
            return None
        session.at = float("-inf")  # the next may come; should the answer be lost, this one is asked again
        result = find_rate(session.stamps) or 0.0, len(session.stamps)
        return seal(key, "done", packet.asker, packet.nonce, 0, result)

    def _is_busy(self) -> bool:
        load = self._find_load()
        return load is not None and load > BUSY_SHARE


def find_rate(stamps: dict[int, int]) -> float | None:
    """Mbit/s, of the times in ns at which packets of a train arrived, by number; None if too few did."""
    times = sorted(stamp for number, stamp in stamps.items() if number >= SKIPPED)
    if len(times) < LEAST_ARRIVED:
        return None
    gaps = [after - before for before, after in pairwise(times)]
    tail = gaps[-len(gaps) // 3 :]
    # A link that saves up more than the packets that are skipped lets further ones pass at once: they don't count either.
    first = next((index for index, gap in enumerate(gaps) if 2 * gap * len(tail) >= sum(tail)), 0)
    counted = times[first + 1 :] if 0 < first <= len(gaps) - LEAST_GAPS else times
    if counted[-1] <= counted[0]:
        return None
    return (len(counted) - 1) * WIRE_BYTES * 8 * 1e3 / (counted[-1] - counted[0])
