"""Folds the flows of this node's workloads, minute by minute, into files of the last day.

Reads the kernel's counters every ten seconds, and seldomer where that takes long. What it had counted, and the minute that hasn't
ended, are in a file of their own after each refresh: the next process goes on there, and counts nothing twice.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from weft.agent.flow.describe import MOST_FLOWS, Flow, FlowsAnswer, Neighbours, judge
from weft.agent.flow.files import FlowFiles
from weft.agent.flow.folded import DAY, MINUTE, MOST_OF_MINUTE, OTHERS, FlowEntry, Fold, Interval, Key, choose
from weft.agent.flow.talkers import Talkers
from weft.agent.state.allocation import LocalAllocation, port_id
from weft.agent.state.table import AllocationTable
from weft.contracts.clock import Clock
from weft.contracts.driver.network import Endpoint, NetworkDriver, SeenFlow, SeesFlows
from weft.contracts.durable_file import write_durably
from weft.kinds.allocation import AllocatedNic
from weft.kinds.parts.stream_verbs import FlowsInput
from weft.objects.errors import WeftError
from weft.objects.identity import short_id
from weft.protocol.traffic import OTHER_PROJECT

log = logging.getLogger("weft.agent")
LOOK_SECONDS = 10.0
FRESH_SECONDS = 1.0  # who asks gets nothing older
REST = 40  # after a refresh, times as long as it took
AGAIN_SECONDS = 60.0  # on a node that can't see flows
_FOUR = (0, 0, 0, 0)
Counts = tuple[int, int, int, int]  # packets and bytes sent by the opener, then received
SegmentAddress = tuple[str, str]  # segment id, address


class Opened(msgspec.Struct, array_like=True):
    """The file: the minute that hasn't ended, and the counts that are in it already."""

    start: int
    folds: dict[str, list[FlowEntry]] = {}  # by workload uid
    counted: dict[tuple[str, int], Counts] = {}  # by segment id and flow id
    refused: dict[tuple[str, str, str, str, int, int], Counts] = {}
    lacking: bool = False


class _Nic(msgspec.Struct, frozen=True):
    uid: str  # of the workload
    project: str
    facts: AllocatedNic


class FlowRecorder:
    """Recorder of the flows of the workloads in ``table``; ``neighbours`` are the endpoints of this node's networks."""

    def __init__(
        self,
        state_dir: Path,
        node: str,
        network: NetworkDriver,
        table: AllocationTable,
        neighbours: Neighbours,
        clock: Clock,
    ) -> None:
        self._network, self._table, self._neighbours, self._clock = network, table, neighbours, clock
        self._node = short_id(node)
        self.files = FlowFiles(state_dir / "flows")
        self.talkers = Talkers()
        self._path = state_dir / "flows" / "open"
        self._busy = threading.Lock()  # what follows, and the files
        self._folds: dict[str, Fold] = {}
        self._opened: Opened | None = None  # None: nothing was read yet
        self._began_at = clock.now()
        self._refreshing = asyncio.Lock()
        self._refreshed_at, self._took = float("-inf"), 0.0  # elapsed seconds

    async def keep(self) -> None:
        """Record for ever."""
        await asyncio.to_thread(self._load)
        while True:
            try:
                await self.refresh()
                rest = max(LOOK_SECONDS, REST * self._took)
            except (WeftError, OSError) as problem:
                log.debug("flows aren't recorded: %s", problem)
                rest = AGAIN_SECONDS
            await self._clock.sleep(rest)

    async def refresh(self) -> None:
        """Count what passed since the last time. Raises WeftError, OSError."""
        async with self._refreshing:
            began = self._clock.elapsed()
            await self._refresh()
            self._refreshed_at = self._clock.elapsed()
            self._took = self._refreshed_at - began

    async def _refresh(self) -> None:
        nics = self._find_nics()
        if not isinstance(self._network, SeesFlows) or not (nics or self._folds):
            return
        reader = self._network.seen
        ended, lost = await reader.read_ended()  # before the others: a flow that ends now has its turn the next time
        seen = await reader.read()
        refused = await reader.read_refused([id for state in self._table for id in _list_filtered(state.local)])
        await asyncio.to_thread(self._account, nics, [*ended, *seen], seen, refused, lost)

    async def answer(self, local: LocalAllocation, asked: FlowsInput) -> FlowsAnswer:
        """The workload's flows since ``asked.since`` seconds ago, folded. Raises WeftError, OSError."""
        if self._clock.elapsed() - self._refreshed_at >= max(FRESH_SECONDS, REST / 2 * self._took):
            await self.refresh()
        return await asyncio.to_thread(self._answer, local, asked)

    def pack(self, uid: str) -> list[bytes]:
        """All that was recorded of a workload, in pieces, for the node that it has migrated to. Raises OSError."""
        with self._busy:
            newest = self._make_interval(uid)
        return self.files.pack(uid, newest, self._clock.now())

    def _find_nics(self) -> dict[SegmentAddress, _Nic]:
        return {
            (short_id(nic.network_uid), nic.address): _Nic(workload.uid, workload.project or "", nic)
            for state in self._table
            for workload, nic in ((state.local.spec.workload, nic) for nic in state.local.spec.nics)
        }

    def _find_networks(self) -> dict[str, dict[str, str]]:
        """Find the networks of each workload, by its uid: the networks' uids by name."""
        return {
            workload.uid: {nic.network: nic.network_uid for nic in state.local.spec.nics}
            for state in self._table
            if (workload := state.local.spec.workload) and state.local.spec.nics
        }

    def _load(self) -> None:
        """Go on where the process before was killed."""
        try:
            opened = msgspec.msgpack.decode(self._path.read_bytes(), type=Opened)
        except (OSError, msgspec.MsgspecError):
            return
        opened.lacking = True  # what ended meanwhile
        with self._busy:
            self._opened = opened
            self._folds = {uid: Fold(MOST_OF_MINUTE, entries) for uid, entries in opened.folds.items()}

    def _account(
        self,
        nics: Mapping[SegmentAddress, _Nic],
        flows: Iterable[SeenFlow],
        open: Iterable[SeenFlow],
        refused: Iterable[SeenFlow],
        lost: bool,
    ) -> None:
        now = self._clock.now()
        with self._busy:
            before = self._opened
            opened = self._opened = before or Opened(_find_minute(now))
            self._turn(opened, now)
            opened.lacking |= lost
            for flow in flows:
                key, counts = (flow.segment_id, flow.id), _count(flow)
                is_new = key not in opened.counted
                last = opened.counted.get(key, _FOUR)
                if before is None and is_new and flow.began < self._began_at:
                    last, is_new = counts, False  # it is older than all that is recorded
                opened.counted[key] = counts
                self._add(nics, flow, _subtract(counts, last), now, int(is_new))
            opened.counted = {key: opened.counted[key] for key in ((flow.segment_id, flow.id) for flow in open)}
            found = {}
            for flow in refused:
                ends = (flow.refused_by, flow.source, flow.destination, flow.protocol)
                named = (*ends, flow.source_port, flow.destination_port)
                found[named] = counts = _count(flow)
                is_new = named not in opened.refused
                self._add(nics, flow, _subtract(counts, opened.refused.get(named, _FOUR)), now, int(is_new))
            opened.refused = found
            opened.folds = {uid: fold.copy() for uid, fold in self._folds.items()}
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            write_durably(self._path, msgspec.msgpack.encode(opened))

    def _turn(self, opened: Opened, now: float) -> None:
        """Close the minute if it has ended."""
        minute = _find_minute(now)
        if (
            opened.start - DAY < minute <= opened.start
        ):  # a clock that stepped back is waited for: hours have their sums
            return
        here = {state.local.spec.workload.uid for state in self._table}
        for uid in list(self._folds):
            interval = self._make_interval(uid)
            if interval is not None and uid in here:
                self.files.append(uid, interval, now)
        self._folds.clear()
        self.files.sweep(here)
        self.talkers.turn(here)
        for uid, networks in self._find_networks().items():
            if self.talkers.is_stale(uid, now):
                self.talkers.begin(uid, self.files.read(uid), networks, now)
        opened.start, opened.lacking = minute, False

    def _make_interval(self, uid: str) -> Interval | None:
        fold, opened = self._folds.get(uid), self._opened
        if not fold or opened is None:
            return None
        return Interval(opened.start, MINUTE, self._node, fold.listed(), opened.lacking)

    def _add(self, nics: Mapping[SegmentAddress, _Nic], flow: SeenFlow, delta: Counts, now: float, new: int) -> None:
        if delta == _FOUR:
            return
        for own, peer, out in ((flow.source, flow.destination, True), (flow.destination, flow.source, False)):
            nic = nics.get((flow.segment_id, own))
            if nic is None:
                continue
            name = name_peer(nic.facts, nic.project, self._neighbours.get(nic.facts.network_uid, {}).get(peer))
            key = Key(
                "out" if out else "in",
                nic.facts.network,
                peer,
                name,
                flow.protocol,
                flow.destination_port,
                judge(flow, out=out),
            )
            if name and key.verdict != "refused":
                self.talkers.count(nic.uid, (nic.facts.network_uid, peer), delta[1] + delta[3])
            fold = self._folds.setdefault(nic.uid, Fold(MOST_OF_MINUTE))
            sent, received = delta[:2], delta[2:]
            fold.count(key, *((sent, received) if out else (received, sent)), now, new)

    def _answer(self, local: LocalAllocation, asked: FlowsInput) -> FlowsAnswer:
        uid, now = local.spec.workload.uid, self._clock.now()
        with self._busy:
            newest = self._make_interval(uid)
        known = self.files.read(uid)
        if newest is not None:
            known = [*(one for one in known if one.which != newest.which), newest]
        chosen = list(choose(known, now - asked.since))
        fold = Fold(MOST_FLOWS, (entry for one in chosen for entry in one.entries if _match(entry.key, asked)))
        flows = [_describe(local, entry) for entry in fold.listed()]
        return FlowsAnswer(now, flows, lacking=any(one.lacking for one in chosen))


def name_peer(nic: AllocatedNic, project: str, peer: Endpoint | None) -> str:
    """How a workload of ``project`` is told of its peer: by name only if it is of the same project."""
    if peer is None or not peer.name:
        return ""
    name, _, of = peer.name.partition(".")
    owner, inside, _ = nic.network.rpartition("/")
    return name if (of or (owner if inside else project)) == project else OTHER_PROJECT


def _list_filtered(local: LocalAllocation) -> list[str]:
    return [port_id(local.uid, nic.uid) for nic in local.spec.nics] if local.spec.groups else []


def _find_minute(now: float) -> int:
    return int(now) // MINUTE * MINUTE


def _count(flow: SeenFlow) -> Counts:
    return flow.sent_packets, flow.sent_bytes, flow.received_packets, flow.received_bytes


def _subtract(counts: Counts, last: Counts) -> Counts:
    """Subtract the last counts; a counter that is lower than it was belongs to a new flow."""
    if counts[0] < last[0] or counts[2] < last[2]:
        return counts
    return counts[0] - last[0], counts[1] - last[1], counts[2] - last[2], counts[3] - last[3]


def _match(key: Key, asked: FlowsInput) -> bool:
    if asked.protocol and key.protocol != asked.protocol:
        return False
    return not asked.ports or any(one.first <= key.port <= one.last for one in asked.ports)


def _describe(local: LocalAllocation, entry: FlowEntry) -> Flow:
    key, own = entry.key, _find_own(local, entry.key.network)
    out = key.direction == "out"
    peer = {
        "source" if not out else "destination": key.address,
        "source_name" if not out else "destination_name": key.name,
    }
    ends: dict[str, Any] = {
        "source" if out else "destination": own if key.address != OTHERS else "",
        "source_name" if out else "destination_name": local.spec.workload.name,
        **peer,
    }
    return Flow(
        network=key.network,
        direction="out" if out else "in",
        **ends,
        protocol=key.protocol,
        source_port=0,
        destination_port=key.port,
        bytes=entry.sent_bytes + entry.received_bytes,
        packets=entry.sent_packets + entry.received_packets,
        sent_bytes=entry.sent_bytes,
        received_bytes=entry.received_bytes,
        bytes_per_second=None,
        began_at=entry.first,
        verdict=key.verdict,  # type: ignore[arg-type]
        security_group="",
        last_at=entry.last,
        sent_packets=entry.sent_packets,
        flows=max(1, entry.flows),
    )


def _find_own(local: LocalAllocation, network: str) -> str:
    return next((nic.address for nic in local.spec.nics if nic.network == network), "")
