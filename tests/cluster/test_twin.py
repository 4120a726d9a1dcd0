"""Twin (design, part 2): nodes cut off, given up and back again; never two copies of a VM with one volume."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.test_bad_days import boot_id, no_orphans, one_guest, settled

pytestmark = pytest.mark.host
Gone = Callable[[str], str]


def set_link(cluster: Cluster, node: str, state: str) -> None:
    prefix = json.loads((cluster.state / "cluster.json").read_text())["link_prefix"]
    subprocess.run(["ip", "link", "set", f"{prefix}{node}", state], check=True)


@contextmanager
def cut_off(cluster: Cluster, node: str) -> Iterator[Callable[[], None]]:
    """The node's only wire is down until the block ends, or the given function is called."""
    set_link(cluster, node, "down")
    try:
        yield lambda: set_link(cluster, node, "up")
    finally:
        set_link(cluster, node, "up")


def until(true: Callable[[], bool], cluster: Cluster, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, cluster.ok("vm", "list") + cluster.logs()
        time.sleep(0.5)


def place(cluster: Cluster, node: str, name: str, *more: str) -> None:
    """A VM on ``node`` that may be placed elsewhere later; it may still boot."""
    others = [other for other in ("n1", "n2", "n3") if other != node]
    cluster.ok("node", "cordon", *others)
    try:
        cluster.ok("vm", "create", name, "--image", "tiny", "--memory", "128M", *more, "--detach")
        until(lambda: cluster.vm(name)["status"].get("node") == node, cluster)
    finally:
        cluster.ok("node", "uncordon", *others)


def test_a_node_that_was_cut_off_and_given_up_comes_back_without_a_second_copy(cluster: Cluster, gone: Gone) -> None:
    cluster.ok("create", "volume", "precious", "--size", "64M")
    place(cluster, "n2", gone("ledger"), "--volume", "precious")
    place(cluster, "n2", gone("app"))
    place(cluster, "n3", gone("calm"))
    for name in ("ledger", "app", "calm"):
        cluster.ok("wait", f"vm/{name}")
    before = {name: (boot_id(cluster, name), one_guest(cluster, name)) for name in ("ledger", "app", "calm")}
    assert "is Ready" in cluster.fails(5, "node", "delete", "n2", "--force", "--yes")

    def phases() -> set[str]:
        return {cluster.vm(name)["status"]["phase"] for name in before}

    with ExitStack() as stack:
        return_n2, return_n3 = (stack.enter_context(cut_off(cluster, node)) for node in ("n2", "n3"))
        until(lambda: phases() == {"Unknown"}, cluster)
        assert {name: one_guest(cluster, name) for name in before} == {name: pid for name, (_, pid) in before.items()}

        return_n3()  # back before anybody gave up: nothing has happened to its guest
        until(lambda: cluster.vm("calm")["status"]["phase"] == "Running", cluster)
        until(
            lambda: cluster.run("vm", "exec", "calm", "--", "true").returncode == 0, cluster
        )  # the gateway finds it again
        assert (boot_id(cluster, "calm"), one_guest(cluster, "calm")) == before["calm"]

        told = cluster.run("node", "delete", "n2", "--force", "--yes").stderr.decode()
        assert "without their root disks: vm/app" in told and "vm/ledger" in told and "precious" in told
        until(lambda: cluster.vm("app")["status"]["phase"] == "Running", cluster)
        assert cluster.vm("app")["status"]["node"] != "n2" and boot_id(cluster, "app") != before["app"][0]
        # Its data lies on n2: no empty disk is taken for it, and no second copy is started.
        assert cluster.vm("ledger")["status"]["phase"] == "Pending"
        assert one_guest(cluster, "ledger") == before["ledger"][1]
        fresh = boot_id(cluster, "app")

        return_n2()
        until(lambda: phases() == {"Running"}, cluster)
        until(lambda: before["app"][1] not in cluster.pids("guest=app"), cluster, 30)
    settled(cluster)
    until(lambda: cluster.run("vm", "exec", "ledger", "--", "true").returncode == 0, cluster)
    assert (boot_id(cluster, "ledger"), one_guest(cluster, "ledger")) == before["ledger"]
    assert cluster.vm("ledger")["status"]["node"] == "n2"
    assert one_guest(cluster, "app") != before["app"][1] and boot_id(cluster, "app") == fresh
    no_orphans(cluster)
    cluster.ok("vm", "delete", "ledger", "--yes")
    cluster.ok("volume", "delete", "precious", "--yes")
