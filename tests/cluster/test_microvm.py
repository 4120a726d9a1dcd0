"""Containers in machines of their own on a real cluster: the same image and commands as without, and kept by the same care."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, until
from tests.cluster.containers import (
    SERVES,
    Gone,
    check_agent_death,
    check_network,
    check_streams,
    fetch,
    status,
)

pytestmark = pytest.mark.host


def machines(cluster: Cluster, node: str) -> list[int]:
    return cluster.pids("qemu-system", f"/{node}/microvm/")


def find_traces(cluster: Cluster, node: str) -> list[str]:
    """What there is of any such container on this node: files, processes. Images stay."""
    state = cluster.state / "nodes" / node / "microvm"
    found = [str(path) for name in ("containers", "guests") for path in (state / name).glob("*")]
    run = Path("/run/weft").glob(f"*{cluster.run_mark()}*/{node}/microvm/*/")
    return [*found, *map(str, run), *(f"process {pid}" for pid in machines(cluster, node))]


def test_one_with_a_machine_of_its_own_from_creation_to_its_end(
    cluster: Cluster, registry: str, gone_containers: Gone
) -> None:
    node = cluster.vm("hello")["status"]["node"]
    other = next(name for name in ("n1", "n2", "n3") if name != node)
    until(lambda: find_traces(cluster, other) == [])  # others' may be on their way out
    port = cluster.free_port()
    words = ["--image", f"{registry}/shop/web:1", "--isolation", "vm", "--memory", "128M", "--node", other]
    said = cluster.ok("container", "create", gone_containers("safe"), *words, "--publish", f"{port}:80")
    assert f"container/safe  Running on {other} after" in said
    assert len(machines(cluster, other)) == 1
    check_network(cluster, "safe", port)
    inside = cluster.ok("container", "exec", "safe", "--", "sh", "-c", "uname -r; hostname; cat /etc/resolv.conf; ps")
    assert os.uname().release not in inside and "\nsafe\nnameserver " in inside and "    1 root     sh -c" in inside
    check_streams(cluster, "safe")
    cluster.ok("container", "exec", "safe", "--", "sh", "-c", "echo kept > /kept")
    [machine] = machines(cluster, other)
    check_agent_death(cluster, "safe", port)
    assert machines(cluster, other) == [machine]

    changed = cluster.run("container", "set", "safe", "--memory", "160M")
    assert changed.returncode == 0 and b"needs a restart" in changed.stderr
    cluster.ok("container", "stop", "safe")
    assert (status(cluster, "safe")["phase"], machines(cluster, other)) == ("Stopped", [])
    cluster.ok("container", "start", "safe")
    assert cluster.ok("container", "exec", "safe", "--", "cat", "/kept") == "kept\n"
    memory = cluster.ok("container", "exec", "safe", "--", "sh", "-c", "set -- $(free -m | grep Mem); echo $2")
    assert 110 < int(memory) < 160
    assert fetch(port) == SERVES
    cluster.ok("container", "delete", "safe", "--yes")
    until(lambda: find_traces(cluster, other) == [])


@pytest.mark.long
def test_a_machine_that_is_killed_and_a_node_that_loses_power_are_got_over(
    cluster: Cluster, registry: str, gone_containers: Gone
) -> None:
    node = next(name for name in ("n1", "n2", "n3") if name != cluster.vm("hello")["status"]["node"])
    cluster.ok("volume", "create", "drawer", "--size", "64M")
    words = ["--image", f"{registry}/shop/web:1", "--isolation", "vm", "--memory", "128M", "--node", node]
    cluster.ok("container", "create", gone_containers("tough"), *words, "--mount", "drawer:/srv")
    write = "echo mine > /srv/file; echo kept > /kept; sync"
    cluster.ok("container", "exec", "tough", "--", "sh", "-c", write)
    [machine] = machines(cluster, node)
    os.kill(machine, signal.SIGKILL)
    until(lambda: status(cluster, "tough")["restarts"] == 1)
    read = ("container", "exec", "tough", "--", "cat", "/kept", "/srv/file")
    until(lambda: cluster.run(*read).stdout == b"kept\nmine\n", 60)

    init = cluster.pid(f"weft init {node}")
    os.kill(init, signal.SIGKILL)
    until(lambda: not cluster.pids(f"weft init {node}"))
    cluster.up()
    until(lambda: cluster.run(*read).stdout == b"kept\nmine\n", 60)
    cluster.ok("container", "delete", "tough", "--yes")
    shared = ["--image", f"{registry}/shop/web:1", "--memory", "64M", "--node", node, "--mount", "drawer:/srv"]
    cluster.ok("container", "create", gone_containers("after"), *shared)  # without one of its own
    assert cluster.ok("container", "exec", "after", "--", "cat", "/srv/file") == "mine\n"
    cluster.ok("container", "delete", "after", "--yes")
    cluster.ok("volume", "delete", "drawer", "--yes")


@pytest.mark.long
def test_how_it_ends_is_told_and_who_may_reach_it_is_as_for_a_vm(
    cluster: Cluster, registry: str, gone_containers: Gone
) -> None:
    image = ["--image", f"{registry}/shop/web:1", "--isolation", "vm", "--memory", "128M"]
    script = [*image, "--command", "sh", "--arg", "-c"]
    cluster.ok("container", "create", gone_containers("finished"), *script, "--arg", "echo so much")
    until(lambda: status(cluster, "finished")["phase"] == "Stopped")
    assert status(cluster, "finished")["reason"] == "completed"
    assert cluster.ok("container", "logs", "finished") == "so much\n"
    failing = [*script, "--arg", "exit 3", "--restart", "never"]
    cluster.run("container", "create", gone_containers("broken"), *failing, "--detach")
    until(lambda: "exited: exit code 3" in status(cluster, "broken")["message"])
    said = cluster.fails(2, "container", "create", "tiny", *image[:-1], "64M")
    assert "--memory" in said and "96M" in said

    manifest = {"kind": "securitygroup", "name": "shut", "spec": {"ingress": []}}
    (cluster.folder / "shut.json").write_text(json.dumps(manifest))
    cluster.ok("apply", "-f", "shut.json")
    cluster.ok("container", "create", gone_containers("shy"), *image, "--security-group", "shut")
    address = status(cluster, "shy")["address"]
    ask = f"printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 3 {address} 80"
    assert b"from a" not in cluster.run("vm", "exec", "hello", "--", "sh", "-c", ask).stdout
    (cluster.folder / "shut.json").write_text(json.dumps(manifest | {"spec": {"ingress": ["tcp:80"]}}))
    cluster.ok("apply", "-f", "shut.json")
    until(lambda: cluster.run("vm", "exec", "hello", "--", "sh", "-c", ask).stdout.endswith(b"from a container\n"))
    cluster.ok("container", "delete", "shy", "--yes")
    cluster.ok("securitygroup", "delete", "shut", "--yes")
