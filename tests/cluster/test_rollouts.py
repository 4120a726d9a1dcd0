"""Rollouts on a real cluster: a deployment is updated while it is asked, goes back by itself, switches as a whole set; its
controllers are killed on the way; and a single VM gets another version."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, until
from tests.cluster.load import Load, ask_steadily

pytestmark = pytest.mark.host
SERVE = "mkdir -p /tmp/w; echo %s > /tmp/w/index.html; trap 'exit 0' TERM; httpd -f -p 8080 -h /tmp/w & wait"
STATUS = {"phase", "strategy", "revision", "ready", "updated", "verdict"}
REPLICAS, RATE = 2, 40


@pytest.fixture
def shop(cluster: Cluster, registry: str) -> Iterator[list[str]]:
    """A deployment of two containers, v1, behind a service: where it is asked."""
    port = cluster.free_port()
    cluster.ok(
        "service", "create", "shop", *("--selector", "app=roll", "--port", "80:8080"),
        *("--publish", f"{port}:80", "--drain", "1s"),
    )  # fmt: skip
    words = ["--image", f"{registry}/shop/web:1", "--memory", "32M", "--cpu", "0.1", "--label", "app=roll"]
    words += ["--replicas", str(REPLICAS), "--min-healthy", "1s", "--grace", "1s"]
    try:
        cluster.ok("deployment", "create", "roll", *words, "--", "sh", "-c", SERVE % "v1")
        yield [f"{cluster.object('node', name)['report']['address']}:{port}" for name in ("n1", "n2", "n3")]
    finally:
        cluster.run("deployment", "delete", "roll", "--yes")
        cluster.run("service", "delete", "shop", "--yes")


def read_status(cluster: Cluster, code: int) -> dict[str, Any]:
    done = cluster.run("rollout", "status", "roll", "-o", "json")
    assert done.returncode == code, done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    assert set(found) == STATUS
    return found


def await_version(load: Load, version: str) -> None:
    """Until all that began in the last second were answered by that version."""
    until(lambda: set(load.said(time.time() - 1.0)) == {version}, 30)


def test_a_deployment_is_updated_goes_back_and_switches_without_a_failed_request(
    cluster: Cluster, shop: list[str]
) -> None:
    with ask_steadily(shop, RATE) as load:
        await_version(load, "v1")
        cluster.ok("deployment", "update", "roll", "--detach", "--", "sh", "-c", SERVE % "v2")
        until(lambda: cluster.object("deployment", "roll")["status"]["updated"] == 1)
        os.kill(cluster.pid("weft server controllers"), 9)
        until(lambda: cluster.run("rollout", "status", "roll").returncode == 0)
        status = read_status(cluster, 0)
        assert (status["phase"], status["strategy"], status["revision"]) == ("Promoted", "rolling", 2)
        await_version(load, "v2")

        update = ("deployment", "update", "roll", "--rollback-on-failure")
        said = cluster.run(*update, "--", "sh", "-c", "exit 1")
        assert said.returncode == 1 and b"is RolledBack: roll-3-0 restarted 2 times" in said.stderr
        status = read_status(cluster, 1)
        assert (status["phase"], status["revision"], status["ready"]) == ("RolledBack", 2, REPLICAS)
        assert "again" in status["verdict"]

        parallel = ("--strategy", "blue-green", "--traffic-split", "25%")
        cluster.ok("deployment", "update", "roll", *parallel, "--", "sh", "-c", SERVE % "v4")  # it waits, as asked
        assert read_status(cluster, 1)["phase"] == "Paused"
        until(lambda: set(load.said(time.time() - 1.0)) == {"v2", "v4"}, 30)
        cluster.ok("rollout", "resume", "roll")
        await_version(load, "v4")
        cluster.ok("rollout", "undo", "roll")
        await_version(load, "v2")
        assert read_status(cluster, 1)["phase"] == "RolledBack"
    assert load.failures() == [] and len(load.requests) > 100


def test_a_single_vm_is_adopted_changed_in_its_place_once_its_port_answers_and_left(cluster: Cluster) -> None:
    publish, serve = f"{cluster.free_port()}:80", ("vm", "exec", "lone", "--", "httpd", "-p", "80", "-h", "/")
    cluster.ok("vm", "create", "lone", "--image", "tiny", "--memory", "128M", "--publish", publish)
    try:
        cluster.ok(*serve)
        uid = cluster.vm("lone")["uid"]
        config = cluster.folder / "lone.yaml"
        config.write_text("kind: vm\nname: lone\nspec: {image: tiny, memory: 128M, restart: always}\n")
        said = cluster.run("vm", "update", "lone", "--config", str(config), "--rollback-on-failure", "--live-migrate")
        assert said.returncode == 0, said.stderr
        vm = cluster.vm("lone")
        assert (vm["uid"], vm["spec"]["restart"], vm["owner"]["kind"]) == (uid, "always", "deployment")
        cluster.ok("deployment", "set", "lone", "--min-healthy", "1s")
        # It restarts, without that program.
        config.write_text(config.read_text().replace("tiny,", 'tiny, screen: "yes",'))
        cluster.ok("vm", "update", "lone", "--config", str(config), "--detach")
        until(lambda: "answers on its TCP port 80" in cluster.object("deployment", "lone")["status"]["message"], 30)
        assert cluster.object("deployment", "lone")["status"]["phase"] == "Progressing"
        cluster.ok(*serve)
        until(lambda: cluster.run("rollout", "status", "lone").returncode == 0, 30)
        cluster.ok("deployment", "delete", "lone", "--yes")
        assert cluster.vm("lone")["uid"] == uid
    finally:
        cluster.run("deployment", "delete", "lone", "--yes")
        cluster.run("vm", "delete", "lone", "--yes")
