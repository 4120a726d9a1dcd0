"""How much of a move may be on its way."""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import time
from collections.abc import Iterator
from termios import TIOCOUTQ

import pytest

from weft.agent.migration.window import LEAST_BYTES, QUEUE_SECONDS, ReceiveBuffer, SendWindow, adjust_window
from weft.contracts.clock import SystemClock

SIOCOUTQNSD = 0x894B  # bytes that weren't sent, beside those that weren't heard of


@pytest.mark.parametrize(
    ("megabits", "round_trip_ms", "least", "most"),
    [
        (100, 0.2, 150_000, 300_000),  # a near and slow path: some 15 ms of it
        (1000, 0.2, 1_500_000, 2_500_000),
        (100, 100, 2_000_000, 3_000_000),  # a far one: its own content twice
        (1, 0.2, LEAST_BYTES, LEAST_BYTES),
        (0, 0.2, LEAST_BYTES, LEAST_BYTES),
    ],
)
def test_what_waits_too_long_on_a_path_is_bounded_by_what_it_carries(
    megabits: float, round_trip_ms: float, least: int, most: int
) -> None:
    assert least <= adjust_window(0, 0.25, megabits * 125_000, round_trip_ms / 1000, LEAST_BYTES) <= most


def test_nothing_is_bounded_where_nothing_waits() -> None:
    assert adjust_window(0, 0.0, 1e9, 0.001, LEAST_BYTES) == 0


@pytest.mark.parametrize("hiccup_seconds", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("megabits", [1, 100, 10_000])
def test_an_end_that_is_slow_to_wake_keeps_its_path_busy_all_the_same(hiccup_seconds: float, megabits: float) -> None:
    """What such a machine carries is its window once per hiccup. Were the window made by that rate alone, each would shrink
    the other, down to nothing."""
    path, window = megabits * 125_000, LEAST_BYTES
    for _ in range(200):
        rate = min(path, window / hiccup_seconds)
        waits = max(0.0, window - path * hiccup_seconds) / rate
        window = adjust_window(window, waits, rate, 0.0002, LEAST_BYTES)
    assert min(path, window / hiccup_seconds) > 0.8 * path
    assert window <= max(LEAST_BYTES, 1.25 * path * (hiccup_seconds + 3 * QUEUE_SECONDS))


@pytest.fixture
def path() -> Iterator[tuple[socket.socket, socket.socket, socket.socket, socket.socket]]:
    """Who sends, who receives, and the machine's socket behind that one, as this node and the machine hold it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sends = socket.create_connection(server.getsockname())
        receives, _ = server.accept()
    plain, machine = socket.socketpair()
    for sock in (receives, plain):
        sock.setblocking(False)
    with sends, receives, plain, machine:
        yield sends, receives, plain, machine


def test_what_the_other_end_may_send_already_finds_room_though_there_is_to_be_less(
    path: tuple[socket.socket, socket.socket, socket.socket, socket.socket],
) -> None:
    """What the kernel throws away is sent again a fifth of a second later, then after two fifths, four: moves stood still for
    minutes."""
    sends, receives, _, _ = path
    room, data = ReceiveBuffer(receives), bytes(1 << 16)
    room.set(1 << 20, 0)
    for _ in range(256):
        sends.sendall(data)
        read(receives, len(data))
    came = 256 << 16
    room.set(32 << 10, came)
    room.set(32 << 10, came)
    sends.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(16):
            came += sends.send(data)
    ended = time.monotonic() + 0.15
    while (lost := count(sends, TIOCOUTQ) - count(sends, SIOCOUTQNSD)) and time.monotonic() < ended:
        time.sleep(0.01)
    assert not lost
    read(receives, came - (256 << 16))
    assert receives.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 1 << 20
    room.set(32 << 10, came + (1 << 20))
    assert receives.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < 128 << 10


def count(sock: socket.socket, what: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), what, bytes(4)))[0])


def read(sock: socket.socket, left: int) -> None:
    while left:
        select.select([sock], [], [], 5)
        left -= len(sock.recv(left))


@pytest.mark.parametrize("slow", [False, True])
def test_what_gathers_while_nobody_gets_to_carry_it_is_no_queue_but_what_a_machine_doesnt_take_is(
    path: tuple[socket.socket, socket.socket, socket.socket, socket.socket], slow: bool
) -> None:
    sends, receives, plain, machine = path
    data = b""
    sends.setblocking(False)
    for _ in range(3):  # a processor that is taken away at the wrong moment looks like a queue
        window, ended = SendWindow(plain, receives, SystemClock()), time.monotonic() + 1
        window.note()
        while time.monotonic() < ended:
            with contextlib.suppress(BlockingIOError):
                while True:
                    sends.send(bytes(1 << 16))
            time.sleep(0.06)
            window.refresh()
            with contextlib.suppress(BlockingIOError):
                while True:
                    data = data or receives.recv(1 << 16)
                    data = data[plain.send(data) :]
                    if not slow:
                        machine.recv(1 << 20)
            window.note()
            if slow:
                machine.recv(1 << 14)
        if (window.bytes > 0) == slow:
            return
    raise AssertionError(f"{window.bytes} bytes wait")
