"""Whom nodes are told to ask how far away they are."""

from __future__ import annotations

import uuid
from collections import Counter

from weft.api.state.latency_peers import MOST_PEERS, Answering, LatencyPeers
from weft.contracts.clock import SystemClock
from weft.store.memory import MemoryStore


def make_peers(count: int) -> tuple[LatencyPeers, list[str]]:
    clock = SystemClock()
    peers = LatencyPeers(MemoryStore(clock), b"s" * 32, clock)
    uids = [str(uuid.UUID(int=number)) for number in range(count)]
    put(peers, *uids)
    return peers, uids


def put(peers: LatencyPeers, *uids: str) -> None:
    nodes = peers._nodes  # what its watch would bring
    nodes.live = True
    nodes.changes += 1
    nodes.found.update({uid: (uid, Answering("10.0.0.1", 8445)) for uid in uids})
    peers._again_at = 0.0


def asked_by(peers: LatencyPeers, uid: str) -> set[str]:
    told = peers.newer_than("", uid)
    assert told is not None
    return {peer.uid for peer in told.peers}


def test_few_nodes_ask_all_the_others_and_many_only_some() -> None:
    peers, uids = make_peers(5)
    assert asked_by(peers, uids[0]) == set(uids[1:])
    peers, uids = make_peers(500)
    assert all(len(asked_by(peers, uid)) == MOST_PEERS for uid in uids)


def test_no_node_is_asked_by_very_many() -> None:
    peers, uids = make_peers(1000)
    asked = Counter(other for uid in uids for other in asked_by(peers, uid))
    assert max(asked.values()) < 12 * MOST_PEERS


def test_a_node_that_comes_changes_the_peers_of_few() -> None:
    peers, uids = make_peers(500)
    before = {uid: asked_by(peers, uid) for uid in uids}
    put(peers, str(uuid.UUID(int=1000)))
    assert sum(asked_by(peers, uid) != before[uid] for uid in uids) < 100


def test_the_version_moves_with_the_peers_and_with_the_secret() -> None:
    peers, uids = make_peers(3)
    told = peers.newer_than("", uids[0])
    assert told is not None and peers.newer_than(told.version, uids[0]) is None
    put(peers, str(uuid.UUID(int=9)))
    assert peers.newer_than(told.version, uids[0]) is not None
