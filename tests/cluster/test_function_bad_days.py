"""kill -9 of gateway and agents under invocations, on the real thing: callers hear of it, nothing runs twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import WEFT, Cluster, until

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]  # the base is built once, from packages
CODE = """
import time
def handler(event, context):
    print("RUN", event["n"], flush=True)
    time.sleep(event.get("seconds", 0))
    return event["n"]
"""


@pytest.fixture(scope="module")
def slow(cluster: Cluster) -> Iterator[Cluster]:
    folder = cluster.folder / "code" / "slow"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.py").write_text(CODE)
    wish = ["--code", str(folder), "--handler", "app.handler", "--isolation", "process", "--max-concurrent", "1"]
    cluster.ok("function", "create", "slow", *wish, timeout=600)
    yield cluster
    cluster.run("delete", "function/slow", "--yes")


def begin(cluster: Cluster, n: int, seconds: float) -> subprocess.Popen[str]:
    """An invocation that runs by the time this returns."""
    data = json.dumps({"n": n, "seconds": seconds})
    caller = subprocess.Popen(
        [WEFT, "function", "invoke", "slow", "--data", data],
        cwd=cluster.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: runs(cluster, n) == 1 or caller.poll() is not None)
    assert caller.poll() is None, caller.communicate()
    return caller


def runs(cluster: Cluster, n: int) -> int:
    """How often the code began with ``n``."""
    return sum(line.endswith(f" RUN {n}") for line in cluster.ok("function", "logs", "slow").splitlines())


def answers(cluster: Cluster, n: int) -> bool:
    done = cluster.run("function", "invoke", "slow", "--data", json.dumps({"n": n}))
    return done.returncode == 0 and json.loads(done.stdout) == n


def test_a_killed_gateway_counts_what_still_runs_and_serves_again(slow: Cluster) -> None:
    caller = begin(slow, 1, 16.0)
    for pid in slow.pids("weft server gateway"):
        os.kill(pid, signal.SIGKILL)
    _, told = caller.communicate(timeout=60)
    assert caller.returncode == 1 and told  # its stream is gone, and it is told so
    until(lambda: slow.run("function", "metrics", "slow").returncode == 0)
    refusals = set()
    deadline = time.monotonic() + 60
    while not answers(slow, 2):
        assert time.monotonic() < deadline
        refusals.add(slow.run("function", "invoke", "slow", "--data", '{"n": 3}').stderr.decode().split("\n")[0])
        time.sleep(0.2)
    assert any("1 of at most 1 invocations run" in line for line in refusals), refusals
    assert runs(slow, 1) == 1


def test_a_killed_agent_loses_its_invocations_and_their_callers_hear_so(slow: Cluster) -> None:
    caller = begin(slow, 11, 30.0)
    before = slow.json("get", "function/slow")["status"]
    for pid in slow.pids("weft agent"):
        os.kill(pid, signal.SIGKILL)
    slow.up()
    _, told = caller.communicate(timeout=90)
    assert caller.returncode == 1 and "it may have run" in told, told
    until(lambda: answers(slow, 12))
    assert runs(slow, 11) == 1
    assert slow.json("get", "function/slow")["status"]["digest"] == before["digest"]
