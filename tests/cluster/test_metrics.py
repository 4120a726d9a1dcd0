"""What a guest used over time, measured by its node five times a second: by the command, on the real thing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import WEFT, Cluster, until

pytestmark = pytest.mark.host

SMALL = ("--image", "tiny", "--memory", "128M", "--cpu", "1")
GATE = "gate=$(ip route | awk '/default/ {print $3}')"
PATIENCE_SECONDS = 180.0


def ask(cluster: Cluster, name: str, kind: str = "vm") -> dict[str, list[list[Any]]]:
    """The points of each series of the last half minute."""
    text = cluster.ok(kind, "metrics", name, "--time-range", "30s", "--granularity", "1s", "-o", "json")
    return {one["name"]: one["points"] for one in json.loads(text)["series"]}


def known(points: list[list[Any]]) -> list[float]:
    return [value for _, value in points if value is not None]


def add_up(points: list[list[Any]]) -> float:
    """What was counted in these seconds; the newest isn't over, so the rate of its beginning isn't that of all of it."""
    return sum(known(points[:-1]))


def wanted(found: dict[str, list[list[Any]]]) -> list[float]:
    """Cores that it had or waited for."""
    both = zip(found["cpu"], found["steal"], strict=True)
    return [cpu + waited for (_, cpu), (_, waited) in both if cpu is not None and waited is not None]


def wait_for(cluster: Cluster, name: str, met: Callable[[dict[str, list[list[Any]]]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not met(found := ask(cluster, name)):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    return found


def test_a_working_guest_shows_a_core_also_after_its_agent_was_killed(
    cluster: Cluster, gone: Callable[[str], str]
) -> None:
    cluster.ok("vm", "create", gone("works"), *SMALL, "--node", "n1")
    cluster.ok("vm", "wait", "works", "--for", "phase=Running", "--timeout", "60s")
    work = subprocess.Popen(
        [WEFT, "vm", "exec", "works", "--", "sh", "-c", "while :; do :; done"],
        cwd=cluster.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        # What the machine's other work takes of the guest's core is in steal.
        found = wait_for(cluster, "works", lambda found: sum(busy > 0.8 for busy in wanted(found)) >= 3)
        assert max(known(found["cpu"])) < 2.5 and min(known(found["cpu"])) >= 0
        assert known(found["memory.resident"])[-1] > 40 * 2**20
        times = [at for at, _ in found["cpu"]]
        assert times == [times[0] + second for second in range(len(times))] and 29 <= len(times) <= 30

        agent = cluster.pid("weft agent n1 ")
        os.kill(agent, signal.SIGKILL)
        killed_at = time.time()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not set(cluster.pids("weft agent n1 ")) - {agent} or cluster.run("vm", "logs", "works").returncode:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        found = wait_for(cluster, "works", lambda found: any(at > killed_at and value for at, value in found["cpu"]))
        assert known([point for point in found["cpu"] if point[0] < killed_at - 1]), "what was measured before is there"
    finally:
        work.kill()
        work.wait()
    # What the guest does to its disk and in its network is seen, byte for byte but for a little that everybody does.
    do = "dd if=/dev/urandom of=/root/x bs=1M count=16; sync"
    until(lambda: cluster.run("vm", "exec", "works", "--", "sh", "-c", f"{GATE}; ping -c 1 $gate").returncode == 0)
    cluster.ok("vm", "exec", "works", "--", "sh", "-c", f"{GATE}; {do}; ping -c 20 -i 0.1 -s 1400 $gate")
    wrote, pinged = 16 * 2**20, 20 * (1400 + 8 + 20 + 14)
    wait_for(cluster, "works", lambda found: add_up(found["nic0.received"]) > 0.7 * pinged)
    found = wait_for(cluster, "works", lambda found: add_up(found["disk.root.written"]) > 0.7 * wrote)
    assert add_up(found["disk.root.written"]) < 1.5 * wrote and add_up(found["disk.root.writes"]) > 10
    assert 0 < max(known(found["disk.root.write_latency"])) < 30
    assert 0.7 * pinged < add_up(found["nic0.sent"]) < 1.5 * pinged and min(known(found["nic0.sent"])) >= 0
    assert 14 <= add_up(found["nic0.sent_packets"]) < 60 and max(known(found["nic0.received_drops"])) == 0
    of_node = ask(cluster, "n1", kind="node")
    assert 0 < max(known(of_node["cpu"])) <= 1.2 * (os.cpu_count() or 1) and min(known(of_node["cpu"])) >= 0
    assert len([name for name in of_node if name.startswith("cpu.")]) == os.cpu_count()
    assert known(of_node["memory.used"])[-1] > 2**28 and known(of_node["pool.local.free"])[-1] > 0
    assert 0 <= min(known(of_node["pressure.cpu"])) and max(known(of_node["pressure.cpu"])) < 1.3
    watch = subprocess.Popen(
        [WEFT, "vm", "metrics", "works", "--time-range", "2s", "--granularity", "0.2s", "--watch", "-o", "json"],
        cwd=cluster.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert watch.stdout is not None
    documents = [json.loads(watch.stdout.readline()) for _ in range(8)]
    watch.terminate()
    watch.communicate()
    # Of the newest step nothing may have been measured yet, as of the newest second above.
    assert 9 <= len(documents[0]["series"][0]["points"]) <= 10 and documents[-1]["until"] > documents[0]["until"]
    assert all(len(one["series"][0]["points"]) < 10 for one in documents[1:])
    shown = cluster.ok("vm", "metrics", "works", "--time-range", "1m")
    assert "vm/works" in shown and "memory.resident" in shown and any(sign in shown for sign in "▂▃▄▅▆▇█")
    rows = cluster.ok("vm", "metrics", "works", "--granularity", "10s", "--series", "cpu", "-o", "csv").splitlines()
    assert rows[0] == "time,cpu" and 28 <= len(rows) <= 32
    assert "use 1s, or a shorter time range" in cluster.fails(
        2, "vm", "metrics", "works", "--time-range", "1h", "--granularity", "0.2s"
    )
