"""Which runtime an agent is told to give its containers to, and what a local node runs beside its agent."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.driver.container import ContainerPlan, ContainerProcess
from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.runtime import RuntimeDriver
from weft.drivers.container.end import ContainerEnd
from weft.drivers.runtime.oci.kata.driver import KataDriver
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.record import ContainerRecord, write_record
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.launch.agent.drivers import load_drivers, load_isolated
from weft.launch.agent.options import read_container_runtime, read_isolated_runtime
from weft.launch.local import init
from weft.launch.local.fabric import containerd_socket, prepare_containerd
from weft.launch.local.topology import Taken, plan_topology


@pytest.mark.parametrize("text", ["auto", "crun", "runc", "none", "containerd", "containerd=/run/k3s/s"])
def test_a_runtime_is_one_of_those_that_are_known(text: str) -> None:
    assert read_container_runtime(text) == text


@pytest.mark.parametrize("text", ["docker", "crun=/x", "containerd=", "containerd=run/s", ""])
def test_what_is_none_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        read_container_runtime(text)


@pytest.mark.parametrize("text", ["microvm", "kata", "kata-clh", "kata=/run/k3s/s", "kata-qemu-snp=/s"])
def test_a_runtime_of_machines_is_weft_s_own_or_one_of_kata_s(text: str) -> None:
    assert read_isolated_runtime(text) == text


@pytest.mark.parametrize("text", ["runc", "qemu", "kata_clh", "kata=", "kata=run/s", "microvm=/s", "Kata", ""])
def test_what_shares_the_node_s_kernel_is_no_runtime_of_machines(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        read_isolated_runtime(text)


def make_host(folder: Path) -> Host:
    places = {"state_dir": str(folder / "state"), "run_dir": str(folder / "run")}
    capacity = Capacity(cpu=1, memory_bytes=1 << 30, disk_bytes=1 << 30)
    return Host(
        "n1", "u", **places, link_prefix="w", underlay_address="::1", underlay_link="lo", cgroup="w", capacity=capacity
    )


@pytest.mark.parametrize(("runtime", "containers"), [("fake", "crun"), ("fake", "none")])
def test_a_node_has_a_guard_where_a_guest_is_real(tmp_path: Path, runtime: str, containers: str) -> None:
    options = argparse.Namespace(
        runtime=runtime, container_runtime=containers, network="fake", volume="fake", pool=[], plain_registry=[]
    )
    assert (load_drivers(options, make_host(tmp_path), SystemClock()).guard is not None) == (containers == "crun")


async def test_what_another_runtime_left_is_cared_for_by_it(tmp_path: Path) -> None:
    host = make_host(tmp_path)

    def load(text: str) -> tuple[RuntimeDriver[Any], RuntimeDriver[Any]]:
        told = argparse.Namespace(isolated_runtime=text, microvm_dir=tmp_path)
        return load_isolated(told, host, SystemClock(), QemuDriver(host), "/held")

    assert [driver.name for driver in load("kata-clh=/s")] == ["kata", "microvm"]
    plan = ContainerPlan("c2", "u2", "web", 1, ["/l"], ContainerProcess(["serve"]), 1.0, 1 << 20)
    state = tmp_path / "state/kata/containers/c2"
    record = ContainerRecord(
        plan, "io.containerd.kata-clh.v2", "boot", 1.0, held_by="/before", end=ContainerEnd("stopped", "x")
    )
    write_record(ContainerPaths(run=state, state=state), record)
    offered, other = load("microvm")
    assert (offered.name, other.name) == ("microvm", "kata") and isinstance(other, KataDriver)
    assert (other._containerd, other._wanted) == ("/before", "io.containerd.kata-clh.v2")
    assert [facts.state for facts in await other.recover()] == ["stopped"] and await offered.recover() == []
    assert (await load("kata-clh=/s")[1].inspect("c2")).state == "absent"
    await other.close()


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A state folder with a node in it."""
    for name in ("nodes/n3", "log"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_a_node_runs_beside_its_agent_what_its_command_names(kept: Path) -> None:
    assert init.start_beside("n3", str(kept)) == 0  # no command yet
    command = {"argv": ["/bin/true"], "env": {}, "beside": ["/bin/sh", "-c", "echo here"]}
    (kept / "nodes/n3/agent.json").write_text(json.dumps(command))
    pid = init.start_beside("n3", str(kept))
    assert os.waitpid(pid, 0)[1] == 0
    assert (kept / "log/beside-n3.log").read_text() == "here\n"
    (kept / "nodes/n3/agent.json").write_text(json.dumps({**command, "beside": []}))
    assert init.start_beside("n3", str(kept)) == 0


def test_a_local_containerd_keeps_all_in_the_folders_of_its_node(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    topology = plan_topology(str(kept), Taken(), containerd=("n3",))
    node = topology.nodes[2]
    Path(topology.node_state_dir(node)).mkdir(parents=True)
    program, _, config = prepare_containerd(topology, node)
    assert program == "/usr/bin/containerd"
    told = Path(config).read_text()
    assert f'address = "{containerd_socket(topology, node)}"' in told
    assert f'root = "{topology.node_state_dir(node)}/' in told and f'state = "{topology.node_run_dir(node)}/' in told
