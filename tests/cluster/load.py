"""Requests to a service at a steady rate, each over a new connection, and what became of each: ``python -m tests.cluster.load RATE
PATHS HOST:PORT …`` asks the places in turn until its standard input ends, and prints a line for each request as it ends. A slow
answer doesn't hold up the next request."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
ANSWER_SECONDS = 20.0
MOST_AT_ONCE, MOST_BYTES = 500, 65536


class Request(NamedTuple):
    """``status``: 200, or what went wrong on the way, like ConnectionRefusedError; ``said``: the answer's first word."""

    began: float  # unix seconds
    seconds: float
    path: str
    status: str
    said: str

    @property
    def failed(self) -> bool:
        return self.status != "200"


class Load:
    """What was asked so far; it grows while the load runs."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def since(self, began: float) -> list[Request]:
        return [one for one in self.requests if one.began >= began]

    def failures(self, since: float = 0.0) -> list[Request]:
        return [one for one in self.since(since) if one.failed]

    def said(self, since: float = 0.0) -> Counter[str]:
        """How many requests each version answered, well or not."""
        return Counter(one.said for one in self.since(since) if one.said)


@contextmanager
def ask_steadily(places: Sequence[str], rate: float, paths: Sequence[str] = ("/",)) -> Iterator[Load]:
    """``rate`` requests a second to ``paths`` in turn until the block ends; then those under way are waited for."""
    words = [sys.executable, "-m", "tests.cluster.load", str(rate), ",".join(paths), *places]
    load = Load()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            began, seconds, path, status, said = line.rstrip("\n").split("\t")
            load.requests.append(Request(float(began), float(seconds), path, status, said))

    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        reading = threading.Thread(target=read)
        reading.start()
        try:
            yield load
        finally:
            assert process.stdin is not None
            process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(ANSWER_SECONDS + 10)
            process.kill()
            reading.join()


def await_answers(places: Sequence[str], seconds: float = 60.0) -> None:
    """Until each place answers 200 five times in a row: a proxy listens a moment after its service is there."""
    deadline = time.monotonic() + seconds
    for place in places:
        row = 0
        while row < 5:
            assert time.monotonic() < deadline, f"{place} doesn't answer"
            try:
                with urllib.request.urlopen(f"http://{place}/", timeout=5) as answer:
                    row = row + 1 if answer.status == 200 else 0
            except OSError:
                row = 0
                time.sleep(0.2)


async def _ask(place: str, path: str) -> None:
    began, started = time.time(), time.perf_counter()
    host, _, port = place.partition(":")
    status, said = "", ""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                answer = await reader.read(MOST_BYTES)
                while more := await reader.read(MOST_BYTES):
                    answer = (answer + more)[:MOST_BYTES]
            finally:
                writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        status = head.split(b" ", 2)[1].decode() if head.startswith(b"HTTP/1.") else "NoAnswer"
        said = (body.split() or [b""])[0].decode(errors="replace")[:40]
    except (OSError, EOFError, ValueError, IndexError) as problem:
        status = type(problem).__name__
    print(began, f"{time.perf_counter() - started:.4f}", path, status, said, sep="\t", flush=True)


async def run(rate: float, paths: Sequence[str], places: Sequence[str]) -> None:
    over = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    started, under_way = time.monotonic(), set[asyncio.Task[None]]()
    for number, place, path in zip(itertools.count(), itertools.cycle(places), itertools.cycle(paths), strict=False):
        await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
        if over.done():
            break
        if len(under_way) >= MOST_AT_ONCE:  # what waits is asked later, and is late in the figures
            await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        asking = asyncio.create_task(_ask(place, path))
        under_way.add(asking)
        asking.add_done_callback(under_way.discard)
    if under_way:
        await asyncio.wait(under_way)


if __name__ == "__main__":
    asyncio.run(run(float(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:]))
