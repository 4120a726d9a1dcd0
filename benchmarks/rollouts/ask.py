"""``python -m benchmarks.rollouts.ask SECONDS PATHS HOST:PORT …``: a few clients for each place, each with one request after
another over new connections. Prints how many were answered in that time and how many failed."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Sequence

CLIENTS, WARM_SECONDS = 4, 3.0


async def ask_all(seconds: float, paths: Sequence[str], places: Sequence[str]) -> tuple[int, int]:
    counts, begin = [0, 0], time.monotonic() + WARM_SECONDS
    end = begin + seconds

    async def keep(place: str, first: int) -> None:
        host, _, port = place.partition(":")
        for path in itertools.islice(itertools.cycle(paths), first, None):
            if time.monotonic() > end:
                return
            answer = b""
            try:
                async with asyncio.timeout(10):
                    reader, writer = await asyncio.open_connection(host, int(port))
                    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                    answer = await reader.read(-1)
                    writer.close()
            except OSError:
                await asyncio.sleep(0.05)
            if begin <= time.monotonic() <= end:
                counts[b" 200 " not in answer[:16]] += 1

    await asyncio.gather(*(keep(place, 7 * at) for at, place in enumerate(list(places) * CLIENTS)))
    return counts[0], counts[1]


if __name__ == "__main__":
    print(*asyncio.run(ask_all(float(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:])))
