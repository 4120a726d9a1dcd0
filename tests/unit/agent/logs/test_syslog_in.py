"""What guests send as syslog: messages out of any bytes, bounded, as lines of the guest that has the address."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.agent.logs import inbox as inboxes
from weft.agent.logs import syslog_listener
from weft.agent.logs.inbox import Inbox, Received
from weft.agent.logs.syslog_listener import SyslogListener
from weft.agent.logs.syslog_message import MOST_BYTES, Framer, Unframed, read_message
from weft.contracts.clock import SystemClock
from weft.telemetry.logs.clean import LONGEST_LINE


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        (
            b"<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \xef\xbb\xbf'su root' failed",
            b"syslog crit su: 'su root' failed",
        ),
        (
            b'<165>1 2003-10-11T22:14:15.003Z host evntslog 12 ID47 [x@1 a="1" b="\\]2"][y@2] An event',
            b"syslog notice evntslog[12]: An event",
        ),
        (b"<165>1 - - - - - - only text", b"syslog notice: only text"),
        (
            b"<34>Oct 11 22:14:15 mymachine su: 'su root' failed on /dev/pts/8",
            b"syslog crit su: 'su root' failed on /dev/pts/8",
        ),
        (b"<13>Feb  5 17:32:18 10.0.0.99 nginx[77]: GET /", b"syslog notice nginx[77]: GET /"),
        (b"<13>Feb  5 17:32:18 logger: no host", b"syslog notice logger: no host"),
        (b"<13>cron[1]: no time", b"syslog notice cron[1]: no time"),
        (b"no priority at all", b"syslog -: no priority at all"),
        (b"<999>x", b"syslog -: <999>x"),
        (b"<13>app: two\nlines\n", b"syslog notice app: two\\nlines"),
        (b"<13>" + b"9" * 100, b"syslog notice: " + b"9" * 100),
        (b'<165>1 - - - - - [broken a="1 text', b'syslog notice: [broken a="1 text'),
    ],
)
def test_messages_of_both_forms_are_read_and_what_they_claim_of_time_and_place_is_left_out(
    sent: bytes, line: bytes
) -> None:
    assert read_message(sent) == line + b"\n"


@given(st.binary(max_size=300), st.sampled_from([b"", b"<13>", b"<13>1 - - - - - ", b"<13>1 - - - - - [x "]))
def test_any_bytes_are_one_line(sent: bytes, head: bytes) -> None:
    made = read_message(head + sent)
    assert made.endswith(b"\n") and made.count(b"\n") == 1 and made.startswith(b"syslog ")


def test_a_hostile_message_is_read_quickly() -> None:
    for sent in (b'<1>1 - - - - - [x a="' + b"\\" * 9_000_000, b"<1>" + b"a" * 10_000_000, b"<1>1" + b" -" * 5_000_000):
        assert len(read_message(sent)) < MOST_BYTES + 100


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(1, 30), st.booleans())
def test_messages_come_out_of_a_stream_however_it_is_cut(messages: list[bytes], step: int, counted: bool) -> None:
    messages = [b"<1>" + one.replace(b"\n", b"_") for one in messages]
    if counted:
        stream = b"".join(b"%d %b" % (len(one), one) for one in messages)
    else:
        stream = b"".join(one + b"\n" for one in messages)
    framer, found = Framer(), list[bytes]()
    for at in range(0, len(stream), step):
        found += framer.feed(stream[at : at + step])
    assert found + framer.end() == messages


def test_blank_lines_are_passed_over_at_once() -> None:
    framer, found = Framer(), list[bytes]()
    for _ in range(500):
        found += framer.feed(b"\n" * 60_000 + b"<1>x\n \0\r\n")
    assert found == [b"<1>x"] * 500


def test_a_long_message_is_cut_and_the_next_one_is_whole() -> None:
    for long in (b"<1>" + b"x" * 10_000_000 + b"\n", b"10000003 <1>" + b"x" * 10_000_000):
        framer, found, most = Framer(), list[bytes](), 0
        stream = long + b"7 <2>next"
        for at in range(0, len(stream), 60_000):
            found += framer.feed(stream[at : at + 60_000])
            most = max(most, len(framer._rest))
        assert found == [b"<1>" + b"x" * (MOST_BYTES - 3), b"<2>next"] and framer.cut == 1
        assert most <= MOST_BYTES + 60_000


@pytest.mark.parametrize("broken", [b"9999999999 x", b"12x", b"0123456789"[1:] + b"0 x", b"1  " * 9])
def test_a_stream_that_can_not_be_divided_is_given_up(broken: bytes) -> None:
    with pytest.raises(Unframed):
        Framer().feed(broken)


def test_a_guest_s_flood_is_bounded_and_counted_and_takes_nothing_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Inbox(SystemClock())
    for _ in range(20_000):
        box.put("noisy", "vm/a/noisy", b"<1>x\n")
    box.put("quiet", "vm/b/quiet", b"\xff\x1b[2J" + b"y" * 20_000 + b"\n")
    assert box.can_take("quiet")
    found = {one.uid: one for one in box.take(set())}
    lines = found["noisy"].text.splitlines()
    assert 5000 <= len(lines) - 1 < 8000
    assert lines[-1] == b"[weft: %d lines that came by syslog were dropped: they were too many]" % (20_001 - len(lines))
    assert len(found["quiet"].text) <= LONGEST_LINE + 1 and found["quiet"].text.decode()
    assert all(len(one.times) == one.text.count(b"\n") for one in found.values())
    for number in range(inboxes.MOST_GUESTS + 10):
        box.put(f"g{number}", "vm/a/g", b"x\n")
    assert len(box._guests) <= inboxes.MOST_GUESTS
    assert box._size == sum(one.size for one in box._guests.values())
    monkeypatch.setattr(inboxes, "MOST_BYTES_OF_ALL", box._size - 10)  # the disk is slow
    assert not box.can_take("new")
    box.put("new", "vm/b/new", b"x\n")
    assert box._guests["new"].dropped == 1
    box.take(set())
    assert box._size == 0 and box.can_take("new")
    waiting = Inbox(SystemClock())
    waiting.put("arriving", "vm/a/arriving", b"x\n")
    assert waiting.take({"arriving"}) == [] and len(waiting.take(set())) == 1


def bind(kind: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    made.bind(("127.0.0.1", 0))
    made.setblocking(False)
    return made


async def until(box: Inbox, count: int) -> list[bytes]:
    found: list[Received] = []
    async with asyncio.timeout(30):
        while sum(one.text.count(b"\n") for one in found) < count:
            found += box.take(set())
            await asyncio.sleep(0.01)
    return b"".join(one.text for one in found).splitlines()


async def test_lines_are_of_the_guest_with_the_address_and_strangers_say_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    box = Inbox(SystemClock())
    web = SimpleNamespace(what="vm/lab/web", spec=SimpleNamespace(workload=SimpleNamespace(uid="u1")))
    guests: dict[str, Any] = {"127.0.0.1": web}
    udp, tcp = bind(socket.SOCK_DGRAM), bind(socket.SOCK_STREAM)
    places = udp.getsockname(), tcp.getsockname()
    listener = SyslogListener(udp, tcp, guests.get, box, SystemClock())
    await listener.begin()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"<11>Feb  5 17:32:18 vm/other/secret app: by udp", places[0])
        sender.sendto(b"\0", places[0])
    assert await until(box, 1) == [b"syslog err app: by udp"]
    _, writer = await asyncio.open_connection(*places[1])
    writer.write(b"<11>a: one\n7 <11>two<11>b: the last")
    writer.close()
    assert await until(box, 3) == [b"syslog err a: one", b"syslog err: two", b"syslog err b: the last"]
    del guests["127.0.0.1"]  # it has gone, and the address is nobody's
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"<11>stranger", places[0])
    reader, writer = await asyncio.open_connection(*places[1])
    assert await reader.read() == b""
    writer.close()
    assert box.take(set()) == []
    await listener.close()


async def test_connections_of_one_guest_are_few_and_a_fast_one_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inboxes, "BURST_LINES", 50.0)
    monkeypatch.setattr(inboxes, "LINES_PER_SECOND", 500.0)
    monkeypatch.setattr(syslog_listener, "WAIT_SECONDS", 0.01)
    box = Inbox(SystemClock())
    web = SimpleNamespace(what="vm/lab/web", spec=SimpleNamespace(workload=SimpleNamespace(uid="u1")))
    udp, tcp = bind(socket.SOCK_DGRAM), bind(socket.SOCK_STREAM)
    place = tcp.getsockname()
    listener = SyslogListener(udp, tcp, lambda _: web, box, SystemClock())  # type: ignore[arg-type, return-value]
    await listener.begin()
    opened = [await asyncio.open_connection(*place) for _ in range(syslog_listener.MOST_OF_GUEST)]
    while listener._connections["127.0.0.1"] < len(opened):
        await asyncio.sleep(0.01)
    reader, _ = await asyncio.open_connection(*place)
    assert await reader.read() == b""
    opened[0][1].write(b"".join(b"<11>%d\n" % number for number in range(300)))
    assert await until(box, 300) == [b"syslog err: %d" % number for number in range(300)]  # none is dropped
    for _, writer in opened:
        writer.close()
    await listener.close()
