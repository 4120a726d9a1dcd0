"""What is read of one invocation's output has a bound, however much time passes by the clock."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress

import pytest

from weft.agent.function.output import BURST_BYTES, BYTES_PER_SECOND, OutputReader

MIB = 1 << 20


async def test_an_invocation_prints_what_its_time_allows_and_no_clock_makes_it_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    jumps = [loop.time()]

    def read_late_clock() -> float:
        jumps[0] += 1000.0  # each look at it finds that the machine stood still for a quarter of an hour
        return jumps[0]

    source, sink = os.pipe()
    os.set_blocking(source, False)
    heard: list[int] = []
    reader = OutputReader(source, lambda piece: heard.append(len(piece)))
    monkeypatch.setattr(reader, "_loop", _Late(loop, read_late_clock))

    def print_endlessly() -> None:
        with suppress(OSError):
            while True:
                os.write(sink, b"spam" * 4095 + b"\n")

    printing = threading.Thread(target=print_endlessly, daemon=True)
    printing.start()
    try:
        for seconds, most in ((3.0, BURST_BYTES + 3 * BYTES_PER_SECOND), (1.0, BURST_BYTES + BYTES_PER_SECOND)):
            reader.begin(seconds)
            before = sum(heard)
            for _ in range(2000):  # what the loop would read, and more
                await asyncio.sleep(0)
                reader.catch_up()
                if sum(heard) - before > most - MIB // 2:
                    break
                await asyncio.sleep(0.001)
            for _ in range(50):
                reader.catch_up()
                await asyncio.sleep(0)
            assert most - MIB < sum(heard) - before <= most
            assert len(reader.tail()) == 4096
    finally:
        reader.close()
        os.close(source)
        printing.join(10)
        os.close(sink)


class _Late:
    """The loop, with another clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop, read: object) -> None:
        self._loop, self.time = loop, read

    def __getattr__(self, name: str) -> object:
        return getattr(self._loop, name)
