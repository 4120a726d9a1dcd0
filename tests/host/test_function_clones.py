"""Functions in machines that are copied, for real: what is fresh in a copy, how it ends, and what becomes of a damaged template."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from function_lab import PLACE, FunctionLab

from weft.agent.function.pool import FreeCapacity
from weft.contracts.driver.function import Recipe, Roots
from weft.drivers.runtime.qemu.function import clone
from weft.drivers.runtime.qemu.function.disks import CODE
from weft.drivers.runtime.qemu.function.driver import SnapshotInstances
from weft.objects.errors import DriverFailed
from weft.protocol.invocations import Count, InvocationRefused, Keep

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None, reason="needs root and QEMU with its guests"
    ),
]
PATIENCE = 180.0  # a template is a boot of an emulated machine

FRESH = """
import os, random, socket, ssl, tempfile, threading, time, uuid
calls, ticks = 0, []
def tick():
    while True:
        ticks.append(time.time())
        time.sleep(0.01)
threading.Thread(target=tick, daemon=True).start()
while len(ticks) < 12:
    time.sleep(0.001)
def handler(event, context):
    global calls
    calls += 1
    print("." * 200_000)
    print("called", calls)
    return {"calls": calls, "host": socket.gethostname(), "rand": random.random(), "uuid": str(uuid.uuid4()),
            "urandom": os.urandom(8).hex(), "ssl": ssl.RAND_bytes(8).hex(), "temp": tempfile.mktemp(),
            "time": time.time(), "ticks": ticks, "left": context.get_remaining_time_in_millis()}
"""
BAD = """
import os, socket, time
calls = 0
def handler(event, context):
    global calls
    calls += 1
    if event == "count":
        return calls
    if event == "exit":
        os._exit(3)
    if event == "hang":
        while True:
            pass
    if event == "eat":
        eaten = [bytearray(1 << 20) for _ in range(1000)]
    if event == "sleep":
        time.sleep(30)
    if event == "rave":
        for number in range(30):
            with socket.socket() as s:
                s.settimeout(0.1)
                try:
                    s.connect(("169.254.100.1", 9000))
                    s.sendall(os.urandom(200) + b"x\\x18\\0\\0\\0" + bytes(24) + b"o\\0\\0\\0\\0" * 500)
                except OSError:
                    pass
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for number in range(1500):
                try:
                    s.sendto(os.urandom(24) if number % 2 else b"D" + bytes(23), ("169.254.100.1", 9000))
                except OSError:
                    pass
    if isinstance(event, list):
        reached = []
        for address, port in event:
            with socket.socket() as s:
                s.settimeout(0.5)
                try:
                    s.connect((address, port))
                    reached.append([address, port])
                except OSError:
                    pass
        return reached
    return "fine"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The node's state: the base is unpacked once for all tests, and what QEMU can do is looked at once."""
    return tmp_path_factory.mktemp("clones")


@pytest_asyncio.fixture
async def lab(folder: Path) -> AsyncIterator[FunctionLab]:
    lab, known = FunctionLab(folder, SnapshotInstances), folder / "probe.json"
    if known.exists():
        shutil.copy(known, lab.run_dir)
    await lab.open()
    try:
        yield lab
    finally:
        await lab.close()
        shutil.copy(lab.run_dir / known.name, known)
        assert machines(lab) == []
        shutil.rmtree(lab.run_dir)


def driver_of(lab: FunctionLab) -> SnapshotInstances:
    assert isinstance(lab.driver, SnapshotInstances)
    return lab.driver


def machines(lab: FunctionLab) -> list[int]:
    """QEMUs of this lab's node."""
    prefix, found = driver_of(lab)._prefix.encode(), []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"qemu-system-x86_64") and any(word.startswith(prefix) for word in words):
            found.append(int(path.parent.name))
    return found


def bad_recipe(lab: FunctionLab) -> Recipe:
    """BAD, whose handler ran twice before it was copied."""
    return lab.same_recipe(BAD, warm_calls=2)


async def prepare(lab: FunctionLab, recipe: Recipe) -> None:
    async with asyncio.timeout(PATIENCE):
        await driver_of(lab).prepare(recipe, await lab.parts.ensure(recipe, lambda word: None))


async def say(lab: FunctionLab, recipe: Recipe, event: Any = None) -> Any:
    answer = await lab.answer(lab.ask(recipe, event, seconds=20.0), PATIENCE)
    assert answer.error == "", answer
    return json.loads(answer.payload)


async def test_copies_share_nothing_that_should_be_their_own(lab: FunctionLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clone, "FLUSH_SECONDS", PATIENCE)  # what it prints on a busy machine is asked for below
    recipe = lab.same_recipe(FRESH)
    await prepare(lab, recipe)
    began = time.time()
    asked = [lab.ask(recipe, n, seconds=20.0) for n in range(4)]
    answers = [await lab.answer(id, PATIENCE) for id in asked]
    assert {answer.start for answer in answers} == {"clone"}, answers
    said = [json.loads(answer.payload) for answer in answers]
    for what in ("host", "rand", "uuid", "urandom", "ssl", "temp"):
        assert len({one[what] for one in said}) == len(said), what
    assert all(began < one["time"] < time.time() for one in said)
    assert all(one["calls"] == 1 for one in said), "the handler ran before it was asked"
    assert all(b"called 1\n" in answer.tail for answer in answers), [answer.tail for answer in answers]
    assert all(b"practice" not in answer.tail for answer in answers)
    before = [[tick for tick in one["ticks"] if tick < began] for one in said]
    assert len(before[0]) >= 10
    assert all(one == before[0] for one in before), "some of its code ran with the clock of the template"


async def test_a_copy_that_slept_wakes_with_the_clock_right(lab: FunctionLab) -> None:
    recipe = lab.same_recipe(FRESH)
    await prepare(lab, recipe)
    first = await say(lab, recipe)
    await lab.until(lambda: all(member.paused for member in lab.functions.instances.pool.members.values()))
    await asyncio.sleep(1.5)
    began = time.time()
    second = await say(lab, recipe)
    assert (second["host"], second["calls"]) == (first["host"], 2)
    assert began - 0.001 < second["time"] < time.time()
    slept = [tick for tick in second["ticks"] if first["time"] + 0.6 < tick < began]
    assert slept == [], "it ran while it was asleep, or with the wrong clock"


async def test_the_pool_gives_copies_that_are_as_fresh(lab: FunctionLab) -> None:
    recipe = lab.same_recipe(FRESH)
    await prepare(lab, recipe)
    lab.functions.take(Keep(recipe.digest, 60.0, 2), PLACE)
    ready = driver_of(lab)._ready
    await lab.until(lambda: len(ready.get(recipe.digest, [])) == 2, PATIENCE)
    await asyncio.sleep(0.2)  # while their clocks stand still
    began = time.time()
    asked = [lab.ask(recipe, n, seconds=20.0) for n in range(2)]
    answers = [await lab.answer(id, PATIENCE) for id in asked]
    assert [answer.start for answer in answers] == ["pool", "pool"]
    said = [json.loads(answer.payload) for answer in answers]
    for what in ("host", "rand", "uuid", "urandom", "ssl", "temp"):
        assert said[0][what] != said[1][what], what
    assert all(began - 0.001 < one["time"] < time.time() and one["calls"] == 1 for one in said)
    assert all(b"practice" not in answer.tail for answer in answers)
    await lab.until(lambda: len(ready.get(recipe.digest, [])) == 2, PATIENCE)  # made up for
    await lab.until(lambda: lab.standing().counts[recipe.digest].ready == 2)
    assert lab.standing().ready_memory > 0
    whole, lab.free_capacity = (
        lab.free_capacity,
        FreeCapacity(16.0, 32 << 20),
    )  # allocations take the rest: nothing of it is left to copies that wait
    lab.functions.on_capacity()
    await lab.until(lambda: recipe.digest not in lab.standing().counts, PATIENCE)
    assert lab.standing().ready_memory == 0
    lab.free_capacity = whole
    lab.functions.on_capacity()
    await lab.until(lambda: lab.standing().counts.get(recipe.digest, Count()).ready == 2, PATIENCE)
    lab.functions.take(Keep(recipe.digest, 60.0, 0), PLACE)
    await lab.until(lambda: ready.get(recipe.digest) == [], PATIENCE)


@pytest.mark.long
async def test_the_handler_is_warmed_only_if_that_is_asked_for(lab: FunctionLab) -> None:
    recipe = bad_recipe(lab)
    await prepare(lab, recipe)
    assert await say(lab, recipe, "count") == 3


@pytest.mark.long  # test_function_bad_code.py shows it of a process
@pytest.mark.parametrize(
    ("code", "reason", "word"),
    [
        ("import nothing_of_this_name\n", "Runtime.ImportModuleError", "nothing_of_this_name"),
        ("def handler(\n", "Runtime.UserCodeSyntaxError", "Syntax error"),
        ("import os; print('going'); os._exit(7)\n", "Runtime.ExitError", "exit code 7"),
        ("x = [bytearray(1 << 20) for _ in range(900)]\n", "Function.OutOfMemory", "128 MiB"),
    ],
)
async def test_code_that_does_not_come_up_is_told_with_its_own_words(
    lab: FunctionLab, code: str, reason: str, word: str
) -> None:
    recipe = lab.recipe({"app.py": code})
    with pytest.raises(DriverFailed) as told:
        await prepare(lab, recipe)
    assert told.value.token == reason
    assert word in told.value.message
    if reason.startswith("Runtime.Import"):
        assert json.loads(told.value.details["error"])["errorType"] == reason
    assert machines(lab) == []
    assert not driver_of(lab)._templates.folder(recipe.digest).exists()  # type: ignore[union-attr]


async def test_bad_ends_are_told_and_nothing_is_left_of_them(lab: FunctionLab) -> None:
    recipe = bad_recipe(lab)
    await prepare(lab, recipe)
    exited = await lab.answer(lab.ask(recipe, "exit", seconds=20.0), PATIENCE)
    assert (exited.error_type, b"status 3" in exited.payload) == ("Runtime.ExitError", True)
    hung = await lab.answer(lab.ask(recipe, "hang", seconds=2.0), PATIENCE)
    assert hung.error_type == "Function.TimedOut"
    ate = await lab.answer(lab.ask(recipe, "eat", seconds=20.0), PATIENCE)
    assert ate.error_type == "Function.OutOfMemory", ate
    asked = lab.ask(recipe, "sleep", seconds=40.0)
    await lab.until(
        lambda: len(machines(lab)) == 1 and any(r.begun for r in lab.functions.instances.running.values()), PATIENCE
    )
    os.kill(machines(lab)[0], signal.SIGKILL)
    assert (await lab.answer(asked, PATIENCE)).error_type == "Runtime.ExitError"
    assert await say(lab, recipe) == "fine"


async def test_a_copy_reaches_nothing_but_its_own_two_ports_and_its_qemu_has_no_rights(lab: FunctionLab) -> None:
    recipe = bad_recipe(lab)
    await prepare(lab, recipe)
    with socket.create_server(("0.0.0.0", 0)) as door:
        port = door.getsockname()[1]
        targets = [["169.254.100.1", 9001], ["169.254.100.1", port], ["169.254.169.254", 80], ["127.0.0.1", port]]
        targets += [["10.0.0.1", port], ["192.168.0.1", port]]
        assert await say(lab, recipe, targets) == [["169.254.100.1", 9001]]
    assert await say(lab, recipe, "rave") == "fine"  # at its own program's door, which isn't the function's
    assert await say(lab, recipe) == "fine"
    (pid,) = machines(lab)
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert int(status["Uid"].split()[0]) >= 20_000
    assert (status["CapEff"], status["CapBnd"], status["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    assert status["Seccomp"] == "2"
    groups = Path(f"/proc/{pid}/cgroup").read_text()
    assert groups.count(lab.host.cgroup) >= 1


@pytest.mark.long
@pytest.mark.parametrize("file", ["RAM", "STATE", "template.json"])
async def test_a_damaged_template_is_made_again(lab: FunctionLab, file: str) -> None:
    recipe = bad_recipe(lab)
    await prepare(lab, recipe)
    path = driver_of(lab)._templates.folder(recipe.digest) / file  # type: ignore[union-attr]
    path.chmod(0o644)
    with open(path, "r+b") as out:
        out.seek(8192 if file == "RAM" else 20)
        out.write(b"damage")
    answer = await lab.answer(lab.ask(recipe, seconds=20.0), PATIENCE)
    assert (answer.error, answer.start) == ("", "cold"), answer


@pytest.mark.long
async def test_a_disk_that_was_made_again_is_not_put_under_an_older_template(lab: FunctionLab) -> None:
    recipe = bad_recipe(lab)
    await prepare(lab, recipe)
    templates, roots = driver_of(lab)._templates, await lab.parts.ensure(recipe, lambda word: None)
    assert templates is not None
    template = await templates.find(recipe, roots)
    assert template is not None
    code = templates.disks.path(template.disks[1])
    code.chmod(0o644)
    with open(code, "r+b") as out:
        out.seek(1024 + 0x68)  # the file system's own id
        out.write(os.urandom(16))
    assert await templates.find(recipe, roots) is None
    await templates.disks.ensure(code.stem, [roots.code], CODE)
    assert await templates.find(recipe, roots) is None
    answer = await lab.answer(lab.ask(recipe, seconds=20.0), PATIENCE)
    assert (answer.error, answer.start) == ("", "cold"), answer


@pytest.mark.long
async def test_where_the_clock_rate_is_not_known_it_is_another_machine(lab: FunctionLab) -> None:
    driver = driver_of(lab)
    recipe = lab.recipe({"app.py": FRESH})
    templates = await driver._working()
    templates._facts = msgspec.structs.replace(templates._facts, tsc_khz=0)
    template, made = await templates.ensure(recipe, await lab.parts.ensure(recipe, lambda word: None))
    assert (template.machine.machine, made) == ("q35", True)
    said = [await say(lab, recipe), await say(lab, recipe)]
    assert [one["calls"] for one in said] == [1, 2]
    assert abs(said[0]["time"] - time.time()) < 2.0


async def test_a_full_disk_is_told_and_leaves_nothing(lab: FunctionLab) -> None:
    recipe = bad_recipe(lab)
    place = lab.folder / "functions" / "templates"
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(place)], check=True)
    try:
        with pytest.raises(DriverFailed) as told:
            await prepare(lab, recipe)
        assert told.value.token == "noSpace"
        assert list(place.iterdir()) == []
        assert machines(lab) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)
    await prepare(lab, recipe)


ORPHANS = """
import asyncio, os, sys
import msgspec
from weft.contracts.driver.function import Recipe, Roots
from weft.contracts.driver.host import Host
from weft.drivers.runtime.qemu.function.driver import SnapshotInstances
async def main():
    host, recipe, roots = msgspec.json.decode(sys.argv[1], type=tuple[Host, Recipe, Roots])
    driver = SnapshotInstances(host)
    await driver.keep_ready(recipe, roots, 1)
    await driver.start("left", recipe, roots)
    await driver.start("behind", recipe, roots)
    print("started", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_what_a_killed_agent_left_is_ended_and_its_templates_are_used(lab: FunctionLab) -> None:
    recipe = bad_recipe(lab)
    await prepare(lab, recipe)
    roots = await lab.parts.ensure(recipe, lambda word: None)
    told = msgspec.json.encode((lab.host, recipe, roots)).decode()
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", ORPHANS, told, stdout=asyncio.subprocess.PIPE)
    assert agent.stdout is not None
    async with asyncio.timeout(PATIENCE):
        assert await agent.stdout.readline() == b"started\n"
    agent.kill()
    await agent.wait()
    left = len(machines(lab))
    assert left >= 2
    made = (driver_of(lab)._templates.folder(recipe.digest) / "RAM").stat().st_ino  # type: ignore[union-attr]
    after = SnapshotInstances(lab.host)
    assert await after.recover() >= left  # one more, where it was still about to become a QEMU
    assert machines(lab) == []
    assert recipe.digest in after.templates(), "it is there before anybody names it"
    assert after._cgroups.names(after._prefix) == set()
    clone = await after.start("next", recipe, roots)
    assert clone.started == "clone"
    await after.close()
    assert (after._templates.folder(recipe.digest) / "RAM").stat().st_ino == made  # type: ignore[union-attr]


async def test_a_refused_invocation_is_not_begun(lab: FunctionLab) -> None:
    recipe = lab.recipe({"app.py": BAD}, memory=8 << 30)
    id = lab.ask(recipe)
    refused = await lab.wait_for(lambda one: isinstance(one, InvocationRefused) and one.id == id)
    assert isinstance(refused, InvocationRefused) and refused.reason == "insufficientResources"
    assert machines(lab) == []


BOOTSTRAP = """#!/usr/bin/python3.11
import http.client, os
line = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
while True:
    line.request("GET", "/2018-06-01/runtime/invocation/next")
    call = line.getresponse()
    call.read()
    hidden = os.path.exists("/usr/bin/python")
    line.request("POST", f"/2018-06-01/runtime/invocation/{call.headers['Lambda-Runtime-Aws-Request-Id']}/response",
                 f'["{os.getuid()}", "{os.getcwd()}", "{os.environ["COLOUR"]}", "{hidden}"]')
    line.getresponse().read()
"""


@pytest.mark.long
async def test_an_image_of_several_layers_runs_with_its_own_runtime_user_and_folder(
    lab: FunctionLab, tmp_path: Path
) -> None:
    """A link of the lower layer is taken away by the upper one."""
    based = bad_recipe(lab)
    base = await lab.parts.ensure(based, lambda word: None)
    upper = tmp_path / "upper"
    (upper / "function").mkdir(parents=True)
    (upper / "function" / "bootstrap").write_text(BOOTSTRAP)
    (upper / "function" / "bootstrap").chmod(0o755)
    (upper / "usr" / "bin").mkdir(parents=True)
    os.mknod(upper / "usr" / "bin" / "python", 0o600 | 0o020000, os.makedev(0, 0))
    recipe = msgspec.structs.replace(based, digest="e" * 64, runtime="", code=None, image="i@sha256:1", handler="")
    roots = Roots(
        [str(upper), *base.root],
        "",
        ["/function/bootstrap"],
        {"COLOUR": "blue"},
        "/function",
        (2000, 2000),
        base.bundle,
    )
    clone = await driver_of(lab).start("image", recipe, roots)
    running = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(
        lambda reader, writer: answer_one(reader, writer, running), sock=clone.runtime_api
    )
    assert json.loads(await asyncio.wait_for(running, PATIENCE)) == ["2000", "/function", "blue", "False"]
    server.close()
    await clone.stop()


async def answer_one(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answered: asyncio.Future[bytes]
) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: 1\r\nContent-Length: 2\r\n\r\n{}")
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    answered.set_result(await reader.readexactly(int(length.partition(b":")[2])))
    writer.close()


async def test_a_template_goes_with_what_it_was_made_from_and_stays_otherwise(lab: FunctionLab) -> None:
    recipe = bad_recipe(lab)
    await prepare(lab, recipe)
    templates, roots = driver_of(lab)._templates, await lab.parts.ensure(recipe, lambda word: None)
    assert templates is not None
    assert await templates.find(recipe, roots) is not None
    facts = templates._facts
    templates._facts = msgspec.structs.replace(facts, version=(99, 0, 0))
    assert await templates.find(recipe, roots) is None
    templates._facts = facts
    folder = templates.folder(recipe.digest)
    await driver_of(lab).forget(recipe.digest)
    assert not folder.exists()
