"""Lines of many workloads on one terminal: by time, harmless, and each once although a connection is lost."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest

from weft.cli.command.target import Target
from weft.cli.logs import aggregate, reader
from weft.cli.logs.aggregate import show_aggregate
from weft.cli.output.form import Form
from weft.cli.session import Session
from weft.cli.stream.logs import Write, ask_log
from weft.contracts.clock import SystemClock
from weft.kinds.registry import BY_NAME
from weft.objects.errors import NotFound, Unavailable

Lines = list[tuple[float, str]]


class Guests:
    """What guests have printed, as seconds and texts; a connection breaks after so many lines."""

    def __init__(self, **lines: Lines) -> None:
        self.lines, self.breaks, self.asked = lines, list[int](), list[dict[str, Any]]()

    def run(self, session: Session, target: Target, asked: dict[str, Any], write: Write) -> int:
        self.asked.append(asked)
        if target.name not in self.lines:
            raise NotFound(f"{target.what} is not there")
        texts = [
            json.dumps({"time": f"2026-11-25T12:00:{at:09.6f}Z", "source": target.what, "message": text}).encode()
            + b"\n"
            for at, text in self.lines[target.name]
        ]
        until = self.breaks.pop(0) if self.breaks else len(texts)
        data = b"".join(texts[:until])
        for start in range(0, len(data), 11):
            write(1, data[start : start + 11])
        if until < len(texts):
            raise Unavailable("the stream was cut")
        return 0


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(reader, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(aggregate, "SETTLE_SECONDS", 0.01)
    return Session(SystemClock, {"WEFT_SERVER": "https://127.0.0.1:1"})


def show(
    session: Session, guests: Guests, monkeypatch: pytest.MonkeyPatch, *names: str, follow: bool = False, **more: Any
) -> int:
    monkeypatch.setattr(reader, "run_stream", guests.run)
    targets = [Target(BY_NAME["vm"], name) for name in names]
    return show_aggregate(session, targets, {**ask_log(follow, -1, None), **more}, prefix=len(targets) > 1)


@pytest.mark.parametrize("follow", [False, True])
def test_lines_of_several_guests_are_merged_by_time(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], follow: bool
) -> None:
    guests = Guests(a=[(1, "one"), (3, "three")], b=[(2, "two"), (4, "four")])
    assert show(session, guests, monkeypatch, "a", "b", follow=follow, filter="o") == 0
    shown = capsys.readouterr().out.splitlines()
    if not follow:
        assert [line.split()[-1] for line in shown] == ["one", "two", "three", "four"]
    assert sorted(line.split()[-1] for line in shown) == ["four", "one", "three", "two"]
    assert "2026-11-25T12:00:02.000Z  vm/b  two" in shown
    assert guests.asked[0] == {"aggregate": True, "follow": follow, "tail": -1, "filter": "o"}


def test_a_guest_s_words_do_nothing_to_a_terminal(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b]0;title\x07\x1b[2J\x9b31m\x85\u202etxt.exe <b>ü</b>\r\x08"
    guests = Guests(a=[(1, hostile)])
    assert show(session, guests, monkeypatch, "a") == 0
    assert capsys.readouterr().out == "2026-11-25T12:00:01.000Z  ?]0;title??[2J?31m??txt.exe <b>ü</b>??\n"
    session.given_form = Form("json")
    assert show(session, guests, monkeypatch, "a") == 0
    document = capsys.readouterr().out
    assert document.removesuffix("\n").isprintable() and document.endswith("\n")
    assert json.loads(document) == {"time": "2026-11-25T12:00:01.000000Z", "source": "vm/a", "message": hostile}


def test_a_lost_connection_repeats_no_line_and_leaves_none_out(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guests = Guests(a=[(number, f"line {number}") for number in range(50)])
    guests.breaks = [10, 10, 25, 49]
    assert show(session, guests, monkeypatch, "a", follow=True) == 0
    shown = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert shown == [f"line {number}" for number in range(50)]
    assert guests.asked[-1]["since"] > 0


def test_a_guest_that_is_not_there_keeps_the_others_from_nothing(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(session, Guests(a=[(1, "one")]), monkeypatch, "a", "b") == 8
    said = capsys.readouterr()
    assert said.out.endswith("vm/a  one\n") and "vm/b: vm/b is not there" in said.err


def test_what_ends_the_only_one_is_the_commands_error(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="vm/b is not there"):
        show(session, Guests(a=[(1, "one")]), monkeypatch, "b")


@pytest.mark.parametrize(
    ("follow", "form", "given", "said"),
    [
        (False, "csv", {}, "lines have no form csv"),
        (False, "name", {}, "lines have no form name"),
        (True, "table", {"until": 60.0}, "--until can't be given with -f"),
        (False, "table", {"filter": "a", "regex": "b"}, "--filter can't be given with --regex"),
        (False, "table", {"since": 60.0, "until": 600.0}, "no line is newer than 1m and older than 10m"),
        (False, "table", {"since": 60.0, "until": 60.0}, "no line is newer than 1m and older than 1m"),
    ],
)
def test_flags_that_mean_nothing_together_are_refused_before_a_node_is_asked(
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    follow: bool,
    form: str,
    given: dict[str, Any],
    said: str,
) -> None:
    session.given_form = Form(form)
    guests = Guests(a=[(1, "one")])
    with pytest.raises(click.UsageError, match=said):
        show(session, guests, monkeypatch, "a", follow=follow, **given)
    assert guests.asked == []
    for fits in ({"since": 600.0, "until": 60.0}, {"until": 60.0}, {"since": 60.0}):
        session.given_form = Form("json")
        assert show(session, guests, monkeypatch, "a", **fits) == 0
