"""What is said while something is waited for, off a terminal and on one."""

from __future__ import annotations

import io
from typing import Any

import pytest

from weft.cli.command.target import Target
from weft.cli.wait.progress import Progress
from weft.kinds.registry import BY_NAME

WEB = Target(BY_NAME["container"], "web")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Shown:
    """A Progress with a clock that is moved by hand."""

    def __init__(self, stream: io.StringIO | None = None) -> None:
        self.now, self.stream = 0.0, stream or io.StringIO()
        self.progress = Progress(lambda: self.now, stream=self.stream, color=False)

    def show(self, phase: str, **more: Any) -> None:
        status = {"phase": phase, "observed_generation": 2, **more.pop("status", {})}
        obj = {"kind": "container", "name": "web", "generation": 2, "spec": {"grace": 20.0}, "status": status, **more}
        self.progress.show(WEB, obj)

    def said(self) -> list[str]:
        lines = self.stream.getvalue().splitlines()
        self.stream.truncate(0), self.stream.seek(0)
        return lines


def test_how_the_change_before_ended_is_never_said_of_the_one_that_begins() -> None:
    for stream, said in ((io.StringIO(), []), (Terminal(), ["Updating"])):
        for kind, phase in (("deployment", "RolledBack"), ("function", "Failed"), ("vm", "Suspended")):
            shown = Progress(lambda: 0.0, stream=stream, color=False)
            status = {"phase": phase, "observed_generation": 1, "message": "broken"}
            shown.show(Target(BY_NAME[kind], "x"), {"kind": kind, "generation": 2, "spec": {}, "status": status})
            assert [word for word in ("Updating", phase, "broken") if word in stream.getvalue()] == said


def test_a_stop_that_takes_its_time_says_how_long_it_waits_and_what_then() -> None:
    shown = Shown()
    shown.show("Running", status={"observed_generation": 1})
    assert shown.said() == [] and shown.progress.due_seconds is None
    shown.show("Running", status={"reason": "stopping"})
    assert shown.said() == ["container/web  stopping"]
    assert shown.progress.due_seconds == 1.0
    shown.now = 2.0
    shown.progress.tick()
    assert shown.said() == ["container/web  will be killed in 18 s unless it stops first"]
    shown.progress.tick()
    assert shown.said() == [] and shown.progress.due_seconds is None


def test_one_that_ends_soon_says_nothing_of_waiting() -> None:
    shown = Shown()
    shown.show("Running", status={"reason": "stopping"})
    shown.now = 0.4
    shown.show("Stopped")
    shown.now = 5.0
    shown.progress.tick()
    assert shown.said() == ["container/web  stopping"] and shown.progress.due_seconds is None


def test_on_a_terminal_the_seconds_run_down() -> None:
    shown = Shown(Terminal())
    shown.show("Shutdown", deleting_since=1.0)
    seen = []
    for shown.now in (3.0, 12.0, 30.0):
        shown.progress.tick()
        seen.append(shown.said()[-1])
    assert [line.split("killed in ")[1].split(" s")[0] for line in seen] == ["17", "8", "0"]


def test_trouble_is_told_once_in_the_words_of_its_status_and_phases_only_where_they_say_something() -> None:
    shown = Shown()
    trouble = {"reason": "tooLittleMemory", "message": "it has 96 MiB of memory; its image needs 128 MiB"}
    for _ in range(2):
        shown.show("Pending")
        shown.show("Running", status=trouble)
    assert shown.said() == [f"container/web  Running: tooLittleMemory: {trouble['message']}"]
    shown.show("Boot", status={"steps": [{"name": "disk", "state": "done", "detail": "8 ms"}, {"name": "boot"}]})
    shown.show("Unknown", status={"reason": "nodeLost", "message": "node n2 sends no heartbeat\x1b[2J"})
    assert shown.said() == [
        "container/web  disk ✓ 8 ms",
        "container/web  Unknown: nodeLost: node n2 sends no heartbeat?[2J",
    ]


def test_off_a_terminal_a_step_that_goes_on_says_once_in_words_what_it_does_and_never_how_far_it_is() -> None:
    shown = Shown()
    for detail in ("", "1.0 MiB of 8.0 MiB", "8.0 MiB of 8.0 MiB", "booting the image once", "booting the image once"):
        shown.show("Prolog", status={"steps": [{"name": "image", "state": "doing", "detail": detail}]})
    assert shown.said() == ["container/web  image booting the image once"]
    shown.show("Boot", status={"steps": [{"name": "image", "state": "done", "detail": "41.0 s"}]})
    assert shown.said() == ["container/web  image ✓ 41.0 s"]


def test_on_a_narrow_terminal_what_is_done_gives_way_to_what_goes_on_and_for_how_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = Shown(Terminal())
    done = [{"name": name, "state": "done", "detail": "125 ms"} for name in ("image", "disk", "network")]
    shown.now = 2.5
    shown.show("Boot", status={"steps": [*done, {"name": "boot", "state": "running"}]})
    line = shown.said()[-1].rpartition("\x1b[J")[2]
    assert line.startswith("container/web  Boot ") and line.endswith("  2.5 s") and " boot " in line and len(line) < 60
    monkeypatch.setenv("COLUMNS", "30")
    shown.progress.tick()
    line = shown.said()[-1].rpartition("\x1b[J")[2]
    assert line.startswith("container/web  Boo") and line.endswith("  2.5 s") and len(line) < 30


def test_one_that_is_deleted_where_its_node_is_out_of_reach_is_not_said_to_be_killed_soon() -> None:
    shown = Shown()
    message = "node n1 sends no heartbeat; the workload is removed there when the node returns"
    away = {"reason": "nodeAutonomous", "message": message}
    shown.show("Shutdown", deleting_since=1.0, status=away)
    shown.now = 9.0
    shown.progress.tick()
    assert shown.said() == [f"container/web  Deleting: {message}"]
