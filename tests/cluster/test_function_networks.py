"""Functions that name a network, on a real cluster: they call what is in it by name, and leave nothing when they are gone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, until
from tests.long import mark_long

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]  # the base is built once, from packages
SERVE = "echo from here > /srv/index.html; exec httpd -f -h /srv -p 80"
CODE = """
import urllib.request
def handler(event, context):
    try:
        with urllib.request.urlopen(event["url"], timeout=5) as answer:
            return answer.read().decode()
    except OSError as problem:
        return f"no: {problem}"
"""


@pytest.fixture(scope="module")
def blue(cluster: Cluster) -> Iterator[Cluster]:
    """A network with a server in it, and another one."""
    cluster.ok("network", "create", "blue", "--cidr", "10.77.0.0/24")
    cluster.ok("network", "create", "red", "--cidr", "10.78.0.0/24")
    cluster.ok("image", "build", "busybox", "--cache", str(cluster.state / "cache"))
    for name, node in (("blue", "n2"), ("red", "n1")):
        words = ["--image", "busybox", "--memory", "32M", "--network", name, "--node", node]
        cluster.ok(
            "container",
            "create",
            f"web-{name}",
            *words,
            "--grace",
            "1s",
            "--command",
            "sh",
            "--arg",
            "-c",
            "--arg",
            SERVE,
        )
    yield cluster
    for what in ("container/web-blue", "container/web-red", "image/busybox", "network/blue", "network/red"):
        cluster.run("delete", what, "--yes")


class Functions:
    """Makes functions of CODE; ``before`` are the namespaces on all nodes when there was none."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.before = cluster, namespaces(cluster)
        self._made: list[str] = []

    def create(self, name: str, *more: str) -> None:
        folder = self.cluster.folder / "code" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "app.py").write_text(CODE)
        self._made.append(name)
        wish = ["--code", str(folder), "--handler", "app.handler", "--memory", "128M", *more]
        self.cluster.ok("function", "create", name, *wish, timeout=600)

    def delete(self) -> None:
        """All of them, and wait until nothing of theirs is left: the server looks every ten seconds for what isn't needed."""
        for name in self._made:
            self.cluster.run("delete", f"function/{name}", "--yes")
        until(lambda: namespaces(self.cluster) == self.before and egress_endpoints(self.cluster) == [], 120)


@pytest.fixture(scope="module")
def functions(blue: Cluster) -> Iterator[Functions]:
    """What the tests make is deleted once, after the last."""
    until(lambda: len(namespaces(blue)) == 2)  # of the two servers
    made = Functions(blue)
    yield made
    made.delete()


def call(cluster: Cluster, name: str, url: str) -> str:
    return str(json.loads(cluster.ok("function", "invoke", name, "--data", json.dumps({"url": url}))))


def egress_endpoints(cluster: Cluster) -> list[str]:
    """The addresses that nodes have in network blue, those given first before the others: the highest free one is given."""
    found = [one["spec"] for one in cluster.json("get", "endpoints")["items"]]
    held = [one for one in found if one["workload"]["kind"] == "node" and one["network"] == "blue"]
    assert len({one["workload"]["name"] for one in held}) == len(held)  # each node has one
    return sorted((one["address"] for one in held), reverse=True)


def namespaces(cluster: Cluster) -> list[str]:
    """Those of egress endpoints, on all nodes: the server's container has one as well."""
    found: list[str] = []
    for node in ("n1", "n2", "n3"):
        for agent in cluster.pids(f"weft agent {node} "):
            folder = Path(f"/proc/{agent}/root/run/netns")
            found += [f"{node} {path.name}" for path in folder.glob("*") if path.name[4:5] == "g"]
    return sorted(found)


def test_a_function_without_a_network_reaches_nobody(blue: Cluster, functions: Functions) -> None:
    functions.create("closed", "--isolation", "process")
    web = blue.json("container", "get", "web-blue")["status"]["address"]
    assert call(blue, "closed", f"http://{web}/").startswith("no:")
    assert egress_endpoints(blue) == []
    blue.ok("function", "set", "closed", "--network", "blue")
    until(lambda: call(blue, "closed", f"http://{web}/") == "from here\n")
    said = blue.fails(3, "function", "create", "lost", "--image", "reg.example.org/x:1", "--network", "nowhere")
    assert "nowhere" in said


def test_a_killed_agent_leaves_no_egress_endpoint_and_its_next_one_makes_it_again(
    blue: Cluster, functions: Functions
) -> None:
    functions.create("known", "--isolation", "process", "--network", "blue")
    assert call(blue, "known", "http://web-blue/") == "from here\n"
    assert namespaces(blue) != functions.before
    agents = blue.pids("weft agent")
    for pid in agents:
        os.kill(pid, signal.SIGKILL)
    blue.up()
    until(lambda: len(set(blue.pids("weft agent")) - set(agents)) >= 3)
    until(lambda: namespaces(blue) == functions.before)
    until(lambda: blue.run("function", "invoke", "known", "--data", '{"url": "http://web-blue/"}').returncode == 0)
    assert call(blue, "known", "http://web-blue/") == "from here\n"


@pytest.mark.parametrize(
    "isolation",
    mark_long(("process", "container", "vm"), "process", "vm"),
)
def test_a_function_calls_a_container_of_its_network_by_name_and_nobody_elses(
    blue: Cluster, functions: Functions, isolation: str
) -> None:
    name = f"caller-{isolation}"
    functions.create(name, "--isolation", isolation, "--network", "blue")
    assert call(blue, name, "http://web-blue/") == "from here\n"
    assert call(blue, name, "http://web-blue.blue.weft/") == "from here\n"
    red = blue.json("container", "get", "web-red")["status"]["address"]
    assert call(blue, name, f"http://{red}/").startswith("no:")
    assert call(blue, name, "http://web-red/").startswith("no:")
    given = egress_endpoints(blue)  # a machine is made ready on a second node too, which then has the next address
    assert given == ["10.77.0.254", "10.77.0.253", "10.77.0.252"][: len(given)] != []
    assert name in blue.fails(5, "network", "delete", "blue", "--yes")


def test_the_last_of_them_leaves_nothing(blue: Cluster, functions: Functions) -> None:
    assert egress_endpoints(blue) != []
    functions.delete()
