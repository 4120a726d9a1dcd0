"""Guests move between nodes of a real cluster: with what they have in memory and on disks, under their address, whoever is
killed meanwhile."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from typing import IO
from urllib.request import urlopen

import pytest

from tests.cluster.cluster import WEFT, Cluster, until
from tests.cluster.test_bad_days import kill, no_orphans, one_guest

pytestmark = pytest.mark.host
Gone = Callable[[str], str]
COUNT = "(n=0; while :; do n=$((n+1)); echo $n > /tmp/m; mv /tmp/m /tmp/n; sleep 0.5; done) > /dev/null 2>&1 &"


def run(cluster: Cluster, name: str, script: str) -> str:
    return cluster.ok("vm", "exec", name, "--", "sh", "-c", script).strip()


def goes_on(cluster: Cluster, name: str) -> None:
    """What ran in it, counting, counts further."""
    counted, deadline = int(run(cluster, name, "cat /tmp/n")), time.monotonic() + 60
    while int(run(cluster, name, "cat /tmp/n")) <= counted:
        assert time.monotonic() < deadline, counted
        time.sleep(0.2)


def places(cluster: Cluster, name: str) -> list[str]:
    """The nodes on which the VM has an allocation."""
    found = [a["spec"] for a in cluster.json("allocation", "list")["items"]]
    return [spec["node"] for spec in found if spec["workload"]["name"] == name]


def written(cluster: Cluster) -> float:
    """Bytes that the traveller wrote to its volume in the last ten minutes, by its samples of whole seconds."""
    words = ("--time-range", "10m", "--granularity", "1s", "--series", "disk.luggage.written", "-o", "json")
    (series,) = json.loads(cluster.ok("vm", "metrics", "traveller", *words))["series"]
    return float(sum(value for _, value in series["points"] if value is not None))


def is_all(measured: list[float]) -> bool:
    """Whether the volume's 4 MiB are measured, and nothing was added in the last looks."""
    return measured[-1] > 0.8 * 4 * 2**20 and len(measured) > 4 and measured[-5] == measured[-1]


@pytest.mark.long
def test_a_guest_moves_with_all_that_it_has_and_goes_on(cluster: Cluster, gone: Gone) -> None:
    port = cluster.free_port()
    cluster.ok("create", "volume", "luggage", "--size", "16M")
    made = ("--memory", "128M", "--volume", "luggage", "--publish", f"{port}:80")
    cluster.ok("vm", "create", gone("traveller"), "--image", "tiny", *made)
    before = cluster.vm("traveller")["status"]
    run(
        cluster,
        "traveller",
        "dd if=/dev/urandom of=/dev/vdb bs=1M count=4 2> /dev/null; sync; echo here > /tmp/index.html",
    )
    run(cluster, "traveller", f"{COUNT} httpd -p 80 -h /tmp || true")
    disk, boot = run(cluster, "traveller", "md5sum /dev/vdb"), before["boot_id"]
    assert "would migrate from" in cluster.ok("vm", "migrate", "traveller", "--dry-run")
    measured: list[float] = []
    until(lambda: measured.append(written(cluster)) or is_all(measured), seconds=150)

    cluster.ok("vm", "migrate", "traveller", "--timeout", "90s")
    after = cluster.vm("traveller")["status"]
    assert (after["phase"], after["boot_id"], after["address"]) == ("Running", boot, before["address"])
    assert after["node"] != before["node"] and places(cluster, "traveller") == [after["node"]]
    assert run(cluster, "traveller", "md5sum /dev/vdb") == disk
    goes_on(cluster, "traveller")
    came_along = lambda: abs(written(cluster) / measured[-1] - 1) < 0.05  # noqa: E731
    until(came_along)  # what the source measured, however busy it was
    assert urlopen(f"http://127.0.0.1:{port}/index.html", timeout=60).read() == b"here\n"
    assert cluster.json("get", "volume/luggage")["status"]["node"] == after["node"]
    [migration] = [m for m in cluster.json("migration", "list")["items"] if m["spec"]["workload"] == "vm/traveller"]
    assert migration["status"]["plan"]["reason"] and migration["status"]["actual"]["bytes"] > 0
    no_orphans(cluster)

    cluster.ok("vm", "migrate", "traveller", "--cold", "--to", before["node"], "--timeout", "90s")
    back = cluster.vm("traveller")["status"]
    assert back["node"] == before["node"] and back["boot_id"] != boot
    assert run(cluster, "traveller", "md5sum /dev/vdb") == disk
    until(came_along)
    cluster.ok("vm", "delete", "traveller", "--yes")
    cluster.ok("delete", "volume/luggage", "--yes")


@pytest.mark.long
@pytest.mark.parametrize("victim", ["server", "agent of the source", "agent of the target"])
def test_whoever_is_killed_meanwhile_one_guest_is_left_and_goes_on(cluster: Cluster, gone: Gone, victim: str) -> None:
    name = gone(f"robust-{victim.replace(' ', '-')}")
    cluster.ok("vm", "create", name, "--image", "tiny", "--memory", "128M")
    before = cluster.vm(name)["status"]
    run(cluster, name, COUNT)
    target = next(node for node in ("n1", "n2", "n3") if node != before["node"])
    cluster.ok("vm", "migrate", name, "--to", target, "--bandwidth", "12M", "--timeout", "100s", "--detach")
    [migration] = [
        m["name"] for m in cluster.json("migration", "list")["items"] if m["spec"]["workload"] == f"vm/{name}"
    ]
    cluster.ok("wait", f"migration/{migration}", "--for", "phase=Migrating", "--timeout", "90s")
    node = before["node"] if "source" in victim else target
    kill(cluster.pids("weft server") if victim == "server" else cluster.pids(f"weft agent {node}"))
    cluster.up()
    deadline = time.monotonic() + 150
    while True:
        done = cluster.run("get", f"migration/{migration}", "-o", "json")
        if done.returncode == 0 and b'"ended_at":null' not in done.stdout.replace(b" ", b""):
            break
        assert time.monotonic() < deadline, done.stdout.decode() + done.stderr.decode() + cluster.logs()
        time.sleep(0.5)
    status = cluster.json("get", f"migration/{migration}")["status"]
    ends_on = target if status["phase"] == "Succeeded" else before["node"]
    cluster.ok("wait", f"vm/{name}", "--timeout", "60s")
    after = cluster.vm(name)["status"]
    assert (after["node"], after["boot_id"], places(cluster, name)) == (ends_on, before["boot_id"], [ends_on]), status
    one_guest(cluster, name)
    goes_on(cluster, name)
    if "source" in victim:
        cluster.ok("vm", "migrate", name, "--timeout", "90s")  # it can move again
    no_orphans(cluster)


def test_what_is_open_goes_on_with_its_guest(cluster: Cluster, gone: Gone) -> None:
    """A command and the log: every line once and in order, over two moves, and over the death of the agent of the node it is
    on."""
    cluster.ok("vm", "create", gone("talker"), "--image", "tiny", "--memory", "128M")
    until(lambda: len(cluster.ok("vm", "logs", "talker").splitlines()) >= 3)
    beginning = cluster.ok("vm", "logs", "talker").splitlines()[:3]

    def say(text: str) -> None:
        run(cluster, "talker", f"echo '{text}' > /dev/console")

    with cluster.following("vm", "logs", "talker", say=say) as following:
        print_lines = (
            "(i=0; while :; do echo line $i > /dev/console; i=$((i+1)); usleep 50000; done) > /dev/null 2>&1 &"
        )
        run(cluster, "talker", print_lines)
        argv = [WEFT, "vm", "exec", "talker", "--", "sh", "-c", "cat; exit 7"]
        talking = subprocess.Popen(argv, cwd=cluster.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert talking.stdin is not None and talking.stdout is not None
        heard: list[bytes] = []
        listening = threading.Thread(target=lambda out: heard.extend(out), args=(talking.stdout,))
        listening.start()
        over, said = threading.Event(), 0

        def talk(into: IO[bytes]) -> None:
            nonlocal said
            while not over.is_set():
                into.write(b"".join(b"%d\n" % n for n in range(said, said + 50)))
                into.flush()
                said += 50
                time.sleep(0.01)
            into.close()

        speaking = threading.Thread(target=talk, args=(talking.stdin,))
        speaking.start()
        for _ in range(2):
            cluster.ok("vm", "migrate", "talker", "--timeout", "90s")
        kill(cluster.pids(f"weft agent {cluster.vm('talker')['status']['node']}"))
        cluster.up()
        time.sleep(1)
        over.set()
        speaking.join(30)
        assert talking.wait(60) == 7
        listening.join(10)
        assert heard == [b"%d\n" % n for n in range(said)]
        whole = cluster.ok("vm", "logs", "talker").splitlines()
        printed = [line for line in whole if line.startswith("line ")]
        assert whole[:3] == beginning and printed == [f"line {n}" for n in range(len(printed))]
        seen: list[bytes] = []
        deadline = time.monotonic() + 60
        while not (seen and seen[-1].startswith(printed[-1].encode())):
            seen.append(following.get(timeout=max(0.0, deadline - time.monotonic())))
        lines = [line.strip() for line in seen if line.startswith(b"line ") and line.endswith(b"\n")]
        assert lines == [b"line %d" % n for n in range(len(lines))] and len(lines) >= len(printed)
