"""The outbox: numbered, durable, bounded; what was dropped is counted, and times are ages."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from weft.agent.server.outbox import FILE, MOST_UNSAVED, Outbox
from weft.agent.state.wall_clock import FILE as CLOCK_FILE
from weft.agent.state.wall_clock import WallClock
from weft.objects.identity import Ref

NODE, VM = Ref("node", "n1", "node-uid"), Ref("vm", "web", "vm-uid", "default")


class SetClock:
    def __init__(self, wall: float = 1_700_000_000.0) -> None:
        self.wall, self.time = wall, 100.0

    def now(self) -> float:
        return self.wall

    def elapsed(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None: ...

    def pass_by(self, seconds: float) -> None:
        self.wall, self.time = self.wall + seconds, self.time + seconds


def open_outbox(folder: Path, clock: SetClock, boot: str = "b1", **bounds: int) -> Outbox:
    return Outbox(folder, clock, WallClock(folder, clock), boot_id=boot, node=NODE, **bounds)


def put(outbox: Outbox, *messages: str) -> None:
    for message in messages:
        outbox.put("Normal", "GuestRestarted", message, VM)


def messages(outbox: Outbox, most: int = 100) -> list[str]:
    return [event.message for event in outbox.read(most)]


def test_events_wait_in_order_until_the_server_has_them(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path, SetClock())
    put(outbox, "a", "b", "c")
    first, second, third = outbox.read(10)
    assert [one.message for one in (first, second, third)] == ["a", "b", "c"] and first.n < second.n < third.n
    assert messages(outbox, 2) == ["a", "b"]
    outbox.acknowledge(second.n)
    assert messages(outbox) == ["c"] and (outbox.state.events, outbox.state.dropped) == (1, 0)
    outbox.acknowledge(third.n)
    assert outbox.read(10) == [] and (outbox.state.events, outbox.state.bytes) == (0, 0)


def test_the_next_agent_goes_on_with_the_same_outbox_and_greater_numbers(tmp_path: Path) -> None:
    clock = SetClock()
    first = open_outbox(tmp_path, clock)
    put(first, "a")
    (before,) = first.read(10)
    clock.pass_by(60.0)
    again = open_outbox(tmp_path, clock)  # the first was killed: it closes nothing
    put(again, "b")
    kept, fresh = again.read(10)
    assert again.id == first.id and (kept.n, kept.message) == (before.n, "a") and fresh.n > kept.n
    assert (kept.age_seconds, fresh.age_seconds) == (60.0, 0.0)


def test_ages_are_right_though_the_clock_is_set_and_across_a_boot(tmp_path: Path) -> None:
    clock = SetClock()
    outbox = open_outbox(tmp_path, clock)
    put(outbox, "a")
    clock.pass_by(3600.0)
    clock.wall += 86_400.0  # somebody set it
    assert outbox.read(1)[0].age_seconds == 3600.0
    clock.wall -= 86_400.0
    rebooted = SetClock(clock.wall + 600.0)
    assert open_outbox(tmp_path, rebooted, "b2").read(1)[0].age_seconds == 4200.0


def test_a_board_that_begins_in_1970_goes_on_from_the_newest_time_that_it_has_seen(tmp_path: Path) -> None:
    clock = SetClock()
    WallClock(tmp_path, clock).save()
    assert (tmp_path / CLOCK_FILE).read_text() == "1700000000\n"
    board = SetClock(5.0)
    wall = WallClock(tmp_path, board)
    board.pass_by(10.0)
    assert wall.behind and wall.now() == 1_700_000_010.0
    board.wall = 1_700_000_700.0  # a time service has set it
    assert not wall.behind and wall.now() == 1_700_000_700.0


def test_the_servers_time_counts_once_it_has_answered(tmp_path: Path) -> None:
    board = SetClock(5.0)
    wall = WallClock(tmp_path, board)
    for headers in ({}, {"date": "nonsense"}, {"date": "Tue, 14 Nov 2023 22:13:20 GMT"}):
        wall.note_server(headers)
    board.pass_by(10.0)
    assert wall.now() == 1_700_000_010.0 and wall.behind
    board.wall = 2_200_000_000.0  # somebody set it, too far
    assert wall.now() == 1_700_000_010.0 and not wall.behind
    wall.save()
    assert WallClock(tmp_path, SetClock(5.0)).now() == 1_700_000_010.0


@pytest.mark.parametrize("text", ["nonsense", "-5", "1e300", "nan", ""])
def test_a_torn_clock_file_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / CLOCK_FILE).write_text(text)
    assert WallClock(tmp_path, SetClock()).now() == 1_700_000_000.0


def test_of_too_many_the_oldest_go_and_the_server_hears_how_many(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path, SetClock(), most_events=20)
    put(outbox, *(str(number) for number in range(25)))
    assert (outbox.state.events, outbox.state.dropped) == (19, 6)
    told, *rest = outbox.read(5)
    assert (told.type, told.reason, told.object) == ("Warning", "EventsDropped", NODE)
    assert "6 since the node joined" in told.message
    assert [one.message for one in rest] == ["6", "7", "8", "9"] and told.n < rest[0].n
    outbox.acknowledge(rest[-1].n)
    assert messages(outbox, 2) == ["10", "11"]
    assert open_outbox(tmp_path, SetClock()).state.dropped == 6, "the next agent knows it too"


def test_a_bound_of_bytes_holds_too(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path, SetClock(), most_bytes=10_000)
    put(outbox, *("x" * 1000 for _ in range(30)))
    assert outbox.state.bytes <= 10_000 and outbox.state.events + outbox.state.dropped == 30


def test_events_wait_in_memory_while_the_file_cannot_be_written(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path, SetClock())
    put(outbox, "a")
    outbox._connection.execute("PRAGMA query_only=1")  # as a full disk does
    put(outbox, "b", "c")
    assert messages(outbox) == ["a", "b", "c"]
    outbox._connection.execute("PRAGMA query_only=0")
    put(outbox, "d")
    assert messages(outbox) == ["a", "b", "c", "d"]
    outbox.acknowledge(outbox.read(3)[-1].n)
    assert messages(outbox) == ["d"]
    outbox._connection.execute("PRAGMA query_only=1")
    put(outbox, *map(str, range(MOST_UNSAVED + 3)))
    assert outbox.state.dropped == 3


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    outbox = open_outbox(tmp_path, SetClock())
    put(outbox, "a")
    told, after = outbox.read(10)
    assert (told.reason, told.type, told.object, after.message) == ("OutboxDamaged", "Warning", NODE, "a")
    assert "the events that waited in it, 110 at most, are lost" in told.message
    assert (tmp_path / f"{FILE}.damaged").exists()
    again = open_outbox(tmp_path, SetClock())
    assert [one.reason for one in again.read(10)] == ["OutboxDamaged", "GuestRestarted"], "it is said once"


def test_a_file_with_a_damaged_page_is_put_aside_and_a_new_outbox_begins(tmp_path: Path) -> None:
    before = open_outbox(tmp_path, SetClock())
    put(before, *("x" * 1000 for _ in range(50)))
    before.close()
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(5 * 4096)  # behind the schema and the roots
        file.write(b"\xff" * ((tmp_path / FILE).stat().st_size - 5 * 4096))
    outbox = open_outbox(tmp_path, SetClock())
    put(outbox, "a")
    assert messages(outbox)[1:] == ["a"] and outbox.id != before.id and (tmp_path / f"{FILE}.damaged").exists()


@pytest.mark.parametrize(("name", "value"), [("starts", "none"), ("starts", 1 << 40), ("dropped", b"\xff")])
def test_a_file_whose_own_numbers_are_damaged_is_put_aside(tmp_path: Path, name: str, value: object) -> None:
    before = open_outbox(tmp_path, SetClock())
    before._write_meta(name, value)
    before.close()
    outbox = open_outbox(tmp_path, SetClock())
    put(outbox, "a")
    assert messages(outbox)[1:] == ["a"] and (tmp_path / f"{FILE}.damaged").exists()


@pytest.mark.parametrize(
    "damage", ["body = x'ff7b'", "body = '{}'", "at = 9e999", "at = x'00'", "boot = cast(x'ff' as text)"]
)
def test_events_that_cannot_be_read_are_dropped_and_counted(tmp_path: Path, damage: str) -> None:
    outbox = open_outbox(tmp_path, SetClock())
    put(outbox, "a", "b", "c")
    damaged = outbox.read(10)[1].n
    outbox._execute(f"UPDATE event SET {damage} WHERE n = ?", damaged)
    rebooted = open_outbox(tmp_path, SetClock(), "b2")
    is_readable = damage.startswith("boot")
    assert messages(rebooted, 3) == (["a", "b", "c"] if is_readable else ["a", "c"])
    assert (rebooted.state.events, rebooted.state.dropped) == ((3, 0) if is_readable else (3, 1))
    said = "the node's outbox is damaged: events in it that can't be read are lost: 1"
    assert is_readable or messages(rebooted)[2:] == [said]
    rebooted.acknowledge(rebooted.read(4)[-1].n)
    assert (rebooted.state.events, rebooted.state.bytes) == (0, 0)


def test_what_cannot_be_text_is_kept_as_far_as_it_can(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path, SetClock())
    put(outbox, "a\udcff" + "x" * 5000)
    (message,) = messages(outbox)
    assert message.startswith("a?x") and len(message) == 2000


KILLED = """
import os, pathlib, sys
from weft.agent.server.outbox import Outbox
from weft.contracts.clock import SystemClock
from weft.objects.identity import Ref
outbox = Outbox(pathlib.Path(sys.argv[1]), SystemClock(), boot_id="b")
for number in range(10**6):
    outbox.put("Normal", "Kept", str(number), Ref("vm", "web", "u", "default"))
    os.write(1, f"{number}\\n".encode())
"""


def test_a_killed_agent_loses_nothing_that_was_put(tmp_path: Path) -> None:
    agent = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    assert agent.stdout is not None
    written = b""
    while written.count(b"\n") < 300:
        written += os.read(agent.stdout.fileno(), 65536)
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    with agent.stdout:
        written += agent.stdout.read()
    last = int(written.split(b"\n")[-2])
    kept = [int(one) for one in messages(open_outbox(tmp_path, SetClock()), 10**6)]
    assert kept == list(range(len(kept))) and kept[-1] in (last, last + 1)


@pytest.mark.parametrize("older", [False, True])
def test_only_root_reads_what_a_node_has_not_sent_yet(tmp_path: Path, older: bool) -> None:
    if older:  # as one that an earlier weft made
        for name in ("outbox.db", "outbox.db-wal"):
            (tmp_path / name).touch(0o644)
            (tmp_path / name).chmod(0o644)
    former = os.umask(0o022)
    try:
        outbox = open_outbox(tmp_path, SetClock())
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("outbox.db*")}
        assert "outbox.db-wal" in modes and {*modes.values()} == {0o600}, modes
        outbox.close()
    finally:
        os.umask(former)
