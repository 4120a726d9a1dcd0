"""Which events are shown, and in which order: a node that was cut off tells late what happened before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from weft.cli.verbs import events


def record(number: int, at: float) -> dict[str, Any]:
    ref = {"kind": "vm", "name": "till", "project": "default"}
    return {"id": number, "at": at, "type": "Normal", "reason": f"R{number}", "object": ref, "message": "", "count": 1}


def test_what_is_told_late_stands_at_its_time_and_following_begins_after_the_newest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def read(**given: Any) -> list[dict[str, Any]]:
        if given.get("follow"):
            asked.append(given["since"])
            return []
        return [record(1, 10.0), record(2, 40.0), record(3, 20.0)]

    session: Any = SimpleNamespace(
        client=SimpleNamespace(events=read),
        given_project=None,
        is_document=False,
        clock=SimpleNamespace(now=lambda: 50.0),
        notify=print,
    )
    assert [one["id"] for one in events._read(session, None, [])] == [1, 3, 2]
    events._run(session, None, (), follow=True, tail=2)
    assert asked == [3]
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["R3", "R2"]
    events._run(session, None, (), follow=True, tail=None, since=15.0)
    assert asked == [3, 3]
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["R2"]
    events._run(session, None, (), follow=False, tail=None, since=5.0)
    assert capsys.readouterr().out == "no events in the last 5s\n"
