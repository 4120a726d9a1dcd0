"""Functions as sandboxed processes and as containers, for real: what a handler gets and gives, how instances come and go."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from function_lab import MIB, PLACE, FunctionLab, open_lab
from tests.long import mark_long

from weft.agent.function.pool import FreeCapacity
from weft.contracts.driver.container import User
from weft.contracts.driver.image import OciConfig, OciImage
from weft.protocol.invocations import Drop, InvocationRefused, Invoke, Keep, Underway

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

HELLO = """
import os, time
def handler(event, context):
    print("said", event)
    return {"n": event["n"] + 1, "id": context.aws_request_id, "left": context.get_remaining_time_in_millis(),
            "pid": os.getpid(), "arn": context.invoked_function_arn, "memory": context.memory_limit_in_mb}
"""


@pytest_asyncio.fixture(params=mark_long(("process", "container"), "container"))
async def lab(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[FunctionLab]:
    async with open_lab(folder, request.param) as lab:
        yield lab


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The node's state: its base is unpacked once for all tests."""
    return tmp_path_factory.mktemp("functions")


async def test_a_handler_is_run_and_its_instance_used_again(lab: FunctionLab) -> None:
    recipe = lab.recipe({"app.py": HELLO})
    id = lab.ask(recipe, {"n": 1})
    first = await lab.answer(id)
    assert (first.error, first.start) == ("", "cold") and first.init_seconds > 0, first
    said = json.loads(first.payload)
    assert (said["n"], said["id"], said["arn"]) == (2, id, "arn:weft:x") and 100 < said["left"] <= 5000
    assert b"said {'n': 1}" in first.tail and first.most_memory > 1 << 20
    second = await lab.invoke(recipe, {"n": 5})
    assert second.start == "warm" and second.init_seconds == 0 and json.loads(second.payload)["n"] == 6
    await asyncio.sleep(0.4)  # asleep by now
    third = await lab.invoke(recipe, {"n": 6})
    assert third.start == "warm" and json.loads(third.payload)["n"] == 7
    assert len(lab.groups()) == 1


BOOTSTRAP = """#!/bin/sh
api="http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime"
while true; do
    wget -q -S -O /tmp/event "$api/invocation/next" 2>/tmp/headers || exit 1
    id=$(sed -n 's/.*Lambda-Runtime-Aws-Request-Id: *//p' /tmp/headers | tr -d '\\r')
    wget -q -O /dev/null --post-data "{\\"from\\":\\"shell\\",\\"event\\":$(cat /tmp/event)}" "$api/invocation/$id/response"
done
"""


async def test_a_runtime_of_ones_own_needs_only_the_runtime_api(lab: FunctionLab) -> None:
    recipe = lab.recipe({"bootstrap": BOOTSTRAP}, runtime="provided")
    for number in range(3):
        answer = await lab.invoke(recipe, {"n": number})
        assert json.loads(answer.payload) == {"from": "shell", "event": {"n": number}}, answer
    assert len(lab.groups()) == 1


async def test_invocations_at_once_each_have_an_instance(lab: FunctionLab) -> None:
    body = (
        "import os, time, socket\ndef handler(event, context):\n    time.sleep(0.5)\n    return socket.gethostname()\n"
    )
    recipe = lab.recipe({"app.py": body}, timeout=20.0, cpu=0.5)
    answers = await asyncio.gather(*(lab.answer(id) for id in [lab.ask(recipe) for _ in range(4)]))
    assert len({answer.payload for answer in answers}) == 4 and all(answer.start == "cold" for answer in answers)
    await lab.until(lambda: lab.idle(recipe) == 4)


async def test_idle_instances_make_room_and_what_lacks_is_named(lab: FunctionLab) -> None:
    body = "import time\ndef handler(event, context):\n    time.sleep(event)\n    return 1\n"
    lab.free_capacity = FreeCapacity(16.0, 300 * MIB)
    lab.functions.on_capacity()
    old, new, third = (lab.recipe({"app.py": body}, timeout=20.0) for _ in range(3))
    assert (await lab.invoke(old, 0)).error == "" and (await lab.invoke(new, 0)).error == ""
    assert len(lab.groups()) == 2
    assert (await lab.invoke(third, 0)).error == ""  # the one unused for longest went
    assert lab.functions.used() and (await lab.invoke(new, 0)).start == "warm"
    await lab.until(lambda: len(lab.groups()) == 2)
    working = [lab.ask(new, 3), lab.ask(third, 3)]
    id = lab.ask(old, 0)
    refused = await lab.wait_for(lambda one: getattr(one, "id", "") == id)
    assert isinstance(refused, InvocationRefused) and refused.reason == "insufficientResources"
    assert "128 MiB of memory are needed, 44 of 300" in refused.message
    assert [(await lab.answer(id)).error for id in working] == ["", ""]


async def test_a_reserved_start_takes_the_room_of_idle_and_busy_instances(lab: FunctionLab) -> None:
    body = "import time\ndef handler(event, context):\n    time.sleep(event)\n    return 1\n"
    idle, busy = (lab.recipe({"app.py": body}, timeout=20.0) for _ in range(2))
    await lab.invoke(idle, 0)
    await lab.invoke(busy, 0)
    id = lab.ask(busy, 10)
    await asyncio.sleep(0.2)
    lab.free_capacity = FreeCapacity(16.0, 200 * MIB)
    lab.functions.on_capacity()
    await lab.until(lambda: len(lab.groups()) == 1)
    lab.free_capacity = FreeCapacity(16.0, 0)
    lab.functions.on_capacity()
    answer = await lab.answer(id, 30.0)
    assert answer.error_type == "Function.Reclaimed"
    await lab.until(lambda: lab.groups() == set())


async def test_idle_instances_go_when_their_time_is_over_and_stand_ready_when_asked(lab: FunctionLab) -> None:
    recipe = lab.recipe({"app.py": "def handler(event, context):\n    return 1\n"})
    prepared = await lab.prepare(recipe)
    assert prepared.error_type == "" and prepared.seconds > 0
    assert (await lab.invoke(recipe)).start == "warm"
    lab.functions.take(Keep(recipe.digest, 0.5, ready=2), PLACE)
    await lab.until(lambda: lab.idle(recipe) == 2)
    await asyncio.sleep(1.0)
    assert len(lab.groups()) == 2
    lab.functions.take(Keep(recipe.digest, 0.5, ready=0), PLACE)
    await lab.until(lambda: lab.groups() == set())
    assert (await lab.invoke(recipe)).start == "cold"
    lab.functions.take(Drop(recipe.digest), PLACE)
    await lab.until(lambda: lab.groups() == set())


async def test_code_that_cant_come_up_isnt_prepared(lab: FunctionLab) -> None:
    prepared = await lab.prepare(lab.recipe({"app.py": "import nosuch\n"}))
    assert prepared.error_type == "Runtime.ImportModuleError" and "nosuch" in prepared.message
    await lab.until(lambda: lab.groups() == set())


async def test_an_answer_outlives_the_connection_and_nothing_runs_twice(lab: FunctionLab) -> None:
    body = "import time\nRUNS = []\ndef handler(event, context):\n    RUNS.append(1)\n    time.sleep(1)\n    return len(RUNS)\n"
    recipe = lab.recipe({"app.py": body})
    await lab.invoke(recipe)
    id = lab.ask(recipe)
    await asyncio.sleep(0.2)
    lab.functions.disconnect(lab.on_message)
    await asyncio.sleep(1.5)
    lab.heard.clear()
    lab.functions.connect(lab.on_message, PLACE)
    assert isinstance(lab.heard[0], Underway) and lab.heard[0].ids == [id]
    lab.functions.take(Invoke(id, recipe.digest, b"null", 5.0), PLACE)  # a gateway that isn't sure asks again
    assert (await lab.answer(id)).payload == b"2"
    assert (await lab.invoke(recipe)).payload == b"3"


async def test_closing_while_instances_come_up_leaves_nothing(lab: FunctionLab) -> None:
    recipe = lab.recipe({"app.py": "def handler(event, context):\n    return 1\n"}, cpu=0.5)
    await lab.prepare(recipe)
    lab.functions.take(Keep(recipe.digest, 60.0, ready=6), PLACE)
    await asyncio.sleep(0.02)  # what is left is looked for when the lab is closed


class TwoLayers:
    """An image of two layers, in place of a registry's: busybox below, a bootstrap above, files that only its root may read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        below, above = folder / "below", folder / "above"
        (below / "bin").mkdir(parents=True)
        (below / "root").mkdir(mode=0o700)
        (below / "root" / "own").write_text("kept")
        shutil.copy("/bin/busybox", below / "bin/busybox")
        for applet in "sh wget sed tr cat id touch".split():
            (below / "bin" / applet).symlink_to("busybox")
        (above / "srv").mkdir(parents=True)
        said = "$(id -u) $(cat /root/own 2>/dev/null) $LAYER"
        (above / "srv" / "run").write_text(BOOTSTRAP.replace("shell", said))
        (above / "srv" / "run").chmod(0o755)

    async def pull(self, reference: str, digest: str = "", **_: object) -> OciImage:
        assert (reference, digest) == ("registry.test/own", "sha256:12")
        config = OciConfig(entrypoint=["/srv/run"], env=["LAYER=two"], workdir="/srv")
        return OciImage(reference, digest, config, ["1", "2"], 0)

    async def find_user(self, image: OciImage, user: str) -> User:
        return User(0, 0)

    def root(self, image: OciImage) -> list[str]:
        return [str(self.folder / "above"), str(self.folder / "below")]


async def test_an_image_of_ones_own_is_its_root(lab: FunctionLab, tmp_path: Path) -> None:
    lab.parts._images = TwoLayers(tmp_path / "image")  # type: ignore[assignment]
    recipe = lab.recipe({}, runtime="", handler="", image="registry.test/own@sha256:12", code=None, base=None)
    answer = await lab.invoke(recipe, 7)
    said = json.loads(answer.payload)
    # A container is root in its own users' range, and so reads what is its root's; a process is one user, and doesn't.
    assert said == {"from": "0 kept two" if lab.isolation == "container" else "1000  two", "event": 7}


async def test_runc_does_as_well(folder: Path) -> None:
    body = "def handler(event, context):\n    kept = [b'x' * (8 << 20) for _ in range(event)]\n    return len(kept)\n"
    async with open_lab(folder, "runc") as lab:
        recipe = lab.recipe({"app.py": body}, timeout=20.0)
        assert (await lab.invoke(recipe, 1)).payload == b"1"
        await asyncio.sleep(0.3)  # asleep by now
        assert (await lab.invoke(recipe, 2)).start == "warm"
        assert (await lab.invoke(recipe, 100)).error_type == "Function.OutOfMemory"
        lab.functions.take(Keep(recipe.digest, 60.0, ready=3), PLACE)
        await asyncio.sleep(0.05)
