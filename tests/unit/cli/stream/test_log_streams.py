"""Logs of several guests: whole lines, with whose they are; one that was lost is taken up without gaps or repeats."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading

import pytest

from weft.cli.command.target import Target
from weft.cli.session import Session
from weft.cli.stream import logs
from weft.cli.stream.held_exec import Cut
from weft.cli.stream.logs import ask_log, show_log, show_logs
from weft.cli.stream.watch import watch_documents
from weft.cli.wait import again
from weft.contracts.clock import SystemClock
from weft.kinds.registry import BY_NAME
from weft.objects.errors import NotFound, Unavailable


class Guests:
    """What guests have printed so far; a stream of it breaks after some bytes, and meanwhile more is printed."""

    def __init__(self, texts: dict[str, bytes], breaks: list[int] | None = None) -> None:
        self.texts, self.breaks, self.asked = texts, list(breaks or []), []  # type: ignore[var-annotated]

    def run(self, session: Session, target: Target, asked: dict[str, object], write: logs.Write) -> int:
        self.asked.append(asked)
        if target.name not in self.texts:
            raise NotFound(f"{target.what} is not there")
        text = self.texts[target.name]
        tail = asked["tail"]
        assert isinstance(tail, int)
        begun = text if tail < 0 else b"".join(text.splitlines(keepends=True)[-tail:])
        until = self.breaks.pop(0) if self.breaks and asked["follow"] else len(begun)
        for start in range(0, until, 7):
            write(1, begun[start : min(until, start + 7)])
        if until < len(begun):
            raise Unavailable("the stream was cut")
        return 0


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    made = Session(SystemClock, {"WEFT_SERVER": "https://127.0.0.1:1"})
    monkeypatch.setattr(logs, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(again, "AGAIN_SECONDS", 0.0)
    return made


def vm(name: str) -> Target:
    return Target(BY_NAME["vm"], name)


def test_lines_of_several_stay_whole_and_say_whose_they_are(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guests = Guests({"a": b"one\ntwo\nno end", "b": b"x" * 50 + b"\nlast\n"})
    monkeypatch.setattr(logs, "run_stream", guests.run)
    targets = [vm("a"), vm("b"), vm("gone")]
    assert show_logs(session, targets, follow=True, tail=-1, since=None, prefix=True) == 8
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == ["vm/a  no end", "vm/a  one", "vm/a  two", "vm/b  last", "vm/b  " + "x" * 50]
    assert "vm/gone is not there" in err
    assert show_logs(session, targets[:2], follow=False, tail=1, since=None, prefix=False) == 0
    assert capsys.readouterr().out == "no end\nlast\n", "without -f one after the other"


def test_what_was_lost_is_taken_up_without_gaps_or_repeats(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    text = b"".join(b"line %d of %d\n" % (n, random.Random(n).randrange(10**6)) for n in range(2000))
    guests = Guests({"a": text}, breaks=[5000, 20_000, 20_001])
    monkeypatch.setattr(logs, "run_stream", guests.run)
    kept = bytearray()
    monkeypatch.setattr(logs, "write_bytes", lambda descriptor, data: kept.extend(data))
    assert show_log(session, vm("a"), ask_log(True, -1, None)) == 0
    assert bytes(kept) == text
    assert [asked["follow"] for asked in guests.asked] == [True, False, True, False, True, False, True]


def test_a_log_that_was_never_reached_or_is_not_followed_is_not_tried_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for follow, breaks in ((True, [0]), (False, [])):
        guests = Guests({"a": b"text\n"}, breaks)
        monkeypatch.setattr(logs, "run_stream", guests.run)
        monkeypatch.setattr(logs, "write_bytes", lambda descriptor, data: None)
        if follow:
            with pytest.raises(Unavailable):
                show_log(session, vm("a"), ask_log(follow, -1, None))
        else:
            assert show_log(session, vm("a"), ask_log(follow, -1, None)) == 0
        assert len(guests.asked) == 1


def test_a_log_that_is_quiet_is_taken_up_after_a_lost_connection(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[Exception | None] = [Cut("lost"), *(Unavailable("no server") for _ in range(99)), None]
    kept = bytearray()

    def run(_: Session, target: Target, asked: dict[str, object], write: logs.Write) -> int:
        assert asked["follow"] and asked["tail"] == 0
        if (end := ends.pop(0)) is not None:
            raise end
        write(1, b"at last\n")
        return 0

    monkeypatch.setattr(logs, "run_stream", run)
    monkeypatch.setattr(logs, "write_bytes", lambda descriptor, data: kept.extend(data))
    assert show_log(session, vm("a"), ask_log(True, 0, None)) == 0
    assert bytes(kept) == b"at last\n"


def test_documents_are_followed_until_the_person_stops_however_long_the_server_is_away(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(range(99))

    def verb(*_: object, **__: object) -> object:
        raise Unavailable("no server") if next(left, None) is not None else KeyboardInterrupt

    monkeypatch.setattr(session.client, "verb", verb)
    with pytest.raises(KeyboardInterrupt):
        watch_documents(session, vm("a"), "samples", {}, print)


def test_a_log_that_begins_anew_is_shown_from_its_start(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guests = Guests({"a": b"first boot, long ago\n"}, breaks=[10])
    kept = bytearray()

    def write(descriptor: int, data: bytes) -> None:
        kept.extend(data)
        guests.texts["a"] = b"second\n"

    monkeypatch.setattr(logs, "run_stream", guests.run)
    monkeypatch.setattr(logs, "write_bytes", write)
    assert show_log(session, vm("a"), ask_log(True, -1, None)) == 0
    assert bytes(kept).endswith(b"second\n") and "restarted or truncated" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_ends_the_following_of_all_without_a_word(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """``weft logs -f a b | head -1``: threads carry the lines, and what ends one of them ends the command."""
    ended, others = threading.Event(), set(threading.enumerate())

    def run(_: Session, target: Target, asked: dict[str, object], write: logs.Write) -> int:
        write(1, b"a line\n")
        ended.wait(20)
        return 0

    monkeypatch.setattr(logs, "run_stream", run)
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        try:
            with pytest.raises(BrokenPipeError):
                show_logs(session, [vm("a"), vm("b")], follow=True, tail=-1, since=None, prefix=True)
        finally:
            ended.set()
            for thread in set(threading.enumerate()) - others:
                thread.join(20)  # or it would print where the next test looks
            monkeypatch.undo()
            with contextlib.suppress(BrokenPipeError):
                out.close()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_nothing_of_one_guest_s_log_acts_on_a_terminal(
    session: Session, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    said = "\x1b[31mred\x1b[0m\ttab\r\r\nzw\u00f6lf \u202e\r\n50%\r100%\n".encode() + b"\xff\x07no end\r"

    def run(session: Session, target: Target, asked: dict[str, object], write: logs.Write) -> int:
        for at in range(0, len(said), piece):
            write(1, said[at : at + piece])
        return 0

    monkeypatch.setattr(logs, "run_stream", run)
    kept = bytearray()
    monkeypatch.setattr(logs, "write_bytes", lambda descriptor, data: kept.extend(data))
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 1)
    assert show_log(session, vm("a"), ask_log(False, -1, None)) == 0
    assert kept.decode() == "?[31mred?[0m\ttab\nzw\u00f6lf ?\n50%?100%\n\ufffd?no end"
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)
    kept.clear()
    assert show_log(session, vm("a"), ask_log(False, -1, None)) == 0
    assert kept == said, "a file or another program gets what was printed"
