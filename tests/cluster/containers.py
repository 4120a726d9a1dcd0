"""What tests of containers on a cluster share: what an image of theirs says and serves, and how they look at it."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster, until

Gone = Callable[[str], str]
IMAGE = "shop/web:1"
SERVES = "from a container\n"  # on port 80
PRINTS = (b"serving\n", b"careful\n")  # and this when it begins
PROGRAM = "echo serving; echo careful >&2; trap 'exit 0' TERM; httpd -f -p 80 -h /www & wait"


def status(cluster: Cluster, name: str) -> dict[str, Any]:
    return dict(cluster.object("container", name)["status"])


def fetch(port: int, seconds: float = 20) -> str:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def find_traces(cluster: Cluster, node: str) -> list[str]:
    """What there is of any container on this node: files, namespaces, mounts, control groups, processes."""
    agents = cluster.pids(f"weft agent {node} ")
    root = Path(f"/proc/{agents[0]}/root")
    found = [str(path) for path in (cluster.state / "nodes" / node / "containers").glob("*")]
    run = Path("/run/weft").glob(f"*{cluster.run_mark()}*/{node}/containers/*")
    found += [str(path) for path in run if path.name not in ("runtime", "probe-oci.json")]
    found += [f"netns {path.name}" for path in (root / "run" / "netns").glob("*") if path.name[4:5] == "g"]
    mounts = (Path(f"/proc/{agents[0]}/mountinfo")).read_text().splitlines()
    found += [f"mount {line}" for line in mounts if "/containers/" in line]
    found += [f"process {pid}" for pid in cluster.pids("conmon")]
    return found


def check_network(cluster: Cluster, name: str, port: int) -> None:
    """It is reached at its published port, and reaches the VM hello, which reaches it, by their names."""
    assert fetch(port) == SERVES
    there = "for try in $(seq 40); do wget -qO- http://%s/ && exit; sleep 1; done; exit 1"
    assert cluster.ok("vm", "exec", "hello", "--", "sh", "-c", there % name) == SERVES
    answers = "mkdir -p /tmp/www; echo from a VM > /tmp/www/index.html; httpd -p 8099 -h /tmp/www || true"
    cluster.ok("vm", "exec", "hello", "--", "sh", "-c", answers)
    assert cluster.ok("container", "exec", name, "--", "sh", "-c", there % "hello:8099") == "from a VM\n"


def check_samples(cluster: Cluster, name: str) -> None:
    """What it fetches is in its samples, and so are its CPU and memory."""
    fetched = 600 * 1024
    cluster.ok("vm", "exec", "hello", "--", "sh", "-c", "dd if=/dev/urandom of=/tmp/www/big bs=1k count=600")
    fetch_big = "wget -qO- http://hello:8099/big | wc -c"
    assert cluster.ok("container", "exec", name, "--", "sh", "-c", fetch_big).strip() == str(fetched)

    def ask() -> dict[str, list[float]]:
        words = ["--time-range", "1m", "--granularity", "1s", "-o", "json"]
        series = json.loads(cluster.ok("container", "metrics", name, *words))["series"]
        # The newest second isn't over: the rate of its beginning isn't that of all of it.
        return {one["name"]: [value for _, value in one["points"][:-1] if value is not None] for one in series}

    until(lambda: sum((found := ask())["nic0.received"]) > 0.8 * fetched and sum(found["nic0.sent"]) > 0)
    found = ask()
    assert sum(found["nic0.received"]) < 1.4 * fetched, found["nic0.received"]
    assert 0 < sum(found["nic0.sent"]) < fetched, found["nic0.sent"]
    assert max(found["cpu"]) > 0 and min(found["cpu"]) >= 0 and 0 < max(found["memory.used"]) <= 64 * 2**20


def check_streams(cluster: Cluster, name: str) -> None:
    """Commands in it have their input, output and exit code; its log is there, and can be followed."""
    done = cluster.run("container", "exec", name, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert cluster.run("container", "exec", name, "--", "cat", stdin=b"in\0out").stdout == b"in\0out"
    logs = cluster.run("container", "logs", name)
    assert (logs.returncode, logs.stdout, logs.stderr) == (0, *PRINTS)

    def say(text: str) -> None:
        cluster.ok("container", "exec", name, "--", "sh", "-c", f"echo '{text}' > /proc/1/fd/1")

    with cluster.following("container", "logs", name, say=say) as lines:
        say("more")
        assert lines.get(timeout=30) == b"more\n"


def check_agent_death(cluster: Cluster, name: str, port: int) -> None:
    """Its node's agent is killed: it serves on, and is found again as it was."""
    node, before = status(cluster, name)["node"], status(cluster, name)
    agent = cluster.pid(f"weft agent {node} ")
    os.kill(agent, signal.SIGKILL)
    assert fetch(port) == SERVES
    until(lambda: set(cluster.pids(f"weft agent {node} ")) - {agent})
    until(lambda: cluster.run("container", "exec", name, "--", "true").returncode == 0)
    after = status(cluster, name)
    assert (after["started_at"], after["restarts"]) == (before["started_at"], 0)
