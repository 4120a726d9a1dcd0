"""A node that dies, in a fabric of processes: its VM goes on elsewhere with its disk, and the node returns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.bmc_lab import PASSWORD, USER, run_redfish
from tests.scenario.cli_lab import FAKES, NODE, Fabric, start_fabric


@pytest.fixture
def fabric(tmp_path: Path) -> Iterator[Fabric]:
    (tmp_path / "san").mkdir()
    with start_fabric(agent_options=["--pool", f"san={tmp_path / 'san'}"]) as made:
        made.pool = ["--pool", f"san={tmp_path / 'san'}"]  # type: ignore[attr-defined]
        yield made


def read(fabric: Fabric, *words: str) -> Any:
    said = fabric.weft("get", *words, "-o", "json")
    assert said.code == 0, said.err
    return json.loads(said.out)


def until(fabric: Fabric, seconds: float, true: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, fabric.logs()
        time.sleep(0.2)
    return time.monotonic() - began


def runs_on(fabric: Fabric, node: str) -> bool:
    status = read(fabric, "vm/db")["status"]
    return bool((status["phase"], status.get("node")) == ("Running", node))


def kill_agent(fabric: Fabric, index: int) -> None:
    fabric._processes[index].kill()
    fabric._processes[index].wait()


def start_agent(fabric: Fabric, name: str) -> None:
    state = ["--state", str(fabric.folder / name), "--run-dir", str(fabric.folder / f"r{name}")]
    fabric._launch(name, "agent", name, *state, *FAKES, *NODE, *fabric.pool)  # type: ignore[attr-defined]


def places(fabric: Fabric) -> list[tuple[str, str]]:
    found = [one["spec"] for one in read(fabric, "allocations")["items"]]
    return sorted((one["node"], one.get("role", "active")) for one in found)


def make_vm(fabric: Fabric) -> None:
    made = fabric.weft(
        "vm", "create", "db", "--image", "tiny", "--pool", "san", "--on-node-loss", "restart", "--prefer",
        "name=n1;weight=1", "--timeout", "30s",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert runs_on(fabric, "n1")


def test_a_vm_of_a_machine_that_is_off_goes_on_within_seconds_and_the_node_returns(
    fabric: Fabric, tmp_path: Path
) -> None:
    with run_redfish(tmp_path / "redfish") as bmc:
        values = {"user": USER, "password": PASSWORD, "fingerprint": bmc.fingerprint}
        given = [word for key, value in values.items() for word in ("--value", f"{key}={value}")]
        assert fabric.weft("secret", "create", "bmc", *given).code == 0
        url = f"redfish://{bmc.host}:{bmc.port}"
        assert fabric.weft("node", "set", "n1", "--power", url, "--power-secret", "default/bmc").code == 0
        make_vm(fabric)
        assert fabric.weft("node", "power", "n1", "off", "--force", "--timeout", "30s").code == 0
        time.sleep(3.0)  # in which the BMC's word would have freed it: that is judged every second
        assert places(fabric) == [("n1", "active")], "it is heard, whatever its BMC says"
        kill_agent(fabric, 1)
        until(fabric, 60.0, lambda: runs_on(fabric, "n2"))  # before the guard's time is over
        assert places(fabric) == [("n1", "lost"), ("n2", "active")]
        assert len(list((tmp_path / "san").rglob("*.qcow2"))) == 2, "one disk by two names"
        start_agent(fabric, "n1")
        until(fabric, 20.0, lambda: read(fabric, "node/n1")["status"]["phase"] == "Ready")
        until(fabric, 20.0, lambda: places(fabric) == [("n2", "active")])
        assert len(list((tmp_path / "san").rglob("*.qcow2"))) == 1 and runs_on(fabric, "n2")


@pytest.mark.long  # the guard's whole time
def test_a_person_confirms_that_a_node_is_off_while_a_server_dies_too(fabric: Fabric) -> None:
    make_vm(fabric)
    said = fabric.weft("node", "confirm-off", "n1")
    assert said.code == 5 and "node/n1 is Ready, so it isn't off" in said.err, said.err
    kill_agent(fabric, 1)
    until(fabric, 60.0, lambda: read(fabric, "node/n1")["status"]["phase"] == "NotReady")
    said = fabric.weft("explain", "vm/db")
    assert "it restarts elsewhere once the node is known to be off: weft node confirm-off n1" in said.out
    said = fabric.weft("describe", "node/n1")
    assert "weft node confirm-off n1" in " ".join(said.out.split())
    said = fabric.weft("node", "confirm-off", "n1")
    assert said.code == 0, said.err
    fabric.server.kill()
    fabric.server.wait()
    fabric.start_server()
    until(fabric, 90.0, lambda: runs_on(fabric, "n2"))
    ended = [one["status"]["ended_by"] for one in read(fabric, "allocations")["items"] if one["spec"]["role"] == "lost"]
    assert [one["by"] for one in ended] == ["person"]
    start_agent(fabric, "n1")
    until(fabric, 30.0, lambda: places(fabric) == [("n2", "active")])


def test_a_second_copy_is_deleted_and_changed_by_the_vm_alone(fabric: Fabric) -> None:
    made = fabric.weft("vm", "create", "db", "--image", "tiny", "--copies", "2", "--timeout", "30s")
    assert made.code == 0, made.err

    def count(kind: str) -> int:
        return len(read(fabric, kind)["items"])

    until(fabric, 30.0, lambda: count("replicas") == 1)
    for argv in (
        ("replication", "delete", "db-copy", "--yes"),
        ("replica", "delete", "db-copy", "--yes"),
        ("replica", "set", "db-copy", "--keep", "5"),
    ):
        said = fabric.weft(*argv)
        assert said.code == 5 and f"{argv[0]}/db-copy is the second copy of vm/db" in said.err, said.err
        assert "weft vm set db --copies 1 takes it away" in said.err, said.err
    assert (
        not read(fabric, "replication/db-copy")["deleting_since"]
        and not read(fabric, "replica/db-copy")["deleting_since"]
    )
    assert fabric.weft("replication", "set", "db-copy", "--rpo", "30s", "--detach").code == 0
    until(fabric, 30.0, lambda: read(fabric, "replica/db-copy")["spec"]["rpo"] == 30.0)
    assert fabric.weft("vm", "set", "db", "--copies", "1").code == 0
    until(fabric, 60.0, lambda: count("replications") == 0 and count("replicas") == 0)
