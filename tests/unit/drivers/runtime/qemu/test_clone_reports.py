"""What a function's machine says of itself comes from whoever is in there: nothing of it costs its node more than a little."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weft.drivers.runtime.qemu.function import reports as module
from weft.drivers.runtime.qemu.function.messages import (
    ENDED,
    INIT_ERROR,
    MOST_FRAME_BYTES,
    OUTPUT_READ,
    PRINTED,
    READY,
    TROUBLE,
)
from weft.drivers.runtime.qemu.function.reports import MOST_CONNECTIONS, Reports


class Machine:
    """The node's side of one machine, and whoever connects from inside."""

    def __init__(self, *, prints: bool = True) -> None:
        self.heard: list[tuple[bytes, bytes]] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.output, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._theirs = theirs
        self.reports = Reports(self.listener, lambda *said: self.heard.append(said), theirs if prints else -1)

    async def connect(self) -> socket.socket:
        guest = socket.create_connection(self.listener.getsockname())
        guest.setblocking(False)
        await asyncio.sleep(0.01)
        return guest

    async def hears(self, said: tuple[bytes, bytes]) -> None:
        async with asyncio.timeout(20):
            while said not in self.heard:
                await asyncio.sleep(0.01)

    def close(self) -> None:
        self.reports.close()
        self.listener.close()
        os.close(self.output)
        os.close(self._theirs)


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


def frame(kind: bytes, content: bytes = b"") -> bytes:
    return kind + struct.pack("<I", len(content)) + content


FRAMES = st.one_of(
    st.binary(max_size=300),
    st.builds(
        frame,
        st.sampled_from([PRINTED, INIT_ERROR, ENDED, READY, TROUBLE, OUTPUT_READ, b"?"]),
        st.binary(max_size=200),
    ),
    st.builds(
        lambda kind, size: kind + struct.pack("<I", size),
        st.sampled_from([PRINTED, ENDED, READY]),
        st.sampled_from([0, 1, MOST_FRAME_BYTES, MOST_FRAME_BYTES + 1, 2**32 - 1]),
    ),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(FRAMES, max_size=12), st.booleans())
def test_whatever_is_said_is_borne_and_the_next_who_speaks_well_is_heard(said: list[bytes], prints: bool) -> None:
    async def talk() -> None:
        trouble: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))
        machine = Machine(prints=prints)
        try:
            guest = await machine.connect()
            for piece in said:
                try:
                    guest.sendall(piece)
                except OSError:  # hung up on
                    break
                await asyncio.sleep(0)
            guest.close()
            await asyncio.sleep(0.01)
            guest = await machine.connect()
            guest.sendall(frame(ENDED, b"the last"))
            await machine.hears((ENDED, b"the last"))
            guest.close()
        finally:
            machine.close()
        assert not trouble

    asyncio.run(talk())


@pytest.mark.parametrize("kind", [PRINTED, READY, OUTPUT_READ])
async def test_a_flood_of_small_frames_is_read_slowly_and_the_end_of_it_is_heard(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, kind: bytes
) -> None:
    rests: list[float] = []
    loop = asyncio.get_running_loop()
    real = loop.call_later

    def note(delay: float, call: object, *words: object) -> object:
        if call == machine.reports._go_on:
            rests.append(delay)
        return real(delay, call, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_later", note)
    guest = await machine.connect()
    await loop.sock_sendall(guest, frame(kind) * 6_000 + frame(ENDED, b"over"))
    await machine.hears((ENDED, b"over"))
    assert sum(rests) >= 6_000 * module._FRAME_SECONDS * 0.9
    guest.close()


async def test_what_is_printed_comes_whole_however_small_its_pieces_and_waits_for_its_reader(machine: Machine) -> None:
    guest, loop = await machine.connect(), asyncio.get_running_loop()
    text = b"".join(b"%d\n" % number for number in range(100_000))
    pieces = [frame(PRINTED, text[at : at + 97]) for at in range(0, len(text), 97)]
    sending = asyncio.ensure_future(loop.sock_sendall(guest, b"".join(pieces) + frame(OUTPUT_READ, b"12345678")))
    await asyncio.sleep(0.3)
    assert len(machine.reports.printed()) <= module._MOST_PENDING + 3 * module._PIECE and not machine.heard
    got = bytearray()
    async with asyncio.timeout(20):
        while len(got) < len(text):
            try:
                got += os.read(machine.output, 1 << 16)
            except BlockingIOError:
                await asyncio.sleep(0.005)
    assert got == text
    await machine.hears((OUTPUT_READ, b"12345678"))
    await sending
    guest.close()


async def test_who_connects_beside_the_machines_own_program_is_hung_up_on_and_not_for_ever(machine: Machine) -> None:
    own = await machine.connect()
    for _ in range(MOST_CONNECTIONS + 50):
        with socket.create_connection(machine.listener.getsockname()):
            await asyncio.sleep(0)
    own.sendall(frame(ENDED, b"still heard"))
    await machine.hears((ENDED, b"still heard"))
    assert machine.reports._accepted <= MOST_CONNECTIONS + 1
    own.close()
