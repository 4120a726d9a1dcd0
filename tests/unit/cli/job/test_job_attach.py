"""Whoever waits for a job of one task reads what this prints, as it prints it, and nothing else on standard output."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from weft.cli.command.target import Target
from weft.cli.job import attach
from weft.cli.job.attach import TaskOutput, has_one_task
from weft.cli.session import Session
from weft.cli.stream import logs
from weft.cli.verbs import job_run
from weft.cli.verbs.job_run import Attached
from weft.contracts.clock import SystemClock
from weft.kinds.registry import BY_NAME
from weft.objects.errors import Forbidden, IllegalTransition

SUMS = Target(BY_NAME["job"], "sums")


def job(*, array: str = "0", **tries: str) -> dict[str, Any]:
    counted = {count[1:]: indexes for count, indexes in tries.items()}
    return {"kind": "job", "name": "sums", "spec": {"array": array}, "status": {"tasks": 1, "tries": counted}}


@pytest.fixture
def session() -> Session:
    return Session(SystemClock, {"WEFT_SERVER": "https://127.0.0.1:1"})


def put_out(session: Session, *states: dict[str, Any]) -> TaskOutput:
    """All that the job printed, as it went through these states, is put out."""
    output = TaskOutput(session)
    output.release()
    for state in states:
        output.see(state)
    output.end()
    return output


def test_each_try_of_the_task_is_printed_as_it_was_printed_one_after_the_other(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def run(_: Session, target: Target, asked: dict[str, object], write: logs.Write) -> int:
        assert asked["follow"]
        write(1, b"out of " + target.name.encode() + b"\n")
        write(2, b"\x00err")
        return 0

    monkeypatch.setattr(logs, "run_stream", run)
    put_out(session, job(), job(x1="0"), job(x1="0"), job(x2="0"))
    assert capfdbinary.readouterr() == (b"out of sums-0\nout of sums-0-r2\n", b"\x00err\x00err")


def test_what_is_drawn_gives_way_before_the_first_byte_is_put_out(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    written = threading.Event()

    def run(_: Session, target: Target, asked: dict[str, object], write: logs.Write) -> int:
        write(1, b"hello")
        written.set()
        return 0

    monkeypatch.setattr(logs, "run_stream", run)
    output = TaskOutput(session)
    progress = Attached(output, session.clock.elapsed)
    progress.show(SUMS, job(x1="0"))
    assert b"job/sums" in capfdbinary.readouterr().err
    assert output._come.wait(20)
    assert not written.is_set(), "it waits until nothing is drawn any more"
    progress.tick()
    output.end()
    progress.show(SUMS, {**job(x1="0"), "status": {"tasks": 1, "succeeded": 1, "phase": "Running"}})
    assert capfdbinary.readouterr() == (b"hello", b""), "its counts are drawn no more"


def test_a_task_that_never_had_a_place_printed_nothing_and_is_not_waited_for(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(_: Session, target: Target, *__: object) -> int:
        raise IllegalTransition(f"{target.what} has no place yet")

    monkeypatch.setattr(logs, "run_stream", run)
    states = iter([{"status": {"phase": "Pending"}}, {"spec": {"once": True}, "status": {"phase": "Stopped"}}])
    monkeypatch.setattr(session.client, "get", lambda kind, name: next(states))
    output = put_out(session, job(x1="0"))
    assert not output.is_missing
    assert capfd.readouterr() == ("", "")


def test_output_that_somebody_may_not_read_is_told_once_and_the_job_is_waited_for(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(_: Session, target: Target, *__: object) -> int:
        raise Forbidden("this token may not read logs")

    monkeypatch.setattr(logs, "run_stream", run)
    output = put_out(session, job(x1="0"))
    assert output.is_missing
    assert capfd.readouterr().err == "container/sums-0: its output can't be shown: this token may not read logs\n"


def test_a_reader_that_has_seen_enough_ends_the_watching(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: Session, target: Target, *__: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(logs, "run_stream", run)
    output = TaskOutput(session)
    progress = Attached(output, session.clock.elapsed)
    progress.show(SUMS, job(x1="0"))
    with pytest.raises(BrokenPipeError):
        output.end()
    with pytest.raises(BrokenPipeError):
        progress.tick()


def test_who_reads_no_more_is_told_that_the_job_goes_on_and_how_to_end_it(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(_: Session, target: Target, *__: object) -> int:
        raise BrokenPipeError

    def follow(session: Session, waits: object, progress: Attached) -> None:
        progress.show(SUMS, job(x1="0"))
        while not session.client.http.closed.wait(0.01):
            progress.tick()

    monkeypatch.setattr(logs, "run_stream", run)
    monkeypatch.setattr(job_run, "follow", follow)
    with pytest.raises(BrokenPipeError):
        job_run.watch_job(session, SUMS, {**job(), "uid": "u"})
    *_, last = capfd.readouterr().err.splitlines()
    assert last == "output closed; job/sums goes on; see: weft logs job/sums   end: weft delete job/sums"


def test_a_node_that_never_ends_an_ended_task_s_log_is_not_waited_for(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    over = threading.Event()

    def run(_: Session, target: Target, asked: dict[str, object], write: logs.Write) -> int:
        write(1, b"some\n")
        over.wait(60)
        return 0

    monkeypatch.setattr(logs, "run_stream", run)
    monkeypatch.setattr(attach, "PATIENCE_SECONDS", 0.5)
    output = put_out(session, job(x1="0"))
    over.set()
    assert output.is_missing
    assert capfd.readouterr() == ("some\n", "the node doesn't say whether the output is complete\n")


def test_only_what_has_one_task_is_printed_so() -> None:
    assert has_one_task(job())
    assert has_one_task(job(array="7"))
    assert not has_one_task(job(array="0-9"))
    assert not has_one_task({**job(), "spec": {"schedule": "@daily", "array": "0"}})
