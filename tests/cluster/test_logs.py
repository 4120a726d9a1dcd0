"""What guests printed, kept by their nodes: by the command, over a migration and a killed agent, on the real thing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import WEFT, Cluster
from tests.registry import push_busybox

pytestmark = pytest.mark.host

SMALL = ("--image", "tiny", "--memory", "128M", "--cpu", "1")
PATIENCE_SECONDS = 90.0
COUNTS = "n=0; while [ $n -lt {}00 ]; do echo count $n here > /dev/console; n=$((n+1)); done"


def ask(cluster: Cluster, *words: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in cluster.ok("logs", *words, "--aggregate", "-o", "json").splitlines()]


def until(cluster: Cluster, met: Callable[[list[dict[str, str]]], bool], *words: str) -> list[dict[str, str]]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not met(found := ask(cluster, *words)):
        assert time.monotonic() < deadline, found[-5:]
        time.sleep(0.5)
    return found


def say(cluster: Cluster, name: str, text: str) -> None:
    cluster.ok("vm", "exec", name, "--", "sh", "-c", f"echo '{text}' > /dev/console")


def test_logs_are_whole_after_a_killed_agent_and_a_migration(cluster: Cluster, gone: Callable[[str], str]) -> None:
    for name, node in (("prints", "n1"), ("answers", "n2")):
        cluster.ok("vm", "create", gone(name), *SMALL, "--node", node, "--label", "app=shop", "--detach")
    for name in ("prints", "answers"):
        cluster.ok("vm", "wait", name, "--for", "phase=Running", "--timeout", "90s")
    follower = subprocess.Popen(
        [WEFT, "logs", "--vm", "prints", "--filter", "mark", "-f", "-o", "json"],
        cwd=cluster.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        say(cluster, "prints", "it has booted")  # no prompt of its shell comes any more
        until(cluster, bool, "--vm", "prints", "--filter", "it has booted")
        say(cluster, "prints", "ERROR mark one")
        until(cluster, bool, "--vm", "prints", "--since", "10m", "--filter", "ERROR mark one")

        agent = cluster.pid("weft agent n1 ")
        writing = subprocess.Popen(
            [WEFT, "vm", "exec", "prints", "--", "sh", "-c", COUNTS.format(5)],
            cwd=cluster.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(cluster, bool, "--vm", "prints", "--filter", "count 1")
        os.kill(agent, signal.SIGKILL)
        writing.wait()  # cut off, while the guest goes on
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not set(cluster.pids("weft agent n1 ")) - {agent} or cluster.run("vm", "logs", "prints").returncode:
            assert time.monotonic() < deadline
            time.sleep(0.2)

        def is_whole(found: list[dict[str, Any]]) -> bool:
            return [line["message"] for line in found] == [f"count {number} here" for number in range(500)]

        until(cluster, is_whole, "--vm", "prints", "--regex", "^count [0-9]+ here$")

        cluster.ok("vm", "set", "prints", "--node", "")
        cluster.ok("vm", "migrate", "prints", "--to", "n3", "--timeout", "90s")
        say(cluster, "prints", "ERROR mark two")
        found = until(cluster, lambda found: len(found) == 2, "--vm", "prints", "--filter", "ERROR mark")
        assert [line["message"] for line in found] == ["ERROR mark one", "ERROR mark two"]
        assert [line["source"] for line in found] == ["vm/prints"] * 2
        until(cluster, is_whole, "--vm", "prints", "--regex", "^count [0-9]+ here$")
        seen: list[str] = []
        assert follower.stdout is not None
        while len(seen) < 2:
            seen.append(json.loads(follower.stdout.readline())["message"])
        assert seen == ["ERROR mark one", "ERROR mark two"]

        say(cluster, "answers", "mark three")
        found = until(cluster, lambda found: len(found) == 3, "-l", "app=shop", "--filter", "mark")
        assert [line["source"] for line in found] == ["vm/prints", "vm/prints", "vm/answers"]
        assert [line["time"] for line in found] == sorted(line["time"] for line in found)
        assert {line["source"] for line in ask(cluster, "node/n3", "--tail", "5")} == {"node/n3"}
    finally:
        follower.kill()
        follower.wait()


@pytest.mark.long
def test_a_job_s_tasks_and_a_container_are_asked_for_like_vms(
    cluster: Cluster, registry: str, tmp_path: Path, gone_containers: Callable[[str], str]
) -> None:
    image = f"{registry}/tools/lines:1"
    push_busybox(tmp_path, image, ["sh", "-c"], {})
    size = ("--image", image, "--memory", "32M", "--cpu", "0.05", "--grace", "1s")
    try:
        cluster.ok(
            "job", "run", "counts", *size, "--array", "0-1", "--arg", "echo task says ERROR; echo fine; printf half >&2"
        )
        found = until(cluster, lambda found: len(found) == 6, "job/counts")
        assert sorted({line["source"] for line in found}) == ["container/counts-0", "container/counts-1"]
        assert sorted(line["message"] for line in found) == ["fine", "fine", "half", "half", *["task says ERROR"] * 2]
        text = cluster.ok("job", "logs", "counts", "--task", "1", "--filter", "ERROR")
        assert text.split()[1:] == ["container/counts-1", "task", "says", "ERROR"]
    finally:
        cluster.run("job", "delete", "counts", "--yes")
    hostile = r"printf '\033[31mred\033]0;title\007\n<script>alert(1)</script>\n\377\n'; sleep 300"
    cluster.ok("container", "create", gone_containers("hostile"), *size, "--arg", hostile)
    until(cluster, lambda found: len(found) == 3, "--container", "hostile")
    shown = cluster.run("container", "logs", "hostile", "--aggregate").stdout
    assert b"\x1b" not in shown and b"\x07" not in shown and b"red?]0;title?" in shown and b"\\xff" in shown
    assert b"\x1b" not in cluster.run("container", "logs", "hostile", "-o", "json").stdout


def test_a_vm_and_a_container_send_syslog_and_spans_to_their_gateway(
    cluster: Cluster, registry: str, tmp_path: Path, gone_containers: Callable[[str], str]
) -> None:
    image, trace = f"{registry}/tools/lines:1", uuid.uuid4().hex
    push_busybox(tmp_path, image, ["sh", "-c"], {})
    size = ("--image", image, "--memory", "32M", "--cpu", "0.05", "--grace", "1s")
    cluster.ok("container", "create", gone_containers("sends"), *size, "--arg", "sleep 600")
    network = cluster.object("network", "default")
    cluster.ok("network", "set", "default", "--open", "syslog,traces")
    try:
        gateway, senders = network["status"]["gateway"], (("vm", "hello"), ("container", "sends"))
        for number, (kind, name) in enumerate(senders):
            times = {"startTimeUnixNano": "1795660000000000000", "endTimeUnixNano": "1795660000500000000"}
            span = {"traceId": trace, "spanId": f"00f067aa0ba902b{number}", "name": "pay", **times}
            service = {"attributes": [{"key": "service.name", "value": {"stringValue": f"shop-{name}"}}]}
            body = json.dumps({"resourceSpans": [{"resource": service, "scopeSpans": [{"spans": [span]}]}]})
            send = (
                f"printf '<27>shop: order 42 of {name}\\n' | nc -w 5 {gateway} 514 && wget -q -O - --post-data '{body}'"
                f" --header 'Content-Type: application/json' http://{gateway}:4318/v1/traces"
            )
            deadline = time.monotonic() + PATIENCE_SECONDS  # nodes open it a moment after it was set
            while (said := cluster.run(kind, "exec", name, "--", "sh", "-c", send)).returncode:
                assert time.monotonic() < deadline, said.stderr
                time.sleep(0.5)
            line = f"syslog err shop: order 42 of {name}"
            found = until(cluster, bool, f"--{kind}", name, "--filter", line)
            assert {(one["source"], one["message"]) for one in found} == {(f"{kind}/{name}", line)}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (said := cluster.run("trace", trace, "-o", "json")).returncode or said.stdout.count(b'"pay"') < 2:
            assert time.monotonic() < deadline, said
            time.sleep(0.5)
        assert b"guest/shop-hello" in said.stdout and b"guest/shop-sends" in said.stdout
    finally:
        cluster.ok("network", "set", "default", "--open", ",".join(network["spec"].get("open", ())))
