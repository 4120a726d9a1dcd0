"""Time machine (design, part 2): a newer server over older agents, and back: no field lost, no guest restarted."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_lab import Fabric, start_fabric

import weft

# What the next weft might have: a field more in a spec, in a list deep inside, and in the envelope; and another schema.
NEXT = (
    ("__init__.py", '__version__ = "0.1.0"', '__version__ = "0.9.0"'),
    (
        "objects/envelope.py",
        "    finalizers: list[str] = []",
        '    era: str = "next"\n    finalizers: list[str] = []',
    ),
    (
        "kinds/allocation.py",
        "    network: str\n    network_uid: str\n",
        '    hue: str = "red"\n    network: str\n    network_uid: str\n',
    ),
    (
        "kinds/vm.py",
        "class VmSpec(WorkloadSpec, msgspec.Struct, kw_only=True):\n",
        'class VmSpec(WorkloadSpec, msgspec.Struct, kw_only=True):\n    motto: Annotated[str, field("Motto")] = "none"\n',
    ),
    (
        "kinds/network.py",
        "class NetworkSpec(msgspec.Struct, kw_only=True):\n",
        'class NetworkSpec(msgspec.Struct, kw_only=True):\n    motto: Annotated[str, field("Motto")]\n',
    ),
    (
        "kinds/network.py",
        "NETWORK = Kind(\n",
        "def into_2(stored):\n"
        '    return {**stored, "spec": {**stored["spec"], "motto": "upgraded"}}\n\n\n'
        "NETWORK = Kind(\n    schema=2,\n    upgrades=(into_2,),\n",
    ),
)


@pytest.fixture
def following(tmp_path: Path) -> Path:
    """The next weft: a copy of this one, changed as releases change things; what is compiled comes along."""
    tree = tmp_path / "next"
    shutil.copytree(Path(weft.__file__).parent, tree / "weft")
    for name, old, new in NEXT:
        path = tree / "weft" / name
        assert old in path.read_text(), f"{name} is not what this test changes"
        path.write_text(path.read_text().replace(old, new, 1))
    return tree


@pytest.fixture
def fabric() -> Iterator[Fabric]:
    with start_fabric() as made:
        yield made


def read(fabric: Fabric, what: str) -> Any:
    said = fabric.weft("get", what, "-o", "json")
    assert said.code == 0, said.err + fabric.logs()
    return json.loads(said.out)


def ok(fabric: Fabric, *argv: str) -> str:
    said = fabric.weft(*argv)
    assert said.code == 0, said.err + fabric.logs()
    return said.err


def lives(fabric: Fabric, name: str) -> tuple[Any, ...]:
    """What would be another after a restart."""
    status = read(fabric, f"vm/{name}")["status"]
    return status["boot_id"], status["started_at"], status["restarts"], status["incarnation"]


def allocation_of(fabric: Fabric, name: str) -> Any:
    items = read(fabric, "allocation")["items"]
    return next(one for one in items if one["spec"]["workload"]["name"] == name)


def tick(fabric: Fabric) -> None:
    """Long enough for agents to report again and controllers to write what they think."""
    time.sleep(3)
    deadline = time.monotonic() + 60
    while not all(node["status"]["phase"] == "Ready" for node in read(fabric, "node")["items"]):
        assert time.monotonic() < deadline, fabric.logs()
        time.sleep(0.2)


def test_a_newer_server_and_back_loses_no_field_and_restarts_no_guest(fabric: Fabric, following: Path) -> None:
    ok(fabric, "vm", "create", "old", "--image", "tiny", "--memory", "128M")
    assert "warning" not in ok(fabric, "vm", "list")
    before = lives(fabric, "old")

    fabric.stop_server()
    fabric.start_server(following)
    tick(fabric)
    assert lives(fabric, "old") == before
    network = read(fabric, "network/default")
    assert (network["schema"], network["spec"]["motto"]) == (2, "upgraded")
    told = ok(fabric, "vm", "list")
    assert told.count("warning: this weft is 0.1.0, the server 0.9.0") == 1, told
    ok(fabric, "vm", "create", "new", "--image", "tiny", "--memory", "128M")
    ok(fabric, "api", "patch", "/v1/projects/default/vms/new", "--data", '{"spec": {"motto": "carpe diem"}}')
    assert allocation_of(fabric, "new")["spec"]["nics"][0]["hue"] == "red"
    new = lives(fabric, "new")

    fabric.stop_server()
    fabric.start_server()
    tick(fabric)
    assert (lives(fabric, "old"), lives(fabric, "new")) == (before, new)
    refused = fabric.weft("label", "network/default", "by=older")  # what a newer schema means would be guesswork
    assert refused.code == 5 and "newer weft" in refused.err and "nothing was changed" in refused.err
    ok(
        fabric, "vm", "stop", "new"
    )  # the API servers write its spec, the controllers its allocation, the node its report
    assert allocation_of(fabric, "new")["spec"]["desired"] == "stop"

    fabric.stop_server()
    fabric.start_server(following)
    tick(fabric)
    assert lives(fabric, "old") == before
    vm, network = read(fabric, "vm/new"), read(fabric, "network/default")
    assert (vm["spec"]["motto"], vm["era"], vm["status"]["phase"]) == ("carpe diem", "next", "Stopped")
    assert (network["spec"]["motto"], network["era"]) == ("upgraded", "next")
    assert allocation_of(fabric, "new")["spec"]["nics"][0]["hue"] == "red"
    ok(fabric, "vm", "start", "new")
    assert [node["report"]["orphans"] for node in read(fabric, "node")["items"]] == [[], []]
