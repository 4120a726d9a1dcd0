"""A second machine joins: a namespace of its own, an empty home, nothing but an address, a token and a fingerprint."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import WEFT, Cluster

pytestmark = pytest.mark.host


FIRST = "for second in $(seq 600); do sleep 1; done"  # takes leave of ended children, as a first process must


class Machine:
    """A network, mount and process namespace on the cluster's underlay, with an empty home."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        topology = json.loads((cluster.state / "cluster.json").read_text())
        network = ipaddress.ip_network(topology["underlay"])
        self.server = f"https://{network[1]}:{topology['api_port']}"
        self.address, self.folder = str(network[99]), folder
        self.cgroup = f"weft/second-{topology['id']}"
        self.link = f"{topology['link_prefix'] if 'link_prefix' in topology else 'w' + topology['id'][:3]}x4"
        bridge = f"w{topology['id'][:3]}br"
        (folder / "home").mkdir()
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder / "home")}
        self.keeper = subprocess.Popen(
            ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", FIRST],
            env=self.environment,
        )
        deadline = time.monotonic() + 60
        while not (children := self._children()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.first = children[0]
        for line in (
            f"ip link add {self.link} type veth peer name eth0 netns {self.first}",
            f"ip link set {self.link} master {bridge} up",
        ):
            subprocess.run(line.split(), check=True)
        self.run(
            "sh",
            "-c",
            f"mkdir -p /run/netns; mount -t tmpfs none /run/netns; ip link set lo up; ip link set eth0 up; "
            f"ip addr add {self.address}/{network.prefixlen} dev eth0; ip route add default via {network[1]}",
        )

    def _children(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children").read_text().split()
        ]

    def command(self, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self.first), "-n", "-m", "-p", *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words), env=self.environment, capture_output=True, text=True, timeout=60)

    def end(self) -> None:
        os.kill(self.first, signal.SIGKILL)
        self.keeper.wait()
        subprocess.run(["ip", "link", "del", self.link], capture_output=True)
        for group in Path("/sys/fs/cgroup").glob(f"*/{self.cgroup}"):
            for folder in (
                "functions",
                "agent",
                "beside",
                "",
            ):  # its guests' groups are gone, and no function ran there
                if (group / folder).exists():
                    (group / folder).rmdir()


@pytest.fixture
def machine(cluster: Cluster, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(cluster, tmp_path)
    try:
        yield made
    finally:
        made.end()


def test_a_second_machine_joins_runs_a_guest_and_leaves(cluster: Cluster, machine: Machine) -> None:
    said = cluster.ok("token", "create", "--join", "--node", "n4")
    token = re.search(r"weft_[A-Za-z0-9_-]+", said)
    digest = re.search(r"\b[0-9a-f]{64}\b", said)
    assert token and digest, said
    state = machine.folder / "state"

    def join(*, node: str = "n4", secret: str = token[0], sha256: str = digest[0]) -> subprocess.CompletedProcess[str]:
        return machine.run(
            WEFT,
            "agent",
            "join",
            machine.server,
            "--token",
            secret,
            "--ca-sha256",
            sha256,
            "--state",
            str(state),
            "--node",
            node,
            "--address",
            machine.address,
        )

    wrong = join(secret="weft_nobody_" + "A" * 43)
    assert wrong.returncode == 4 and "token" in wrong.stderr, wrong.stderr
    stranger = join(sha256="0" * 64)
    assert stranger.returncode != 0 and "sha256" in stranger.stderr.lower().replace("-", ""), stranger.stderr
    other = join(node="n1")
    assert other.returncode in (4, 5), "an agent joined under another node's name"
    assert not (state / "node.json").exists()

    done = join()
    assert done.returncode == 0, done.stderr
    again = join(node="n5")
    assert again.returncode != 0, "a token was used twice"

    log = (machine.folder / "agent.log").open("w")
    agent = subprocess.Popen(
        machine.command(WEFT, "agent", "n4", "--state", str(state), "--link-prefix", "wt4", "--cgroup", machine.cgroup),
        env=machine.environment,
        stdout=log,
        stderr=log,
    )
    try:
        cluster.ok("wait", "node/n4", "--for=condition=Ready", "--timeout", "60s")
        cluster.ok("vm", "create", "far", "--image", "tiny", "--memory", "128M", "--node", "n4")
        assert cluster.ok("vm", "exec", "far", "--", "hostname").strip() == "far"
        cluster.ok("vm", "delete", "far", "--yes")
        assert list((machine.folder / "home").iterdir()) == []
    except AssertionError:
        print((machine.folder / "agent.log").read_text()[-3000:], file=sys.stderr)
        raise
    finally:
        agent.terminate()
        agent.wait(30)
    cluster.ok("node", "delete", "n4", "--yes")
    assert cluster.run("get", "node/n4").returncode == 3
    shutil.rmtree(state)
