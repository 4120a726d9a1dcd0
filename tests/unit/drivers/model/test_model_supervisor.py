"""Which models a process is to run, and when it counts as hung: in virtual time, and once with processes that only pretend."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from weft.contracts.clock import SystemClock
from weft.contracts.edge.model_runner import ModelFile
from weft.drivers.model.process import RunnerProcess
from weft.drivers.model.supervisor import ModelSupervisor

HANG_SECONDS = 5.0
PRETENDER = """
import json, socket, sys, time

connection = socket.socket(fileno=int(sys.argv[1]))
file = connection.makefile("rb")

def say(**stage):
    body = json.dumps({"type": "stage", **stage}).encode()
    connection.sendall(len(body).to_bytes(4, "big") + body)

for one in json.loads(file.read(int.from_bytes(file.read(4), "big")))["models"]:
    say(uid=one["uid"])
    if one["uid"] == "hangs":
        time.sleep(600)
    say(uid=one["uid"], done=True)
say()
file.read()
"""


class _Clock(SystemClock):
    at = 0.0

    def elapsed(self) -> float:
        return self.at


class _Heard:
    def __init__(self) -> None:
        self.running: list[Mapping[str, str]] = []

    def note_answer(self, number: int, value: float | None, problem: str) -> None: ...

    def note_lost(self, numbers: Sequence[int]) -> None: ...

    def note_running(self, versions: Mapping[str, str]) -> None:
        self.running.append(versions)

    def note_problems(self, problems: Mapping[str, str]) -> None: ...


def make_file(letter: str) -> ModelFile:
    return ModelFile(letter * 64, 1, path=f"/nowhere/{letter}")


async def test_a_slow_model_that_goes_on_answering_does_not_hang_and_one_that_stops_does() -> None:
    clock, heard = _Clock(), _Heard()
    supervisor = ModelSupervisor(lambda _: ["false"], clock, hang_seconds=HANG_SECONDS)
    process = RunnerProcess(clock, heard.note_answer, lambda: None)
    supervisor._process = process
    process.waiting.extend((number, "m", 0.0) for number in range(20))
    for _ in range(10):
        clock.at += HANG_SECONDS - 1
        process.data_received(_frame(process.waiting[0][0]))
        await supervisor._watch(heard)
    assert heard.running == [] and len(process.waiting) == 10
    clock.at += HANG_SECONDS + 1
    await supervisor._watch(heard)
    assert "it hung for 5 s" in supervisor._trouble["m", ""].words


def _frame(number: int) -> bytes:
    body = b'{"type":"answer","n":%d,"y":1.0}' % number
    return len(body).to_bytes(4, "big") + body


async def test_what_there_was_no_memory_for_is_tried_again_when_others_are_wanted_but_a_bad_file_is_not() -> None:
    supervisor = ModelSupervisor(lambda _: ["false"], _Clock())
    large, bad, good = make_file("a"), make_file("b"), make_file("c")
    supervisor.put({"large": large, "bad": bad, "good": good})
    supervisor._refused["bad", bad.version] = "onnxruntime can't load it"
    supervisor._crowded["large", large.version] = "more than 256 MiB together"
    assert supervisor._plan(0.0) == {"good": good}
    assert supervisor._list_problems()["large"] == "more than 256 MiB together"
    supervisor.put({"large": large, "bad": bad})
    assert supervisor._plan(0.0) == {"large": large}


async def test_a_model_that_hangs_as_it_is_loaded_holds_up_no_other_after_a_start(tmp_path: Path) -> None:
    heard, files = _Heard(), {}
    for uid in ("hangs", "works"):
        path = tmp_path / uid
        path.touch()
        files[uid] = ModelFile(uid, 1, path=str(path))
    supervisor = ModelSupervisor(
        lambda descriptor: [sys.executable, "-c", PRETENDER, str(descriptor)], SystemClock(), slow_seconds=1.0
    )
    supervisor.put(files)
    task = asyncio.create_task(supervisor.keep(heard))
    try:
        async with asyncio.timeout(50):  # less than a model may take to load
            while not heard.running or "works" not in heard.running[-1]:
                await asyncio.sleep(0.02)
        first = supervisor.pid
        async with asyncio.timeout(50):
            while supervisor.starts < 3:  # and then the slow one is tried, beside it
                await asyncio.sleep(0.02)
        assert supervisor.pid == first and supervisor.ask(1, "works", [0.0])
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
