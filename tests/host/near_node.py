"""One node that finds out how far others are: ``near_node.py UID ADDRESS``. Peers come on stdin, what it tells goes to
stdout, both a line of JSON each."""

from __future__ import annotations

import asyncio
import sys

import msgspec

from weft.agent.node.proximity import Proximity
from weft.contracts.clock import SystemClock
from weft.protocol.report import Peers

PACE = 0.1


async def main(uid: str, address: str) -> None:
    loop = asyncio.get_running_loop()

    news = asyncio.Event()
    node = Proximity(uid, address, 8445, SystemClock(), news, pace=PACE)

    async def show() -> None:
        while await news.wait():
            news.clear()
            print(msgspec.json.encode(node.nearness).decode(), flush=True)

    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    keeping = [asyncio.create_task(node.keep()), asyncio.create_task(show())]
    while line := await reader.readline():
        node.put_peers(msgspec.json.decode(line, type=Peers))
    for task in keeping:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
