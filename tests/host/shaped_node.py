"""One of two nodes that measure the bandwidth between them.

``shaped_node.py UID ADDRESS KEY PEER_UID PEER_ADDRESS PEER_KEY TRAINS`` sends so many, and prints what it knows after each; with 0
it answers for ever."""

from __future__ import annotations

import asyncio
import sys

from weft.agent.node.proximity import Proximity
from weft.contracts.clock import SystemClock
from weft.protocol.report import Peer, Peers

PORT = 8445


async def main(uid: str, address: str, key: str, peer_uid: str, peer_address: str, peer_key: str, count: str) -> None:
    node = Proximity(uid, address, PORT, SystemClock(), asyncio.Event())
    peer = Peer(peer_uid, peer_address, PORT, peer_key)
    keeping = asyncio.create_task(node.keep())
    while not node.nearness.port:
        await asyncio.sleep(0.01)
    node.put_peers(Peers("v", key, [peer], 1))
    print("ready", flush=True)
    for _ in range(int(count)):
        await node.trains.measure(peer)
        found = node.trains.find(peer_uid)
        print("none" if found is None else f"{found.mbps:.4f} {found.at_least}", flush=True)
    if count == "0":
        await keeping
    keeping.cancel()


asyncio.run(main(*sys.argv[1:]))
