"""Functions with --isolation vm through the whole fabric: brought up once, copied, killed with their agent, made again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.cluster import WEFT, Cluster, until

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]  # the base is built once, from packages
CODE = """
import random, socket, time
def handler(event, context):
    time.sleep(event.get("seconds", 0))
    return {"host": socket.gethostname(), "random": random.random(), "time": time.time()}
"""


@pytest.fixture(scope="module")
def dice(cluster: Cluster) -> Iterator[Cluster]:
    create(cluster, "dice", CODE, "--ready", "1")
    yield cluster
    cluster.run("delete", "function/dice", "--yes")


def create(cluster: Cluster, name: str, code: str, *more: str) -> None:
    folder = cluster.folder / "code" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.py").write_text(code)
    wish = ["--code", str(folder), "--handler", "app.handler", "--isolation", "vm", "--memory", "128M"]
    cluster.ok("function", "create", name, *wish, *more, timeout=600)


def invoke(cluster: Cluster, data: str = "{}") -> dict[str, float]:
    said: dict[str, float] = json.loads(cluster.ok("function", "invoke", "dice", "--data", data))
    return said


@pytest.mark.long
def test_a_function_in_a_machine_answers_with_the_time_and_numbers_of_its_own(dice: Cluster) -> None:
    began = time.time()
    first, second = invoke(dice), invoke(dice)
    assert began - 0.01 < first["time"] < second["time"] < time.time()
    assert first["random"] != second["random"]
    assert "dice" in dice.ok("function", "list")


@pytest.mark.long
def test_code_that_cannot_be_imported_is_told_at_once(dice: Cluster) -> None:
    with pytest.raises(AssertionError, match="nothing_like_it"):
        create(dice, "bad", "import nothing_like_it\n")
    assert "Runtime.ImportModuleError" in dice.ok("describe", "function/bad")
    dice.ok("delete", "function/bad", "--yes")


def instances(cluster: Cluster) -> dict[str, dict[str, object]]:
    """What each node has of the function, as it told last."""
    return {there["node"]: there for there in cluster.json("function", "metrics", "dice")["instances"]}


def prepared(cluster: Cluster) -> set[str]:
    """The nodes that have its template."""
    return {node for node, there in instances(cluster).items() if there["prepared"]}


def boots(cluster: Cluster) -> int:
    """How many callers have waited for one, ever."""
    return int(cluster.json("function", "metrics", "dice")["starts"].get("cold", 0))


@pytest.mark.long
def test_killed_agents_take_their_copies_along_and_copy_the_same_templates_again(dice: Cluster) -> None:
    before, had, booted = invoke(dice), prepared(dice), boots(dice)
    left = set(dice.pids("qemu-system-x86_64", "-name fn"))
    agents = set(dice.pids("weft agent"))
    for pid in agents:
        os.kill(pid, signal.SIGKILL)
    dice.up()
    until(
        lambda: set(dice.pids("weft agent")) - agents and had <= prepared(dice), 120
    )  # told before anybody asks for it
    until(lambda: dice.run("function", "invoke", "dice").returncode == 0, 120)
    assert invoke(dice)["host"] != before["host"]
    assert boots(dice) == booted, "a node that had its template wasn't asked"
    assert not left & set(dice.pids("qemu-system-x86_64", "-name fn"))


@pytest.mark.long
def test_the_next_node_has_its_template_before_the_first_is_full(dice: Cluster, gone: Callable[[str], str]) -> None:
    invoke(dice)
    until(lambda: any(there["ready"] for there in instances(dice).values()))  # the copy that was taken is made up for
    home = next(node for node, there in instances(dice).items() if there["ready"])
    booted = boots(dice)
    memory = dice.json("get", f"node/{home}")["report"]["memory"]
    reserved = (memory >> 20) - 200  # one more instance of 128 MiB fits beside it, not two
    dice.ok("vm", "create", gone("large"), "--image", "tiny", "--memory", f"{reserved}M", "--node", home, "--detach")
    until(lambda: dice.vm("large")["status"]["phase"] in ("Starting", "Running"))  # its node has it, and counts it

    def spread() -> bool:
        invoke(dice)
        return len(prepared(dice)) > 1

    until(spread, 120)
    others = prepared(dice) - {home}
    call = [WEFT, "function", "invoke", "dice", "--data", '{"seconds": 5}']
    taken = [subprocess.Popen(call, cwd=dice.folder, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(60) for process in taken] == [0, 0, 0]
    assert boots(dice) == booted, "somebody waited for a boot though a node had a template and room"
    now = instances(dice)
    assert any(now[node]["idle"] or now[node]["busy"] for node in others), now
