"""`make up SERVERS=3`: any server may be killed with all its processes, or its namespaces, and `make up` brings it back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import WEFT, Cluster, own_cluster, until

pytestmark = pytest.mark.host


@pytest.fixture
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with own_cluster(tmp_path_factory.mktemp("three-servers"), servers="3") as made:
        yield made


def read_servers(cluster: Cluster) -> dict[str, tuple[str, list[str]]]:
    items = cluster.json("server", "list")["items"]
    return {one["name"]: (one["status"]["phase"], one["status"]["leads"]) for one in items}


def test_a_fabric_of_three_goes_on_when_one_is_killed_and_heals(three: Cluster) -> None:
    assert read_servers(three) == {"s1": ("Ready", ["controllers"]), "s2": ("Ready", []), "s3": ("Ready", [])}
    group = json.loads((three.state / "run" / "server-s1.pid").read_bytes())["pid"]
    assert {os.getpgid(pid) for pid in (group, *three.pids("/servers/s1/"))} == {group}
    inside = {os.readlink(f"/proc/{pid}/ns/net") for pid in three.pids("server api --state")}
    assert len(inside) == 3 and os.readlink("/proc/self/ns/net") not in inside

    words = [WEFT, "vm", "exec", "hello", "--", "cat"]
    with subprocess.Popen(words, cwd=three.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as typed:
        assert typed.stdin is not None and typed.stdout is not None
        for line, kills in ((b"before\n", True), (b"after\n", False)):
            typed.stdin.write(line)
            typed.stdin.flush()
            assert typed.stdout.readline() == line
            if kills:
                os.killpg(group, signal.SIGKILL)  # it leads, and the guest's streams go through its gateway
        typed.stdin.close()
        assert typed.wait(60) == 0
    assert three.ok("vm", "exec", "hello", "--", "echo", "hello").strip() == "hello"
    three.ok("vm", "create", "two", "--image", "tiny", "--memory", "128M")
    assert three.ok("vm", "exec", "two", "--", "echo", "two").strip() == "two"
    until(lambda: read_servers(three)["s1"] == ("NotReady", []))
    [leader] = [name for name, (_, leads) in read_servers(three).items() if leads]

    three.up()
    until(lambda: read_servers(three)["s1"][0] == "Ready")
    [init] = three.pids(f"weft init {leader}")
    os.kill(init, signal.SIGKILL)  # its namespaces go, with all in them
    until(lambda: not three.pids(f"/servers/{leader}/"))
    three.ok("vm", "delete", "two", "--yes")
    three.up()
    until(lambda: [phase for phase, _ in read_servers(three).values()] == ["Ready"] * 3)
    assert "this cluster has 3 servers" in three.local("up", servers="1").stderr
    three.ok("server", "backup", str(three.folder / "saved"))
