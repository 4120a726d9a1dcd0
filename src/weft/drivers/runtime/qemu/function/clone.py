"""One clone of a template: an instance of its function. It stands still, or runs with a clock and randomness of its own.

Nothing of the function runs in it before the machine's own program has received its fresh state and confirmed it: it begins
frozen, is frozen before each pause, and goes on only from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable
from typing import Literal

from weft.contracts.clock import Clock
from weft.contracts.driver.sandbox import Ended
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.runtime.qemu.function.machine import Qemu
from weft.drivers.runtime.qemu.function.messages import (
    ASKS,
    DONE,
    ENDED,
    MEMORY,
    OUTPUT_READ,
    STAND_STILL,
    STANDS_STILL,
    TELL_PRINTED,
    WOKEN,
    GuestMessage,
    decode_end,
    decode_message,
    decode_number,
    encode_fresh,
    encode_short,
)
from weft.drivers.runtime.qemu.function.network import PrivateNet
from weft.drivers.runtime.qemu.function.reports import Reports
from weft.objects.errors import DriverFailed, Unavailable

AGAIN_SECONDS = 0.25  # a datagram that isn't answered is sent again
WAKE_SECONDS = 30.0
PAUSE_SECONDS = 2.0
MEMORY_SECONDS = 0.05  # somebody waits for an answer
FLUSH_SECONDS = 0.25
PRACTICE_CALLS = 2
MOST_DATAGRAMS = 1000


class Clone:
    """An Instance. ``started`` says how it came to be: taken from the pool, copied, or copied from a template that was made for
    it."""

    def __init__(
        self, id: str, net: PrivateNet, qemu: Qemu, cgroups: ControlGroups, clock: Clock, gone: Callable[[Clone], None]
    ) -> None:
        self.id = id
        self.started: Literal["pool", "clone", "cold"] = "clone"
        self.runtime_api = net.runtime_api
        self.output, self._printing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._net, self._qemu, self._cgroups, self._clock, self._gone = net, qemu, cgroups, clock, gone
        self._reports = Reports(net.reports, self._take_report, self._printing)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(net.wake.fileno(), self._receive)
        self._number = self._received = 0
        self._park = False
        self._settled: asyncio.Future[bytes] | None = None
        self._waking: asyncio.Task[None] | None = None
        self._paused = False
        self._turn = asyncio.Lock()
        self._most_memory = 0
        self._memory_reported = asyncio.Event()
        self._flush, self._flushed = 0, asyncio.Event()
        self._end: Ended | None = None
        self._ended = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._watching = asyncio.create_task(self._watch())

    @property
    def pid(self) -> int:
        """The process id of the clone's QEMU."""
        return self._qemu.pid

    @property
    def alive(self) -> bool:
        return self._end is None and not self._qemu.ended.is_set() and self._stopping is None

    # Coming up.

    def call(self) -> None:
        """Now that its QEMU has loaded it. What came earlier would be lost with the state of the NIC that was there before."""
        self._begin(park=self._park)

    def will_park(self) -> None:
        """It practises first, and then stands still."""
        self._park = True

    async def settle(self) -> None:
        """Wait until it has done what it was woken for. Raises DriverFailed."""
        assert self._settled is not None
        gone = asyncio.create_task(self._ended.wait())
        try:
            deadline = self._clock.elapsed() + WAKE_SECONDS
            while not self._settled.done():
                await asyncio.wait((self._settled, gone), timeout=AGAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if self._settled.done():
                    break
                if self._ended.is_set():
                    raise DriverFailed(
                        f"a clone ended as soon as it started: {self._qemu.last_words()}", details={"step": "wake"}
                    )
                if self._clock.elapsed() > deadline:
                    raise DriverFailed(f"a clone didn't resume within {WAKE_SECONDS:g} s", details={"step": "wake"})
                self._send(encode_short(WOKEN, self._number))
        finally:
            gone.cancel()

    async def stand(self) -> None:
        """It is still, by its own word: the machine is as well from here on. Raises Unavailable."""
        assert self._qemu.qmp is not None
        await self._qemu.qmp.execute("stop")
        self._paused = True

    # What an Instance does.

    async def wait(self) -> Ended:
        await self._ended.wait()
        return self._end or Ended()

    async def freeze(self) -> None:
        async with self._turn:
            if self._paused or not self.alive:
                return
            await self._finish_waking()
            self._number += 1
            self._settled = self._loop.create_future()
            self._send(encode_short(STAND_STILL, self._number))
            with contextlib.suppress(TimeoutError):  # one that is too busy to answer is stopped all the same
                async with asyncio.timeout(PAUSE_SECONDS):
                    await asyncio.shield(self._settled)
            with contextlib.suppress(Unavailable):  # it has ended; ``wait`` says how
                await self.stand()

    async def resume(self) -> None:
        """Raises Unavailable if it has ended."""
        async with self._turn:
            if not self._paused:
                return
            assert self._qemu.qmp is not None
            self._park = False
            self._begin(fresh=True)
            await self._qemu.qmp.execute("cont")
            self._paused = False
            self._waking = asyncio.create_task(self._insist())

    async def stop(self, grace_seconds: float = 0.0) -> None:
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def most_memory(self) -> int:
        if self.alive and not self._paused:
            self._memory_reported.clear()
            self._send(encode_short(MEMORY, 0))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MEMORY_SECONDS):
                    await self._memory_reported.wait()
        return self._most_memory

    async def flush(self) -> None:
        """It carries what is printed and what is answered over two connections: its own program says where in the former it is."""
        if self.alive and not self._paused:
            self._flush += 1
            self._flushed.clear()
            self._send(encode_short(TELL_PRINTED, self._flush))
            with contextlib.suppress(TimeoutError):  # it may hang
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._flushed.wait()

    # Between it and us.

    def _begin(self, *, park: bool = False, fresh: bool = False) -> None:
        """``fresh``: it runs at once, so it gets the time without asking first."""
        self._number += 1
        self._received = 0
        self._park = park
        self._settled = self._loop.create_future()
        self._send(self._fresh() if fresh else encode_short(WOKEN, self._number))

    def _fresh(self) -> bytes:
        practice = PRACTICE_CALLS if self._park else 0
        seed = secrets.token_bytes(32)
        return encode_fresh(
            self._number, int(self._clock.now() * 1e9), seed, self.id, practice=practice, park=self._park
        )

    async def _insist(self) -> None:
        """Wake it, again and again. One that never confirms is of no use; it stays frozen until it is ended."""
        try:
            await self.settle()
        except DriverFailed:
            self._qemu.kill()

    async def _finish_waking(self) -> None:
        if self._waking is not None:
            await asyncio.shield(self._waking)

    def _send(self, datagram: bytes) -> None:
        with contextlib.suppress(OSError):  # it is sent again
            self._net.wake.send(datagram)

    def _receive(self) -> None:
        try:
            message = decode_message(self._net.wake.recv(256))
        except OSError:
            return
        self._received += 1
        if self._received > MOST_DATAGRAMS:  # its own program sends a few at each turn
            self._loop.remove_reader(self._net.wake.fileno())
            self._qemu.kill()
        elif message is not None:
            self._take(message)

    def _take(self, message: GuestMessage) -> None:
        if message.kind in (STANDS_STILL, MEMORY):
            self._most_memory = max(self._most_memory, message.most_memory)
        if message.kind == MEMORY:
            self._memory_reported.set()
        elif message.number != self._number or self._settled is None or self._settled.done():
            return
        elif message.kind == ASKS:
            self._send(self._fresh())
        elif message.kind in (DONE, STANDS_STILL):
            self._settled.set_result(message.kind)

    def _take_report(self, kind: bytes, content: bytes) -> None:
        if kind == OUTPUT_READ and decode_number(content) == self._flush:
            self._flushed.set()
        elif kind == ENDED and (end := decode_end(content)) is not None:
            self._most_memory = max(self._most_memory, end.most_memory)
            self._note_end(Ended(None if end.signal else end.code, end.signal or None, end.out_of_memory))
            self._qemu.kill()

    async def _watch(self) -> None:
        await self._qemu.ended.wait()
        self._note_end(Ended(signal=9))

    def _note_end(self, end: Ended) -> None:
        if self._end is None:
            self._end = end
            self._ended.set()

    async def _stop(self) -> None:
        for task in (self._waking, self._watching):
            if task is not None:
                task.cancel()
        self._qemu.kill()
        self._note_end(Ended(signal=9))
        self._loop.remove_reader(self._net.wake.fileno())
        self._reports.close()
        os.close(self._printing)
        await self._qemu.end(self._cgroups, self._clock)
        await self._net.close()
        os.close(self.output)
        self._gone(self)
