"""Models in the process that the gateway gives them, with the real onnxruntime: what it loads and refuses, and what becomes of one
that hangs, dies, or is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.onnx_files import INT64, data, digest, endless, linear, logarithm, model, node, number, value

from weft.contracts.clock import SystemClock
from weft.contracts.edge.model_runner import ModelFile
from weft.drivers.device.fake.driver import FakeDriver
from weft.drivers.model.supervisor import ModelSupervisor
from weft.edge.device.model import Device, Model, Property
from weft.edge.device.store import TwinStore
from weft.edge.gateway import DeviceGateway
from weft.edge.model.engine import DecisionModel, DecisionOutcome, Fallback
from weft.launch.edge.models import make_model_command

DOUBLE = linear([2.0], 1.0)


class RecordedAnswers:
    """A record of the runner's answers."""

    def __init__(self) -> None:
        self.answers: dict[int, tuple[float | None, str]] = {}
        self.running: list[dict[str, str]] = []
        self.problems: dict[str, str] = {}
        self.lost: list[int] = []

    def note_answer(self, number: int, value: float | None, problem: str) -> None:
        assert number not in self.answers
        self.answers[number] = value, problem

    def note_lost(self, numbers: Sequence[int]) -> None:
        self.lost += numbers

    def note_running(self, versions: Mapping[str, str]) -> None:
        self.running.append(dict(versions))

    def note_problems(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(90):
        while not holds():
            await asyncio.sleep(0.01)


class Place:
    """A folder of files, and a runner."""

    def __init__(self, folder: Path, *, hang_seconds: float = 30.0) -> None:
        self.folder, self.heard = folder, RecordedAnswers()
        self.supervisor = ModelSupervisor(make_model_command, SystemClock(), hang_seconds=hang_seconds)
        self._numbers = itertools.count(1)

    def make(self, content: bytes, inputs: int = 1, output: str = "", index: int = 0) -> ModelFile:
        path = self.folder / digest(content)
        path.write_bytes(content)
        return ModelFile(digest(content), inputs, output, index, str(path))

    def runs(self, **files: ModelFile) -> bool:
        return bool(self.heard.running) and self.heard.running[-1] == {uid: one.version for uid, one in files.items()}

    def ask(self, uid: str, *inputs: float) -> int:
        number = next(self._numbers)
        assert self.supervisor.ask(number, uid, inputs)
        return number

    async def answer(self, uid: str, *inputs: float) -> tuple[float | None, str]:
        number = self.ask(uid, *inputs)
        await until(lambda: number in self.heard.answers)
        return self.heard.answers[number]


@asynccontextmanager
async def placed(folder: Path, *, hang_seconds: float = 30.0) -> AsyncIterator[Place]:
    place = Place(folder, hang_seconds=hang_seconds)
    task = asyncio.create_task(place.supervisor.keep(place.heard))
    try:
        yield place
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def huge() -> bytes:
    """Its one answer has 2³⁴ numbers."""
    size = number(1, 1) + number(2, INT64) + data(8, "s") + data(9, (1 << 34).to_bytes(8, "little"))
    nodes = [node("ConstantOfShape", ["s"], ["c"]), node("Add", ["c", "x"], ["y"])]
    return model(nodes, [size], [value("x", [1])], [value("y", ["n"])])


def unknown_operator() -> bytes:
    return model([node("ReadFile", ["x"], ["y"])], [], [value("x", [1, 1])], [value("y", [1, 1])])


def two_inputs() -> bytes:
    return model([node("Add", ["x", "z"], ["y"])], [], [value("x", [1]), value("z", [1])], [value("y", [1])])


async def test_models_answer_by_number_and_what_cannot_be_loaded_is_named_and_keeps_nobody_from_running(
    tmp_path: Path,
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(DOUBLE[:-1])
    async with placed(tmp_path) as place:
        files = {
            "good": place.make(DOUBLE),
            "wide": place.make(linear([1.0, 2.0, 3.0], rows=1, sigmoid=True), 3),
            "log": place.make(logarithm()),
            "huge": place.make(huge()),
            "narrow": place.make(linear([1.0, 2.0]), 3),
            "other": ModelFile(digest(DOUBLE), 1, "nope", 0, place.make(DOUBLE).path),
            "beyond": place.make(linear([5.0]), 1, "", 7),
            "spoilt": ModelFile(digest(DOUBLE), 1, "", 0, str(wrong)),
            "gone": ModelFile("0" * 64, 1, "", 0, str(tmp_path / "nothing")),
            "none": place.make(b"not a model"),
            "operator": place.make(unknown_operator()),
            "two": place.make(two_inputs(), 2),
        }
        place.supervisor.put(files)
        await until(lambda: place.heard.running)
        assert place.heard.running == [{uid: files[uid].version for uid in ("good", "wide", "log", "huge", "beyond")}]
        assert await place.answer("good", 3.0) == (7.0, "")
        assert await place.answer("wide", 0.0, 0.0, 0.0) == (0.5, "")
        assert (await place.answer("log", -1.0))[0] is None
        assert (await place.answer("good", float("inf")))[0] is None
        assert "1 numbers" in (await place.answer("beyond", 1.0))[1]
        assert (await place.answer("huge", 1.0))[0] is None
        assert await place.answer("log", 1.0) == (0.0, "")
        await until(lambda: place.heard.problems)
        problems = place.heard.problems
        for uid, words in (
            ("narrow", "3 inputs are named"),
            ("other", "no output 'nope'"),
            ("spoilt", "digest"),
            ("gone", "No such file"),
            ("none", "not an ONNX model"),
            ("operator", "can't load it"),
            ("two", "one input"),
        ):
            assert words in problems.pop(uid), uid
        assert (problems, place.supervisor.starts) == ({}, 1)


async def test_the_process_has_no_file_no_socket_no_rights_and_little_memory(tmp_path: Path) -> None:
    async with placed(tmp_path) as place:
        place.supervisor.put({"good": place.make(DOUBLE)})
        await until(lambda: place.heard.running)
        pid = place.supervisor.pid
        limits = Path(f"/proc/{pid}/limits").read_text()
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        opened = {int(one) for one in os.listdir(f"/proc/{pid}/fd")}
        assert opened == {0, 1, 2, 3}  # the gateway, nothing, errors, the model; and no other can be opened
        assert "Max open files            0 " in limits
        assert "Max address space         1073741824 " in limits
        assert "Max processes             0 " in limits
        assert status["NoNewPrivs"] == "1"
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
        if os.geteuid() == 0:
            assert int(status["Uid"].split()[0]) >= 0x7840_0000
            assert int(status["CapEff"], 16) == 0


async def test_one_that_hangs_is_killed_and_left_out_while_the_others_go_on(tmp_path: Path) -> None:
    async with placed(tmp_path, hang_seconds=1.0) as place:
        files = {"good": place.make(DOUBLE), "endless": place.make(endless())}
        place.supervisor.put(files)
        await until(lambda: place.runs(**files))
        assert await place.answer("endless", -1.0) == (-1.0, "")
        place.ask("endless", 1.0)
        await until(lambda: place.heard.running[-1] == {"good": files["good"].version})
        assert {} in place.heard.running
        await until(lambda: "hung" in place.heard.problems.get("endless", ""))
        assert await place.answer("good", 1.0) == (3.0, "")
        await until(lambda: place.runs(**files))  # it is tried again after a pause
        assert await place.answer("good", 2.0) == (5.0, "")


async def test_a_process_that_is_killed_is_started_again(tmp_path: Path) -> None:
    async with placed(tmp_path) as place:
        files = {"good": place.make(DOUBLE)}
        place.supervisor.put(files)
        await until(lambda: place.runs(**files))
        os.kill(place.supervisor.pid, signal.SIGKILL)
        await until(lambda: {} in place.heard.running)
        await until(lambda: place.runs(**files))
        assert await place.answer("good", 1.0) == (3.0, "")
        assert place.supervisor.starts == 2


async def test_another_version_takes_over_when_it_is_ready_and_a_bad_one_never_does(tmp_path: Path) -> None:
    async with placed(tmp_path) as place:
        old, new, bad = place.make(DOUBLE), place.make(linear([10.0])), place.make(unknown_operator())
        place.supervisor.put({"m": old})
        await until(lambda: place.runs(m=old))
        place.supervisor.put({"m": new})
        asked = []
        while not place.runs(m=new):
            asked.append(place.ask("m", 1.0))
            await asyncio.sleep(0.01)
        last = place.ask("m", 1.0)
        await until(lambda: last in place.heard.answers)
        await until(lambda: all(one in place.heard.answers for one in asked))
        assert {place.heard.answers[one] for one in asked} <= {(3.0, ""), (10.0, "")}
        assert place.heard.answers[asked[0]] == (3.0, "")
        assert place.heard.answers[last] == (10.0, "")
        place.supervisor.put({"m": bad})
        await until(lambda: "m" in place.heard.problems)
        assert await place.answer("m", 2.0) == (20.0, "")
        assert place.heard.running == [{"m": old.version}, {"m": new.version}]
        place.supervisor.put({})
        await until(lambda: place.heard.running[-1] == {})
        assert place.supervisor.pid == 0


async def test_what_a_replaced_process_leaves_unanswered_is_told_as_lost(tmp_path: Path) -> None:
    async with placed(tmp_path, hang_seconds=60.0) as place:
        hanging, good = place.make(endless()), place.make(DOUBLE)
        place.supervisor.put({"m": hanging})
        await until(lambda: place.runs(m=hanging))
        asked = [place.ask("m", 1.0), place.ask("m", 2.0)]
        place.supervisor.put({"m": good})
        await until(lambda: place.runs(m=good))
        await until(lambda: place.heard.lost == asked)
        assert await place.answer("m", 1.0) == (3.0, "")


# A process that ends as it loads "bad", and answers another question than the one that it was asked about 1.
STRANGE = """
import os, socket, sys
from weft.drivers.model.messages import ModelAnswer, Stage, frame, read_from_gateway
line = socket.socket(fileno=int(sys.argv[1])).makefile("rwb", 0)
def take():
    size = line.read(4)
    return read_from_gateway(line.read(int.from_bytes(size, "big"))) if size else os._exit(0)
for one in take().models:
    line.write(frame(Stage(one.uid)))
    if one.uid == "bad":
        os._exit(9)
    line.write(frame(Stage(one.uid, done=True)))
line.write(frame(Stage()))
while True:
    ask = take()
    line.write(frame(ModelAnswer(ask.n + (ask.x == [1.0]), 7.0)))
"""


async def test_one_that_ends_the_process_as_it_loads_is_left_out_and_a_process_that_lies_is_ended(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    place.supervisor = ModelSupervisor(lambda fd: [sys.executable, "-c", STRANGE, str(fd)], SystemClock())
    task = asyncio.create_task(place.supervisor.keep(place.heard))
    try:
        files = {"good": place.make(DOUBLE), "bad": place.make(linear([3.0]))}
        place.supervisor.put(files)
        await until(lambda: place.runs(good=files["good"]))
        await until(lambda: "as it was loaded (exit code 9)" in place.heard.problems.get("bad", ""))
        assert await place.answer("good", 2.0) == (7.0, "")
        lie = place.ask("good", 1.0)
        await until(lambda: {} in place.heard.running)
        assert not place.heard.answers.keys() & {lie, lie + 1}
        await until(lambda: place.runs(good=files["good"]))
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


PROPERTIES = {"t": Property(), "h": Property(), "fan": Property(type="boolean"), "level": Property(type="integer")}


async def test_a_model_decides_for_a_device_and_its_fallback_while_the_process_is_dead(tmp_path: Path) -> None:
    clock, driver, store = SystemClock(), FakeDriver(SystemClock()), TwinStore(tmp_path)
    supervisor = ModelSupervisor(make_model_command, clock)
    gateway = DeviceGateway({"fake": driver}, store, clock, runner=supervisor)
    task = asyncio.create_task(gateway.run())
    try:
        await until(lambda: "fake" in gateway.lines)
        path = tmp_path / "m.onnx"
        path.write_bytes(linear([1.0, 1.0], -10.0))
        file = ModelFile(digest(path.read_bytes()), 2, "", 0, str(path))
        device = Device("u1", "default", "cold-1", "cold", "fake")
        await gateway.put_devices({"u1": device}, {("default", "cold"): Model(PROPERTIES)})
        by_fan, by_level = DecisionOutcome(set="fan", threshold=0.0), DecisionOutcome(set="level")
        fallback = Fallback(when="t > 100")
        models = {
            "m": (DecisionModel("m", "default", "frost", file, ("t", "h"), by_fan, fallback, 60.0), ["u1"]),
            "n": (DecisionModel("n", "default", "level", file, ("t", "h"), by_level, Fallback(), 60.0), ["u1"]),
        }
        gateway.put_models(models)
        twin = gateway.twins["u1"]
        driver.report("u1", {"t": 8, "h": 5.2})
        await until(lambda: twin.reported.get("fan") is True and twin.reported.get("level") == 3)
        tries = len(twin.ended)
        driver.report("u1", {"h": 6})  # it is on already
        await until(lambda: twin.reported.get("level") == 4)
        assert [one.name for one in twin.ended[tries:]] == ["level"]
        ran = {one.uid: one for one in gateway.models.list_ran(clock.elapsed())}
        assert (ran["m"].file, ran["m"].problem) == (file.sha256, "")
        assert ran["m"].p99_ms is not None
        gateway.put_models({})
        await until(lambda: not supervisor.pid)
        gateway.put_models(models)
        driver.report("u1", {"t": 9})
        assert gateway.models.ran["m"].dead == 1  # and again when the fan is off
        await until(lambda: twin.reported.get("fan") is False)  # as the condition says
        await until(lambda: supervisor.pid)
        await until(lambda: twin.reported.get("fan") is True)
        await gateway.save()
        assert store.load_ran()["m"].dead >= 1
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        store.close()


async def test_without_the_package_each_model_says_so_and_nothing_is_started(tmp_path: Path) -> None:
    heard = RecordedAnswers()
    supervisor = ModelSupervisor(lambda _: ["false"], SystemClock(), find_missing=lambda: "no onnxruntime")
    task = asyncio.create_task(supervisor.keep(heard))
    supervisor.put({"m": ModelFile("a" * 64, 1, path=str(tmp_path / "m"))})
    await until(lambda: heard.problems)
    assert (heard.problems, supervisor.starts) == ({"m": "no onnxruntime"}, 0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
