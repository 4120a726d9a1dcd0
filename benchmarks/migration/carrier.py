"""``python carrier.py FOLDER``: the agents' own way for memory, inside one network namespace.

Told by lines on its standard input: ``door KEY PEER ADDRESS SOCKET`` opens one, whose address is the answer; ``line KEY PEER
ADDRESS SOCKET COUNT`` carries what connects to SOCKET, so many times, to such a door; ``close`` ends what was opened.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from weft.agent.migration.credentials import Credentials
from weft.agent.migration.relay import Limit
from weft.agent.migration.transport import TlsTransport
from weft.contracts.clock import SystemClock
from weft.protocol.migration import MigrationAnswer, MigrationRequest


async def _respond(_: MigrationRequest) -> MigrationAnswer:
    return MigrationAnswer()


async def serve(folder: str) -> None:
    clock = SystemClock()
    wire = TlsTransport(Credentials(folder), clock)
    limits = [Limit(0, clock), Limit(0, clock)]  # as an agent has them
    door, line = None, None
    while told := await asyncio.to_thread(sys.stdin.readline):
        do, *words = told.split()
        answer = "ready"
        if do == "door":
            key, peer, address, socket = words
            door = wire.make_listener(key, peer, _respond, limits)
            answer = door.open(address)
            door.lead({"memory": socket})
        elif do == "line":
            key, peer, address, socket, count = words
            line = wire.make_connection(key, address, peer, limits)
            line.offer({"memory": Path(socket)}, ahead=int(count))
        else:
            for opened in filter(None, (door, line)):
                opened.close()
            door = line = None
        print(answer, flush=True)


asyncio.run(serve(sys.argv[1]))
