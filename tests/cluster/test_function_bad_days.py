"""kill -9 of gateway and agents under invocations, on the real thing: callers hear of it, nothing runs twice."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import WEFT, Cluster, until
from tests.cluster.functions import CODE, let_go

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]  # the base is built once, from packages
NUMBERS = itertools.count(1)  # of runs that no first try of a test has asked for


@pytest.fixture(scope="module")
def slow(cluster: Cluster) -> Iterator[Cluster]:
    folder = cluster.folder / "code" / "slow"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.py").write_text(CODE)
    wish = [
        "--code",
        str(folder),
        "--handler",
        "app.handler",
        "--isolation",
        "process",
        "--max-concurrent",
        "1",
        "--timeout",
        "120s",
    ]
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
    n = next(NUMBERS)
    caller = begin(slow, n, 90.0)
    for pid in slow.pids("weft server gateway"):
        os.kill(pid, signal.SIGKILL)
    _, told = caller.communicate(timeout=60)
    assert caller.returncode == 1 and told  # its stream is gone, and it is told so
    until(lambda: slow.run("function", "metrics", "slow").returncode == 0)
    more = ("function", "invoke", "slow", "--data", json.dumps({"n": next(NUMBERS)}))
    until(lambda: b"1 of at most 1 invocations run" in slow.run(*more).stderr)
    let_go()
    until(lambda: answers(slow, next(NUMBERS)))
    assert runs(slow, n) == 1


@pytest.mark.long
def test_a_killed_agent_loses_its_invocations_and_their_callers_hear_so(slow: Cluster) -> None:
    n = next(NUMBERS)
    caller = begin(slow, n, 90.0)
    before = slow.json("get", "function/slow")["status"]
    for pid in slow.pids("weft agent"):
        os.kill(pid, signal.SIGKILL)
    slow.up()
    _, told = caller.communicate(timeout=90)
    assert caller.returncode == 1 and "it may have run" in told, told
    until(lambda: answers(slow, next(NUMBERS)))
    assert runs(slow, n) == 1
    assert slow.json("get", "function/slow")["status"]["digest"] == before["digest"]
