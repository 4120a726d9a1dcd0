"""`weft vm update`, `vm deploy` and the deletion of what they made, against a real server and agents: what a person is told of
the VM that is replaced, and asked before its root disk stays behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.cli_lab import Fabric, start_fabric


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with start_fabric() as fabric:
        yield fabric


def write(fabric: Fabric, **spec: Any) -> str:
    """A file with a VM's spec; its name."""
    path = fabric.folder / "vm.json"
    path.write_text(json.dumps({"image": "tiny", "memory": "128M", "cpu": 0.5, **spec}))
    return str(path)


def names(fabric: Fabric) -> dict[str, str]:
    listed = json.loads(fabric.weft("vm", "list", "-o", "json").out)["items"]
    return {one["name"]: one["status"]["phase"] for one in listed}


def port_of(fabric: Fabric, port: int) -> str:
    found = json.loads(fabric.weft("get", f"publishedport/tcp-{port}", "-o", "json").out)
    return str(found["spec"]["workload"]["name"])


NEW = "#!/bin/sh\necho two"


def test_a_vm_that_is_replaced_takes_its_port_along_and_leaves_its_disk_only_if_people_say_so(fabric: Fabric) -> None:
    file = write(fabric, publish=["18091:80"], node="n1")
    assert fabric.weft("vm", "create", "pet", "--config", file).code == 0
    same = fabric.weft("vm", "update", "pet", "--config", file)
    assert (same.code, same.out) == (0, "vm/pet  unchanged\n"), same.err
    assert (
        fabric.weft("get", "deployment/pet").code == 3
        and not json.loads(fabric.weft("get", "snapshot", "-o", "json").out)["items"]
    )
    file = write(fabric, publish=["18091:80"], node="n1", user_data=NEW)
    update = ["vm", "update", "pet", "--config", file, "--health-check-timeout", "60s"]
    preview = fabric.weft(*update, "--dry-run")
    assert preview.code == 0, preview.err
    assert "is replaced by pet-2-0" in preview.out
    for words in ("goes along: port 18091:80", "stays with vm/pet: its root disk", "is stopped and kept"):
        assert words in preview.out
    refused = fabric.weft(*update)
    assert (refused.code, names(fabric)) == (2, {"pet": "Running"})
    assert "--replace-root-disk" in refused.err
    assert "its root disk" in refused.err
    assert "weft delete" not in refused.err
    assert fabric.weft("get", "deployment/pet").code == 3
    done = fabric.weft(*update, "--replace-root-disk")
    assert done.code == 0, done.err
    assert "stays with vm/pet: its root disk" in done.err
    assert port_of(fabric, 18091) == "pet-2-0"
    assert fabric.weft(*update).out == "deployment/pet  unchanged\n"
    assert fabric.weft("wait", "vm/pet", "--for=phase=Stopped").code == 0
    new = json.loads(fabric.weft("get", "vm/pet-2-0", "-o", "json").out)["spec"]
    assert (new["publish"], new["node"], new["user_data"]) == (["18091:80"], "n1", NEW)
    assert fabric.weft("rollout", "undo", "pet").code == 0
    assert port_of(fabric, 18091) == "pet"
    assert fabric.weft("wait", "vm/pet", "--for=phase=Running").code == 0
    assert fabric.weft("vm", "delete", "pet-2-0", "--yes").code == 0
    lost = fabric.weft("rollout", "undo", "pet", "--to", "2")
    assert lost.code == 5
    assert "vm/pet-2-0, which had that version, was deleted" in lost.err
    assert names(fabric) == {"pet": "Running"}


def test_what_a_file_would_drop_is_refused_and_leaves_nothing_half_done(fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "cat", "--config", write(fabric)).code == 0
    said = fabric.weft("vm", "update", "cat", "--config", write(fabric, publish=["18092:80"], user_data=NEW))
    assert said.code == 2
    assert "spec.publish: an update doesn't change it: vm/cat has none" in said.err
    said = fabric.weft("vm", "update", "cat", "--config", write(fabric, user_data=NEW), "--live-migrate")
    assert "vm/cat can't take these changes while it runs: user_data (replace)" in said.err
    assert "leave out --live-migrate, or those changes" in said.err
    said = fabric.weft("vm", "set", "cat", "--user-data", NEW)
    assert "weft vm update cat --config FILE lets another VM take its place" in said.err
    assert fabric.weft("get", "deployment/cat").code == 3


@pytest.mark.long
def test_flags_of_the_strategy_stay_for_later_updates_and_a_live_migration_is_this_updates_own(fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "dog", "--config", write(fabric)).code == 0
    for cpu, flags, stays in (("0.2", ["--live-migrate", "--rollback-on-failure"], True), ("0.3", [], False)):
        assert fabric.weft("vm", "update", "dog", "--config", write(fabric, cpu=cpu), *flags).code == 0
        strategy = json.loads(fabric.weft("get", "deployment/dog", "-o", "json").out)["spec"]["strategy"]
        assert (strategy["live_migrate"], strategy["rollback_on_failure"]) == (stays, True)


def test_a_version_that_fits_nowhere_beside_the_vm_is_refused_before_that_stops(fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "big", "--config", write(fabric, memory="5G")).code == 0
    where = json.loads(fabric.weft("get", "vm/big", "-o", "json").out)["status"]["node"]
    file = write(fabric, memory="5G", node=where, user_data=NEW)
    said = fabric.weft("vm", "update", "big", "--config", file, "--replace-root-disk")
    assert said.code == 6
    assert "no node can take another VM beside vm/big, which keeps its place while it is stopped" in said.err
    assert fabric.weft("get", "deployment/big").code == 3
    assert fabric.weft("vm", "delete", "big", "--yes").code == 0


@pytest.mark.long
def test_a_deletion_of_the_deployment_names_what_stays_and_leaves_the_vm_that_people_named(fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "old", "--config", write(fabric)).code == 0
    deploy = ["vm", "deploy", "fresh", "--config", write(fabric, user_data=NEW), "--parallel-to", "old"]
    said = fabric.weft(*deploy, "--keep-old", "0s", "--replace-root-disk", "--health-check-timeout", "60s")
    assert said.code == 0, said.err
    assert "no service leads to vm/old: vm/fresh gets no requests until it is promoted" in said.err
    assert "Paused" in said.out and "Nothing is promoted yet: weft rollout resume old" in said.out
    assert fabric.weft("rollout", "resume", "fresh").code == 0
    assert fabric.weft("wait", "vm/old", "--for=phase=Stopped").code == 0
    refused = fabric.weft("delete", "deployment/old")
    assert refused.code == 2
    assert "vm/fresh" in refused.err
    assert fabric.weft("delete", "deployment/old", "--yes").code == 0
    there = names(fabric)
    assert (there["old"], there["fresh"]) == ("Stopped", "Running")


def test_a_deployment_of_its_own_instances_names_them_before_it_is_deleted(fabric: Fabric, tmp_path: Path) -> None:
    create = ["deployment", "create", "many", "--vm", "--image", "tiny", "--memory", "64M", "--cpu", "0.1"]
    kept = ["--monitor-duration", "20s"]  # for a later canary
    assert fabric.weft(*create, "--replicas", "2", "--health-check-timeout", "60s", *kept).code == 0
    update = ["deployment", "update", "many", "-f", write(fabric, publish=["18099:80"], user_data=NEW)]
    said = fabric.weft(*update)
    assert said.code == 2
    assert "publish: instances of a deployment don't support it" in said.err
    shown = fabric.weft("rollout", "history", "many", "--revision", "1")
    assert shown.code == 0 and "\nkind: vm\n" in shown.out and "  image: tiny\n" in shown.out
    assert "no revision 7; there are: 1" in fabric.weft("rollout", "history", "many", "--revision", "7").err
    alone = fabric.weft("set", "vm/many-1-0", "--memory", "96M", "--detach")
    assert alone.code == 0 and "belongs to deployment/many, whose other instances keep what they have" in alone.err
    refused = fabric.weft("delete", "deployment/many")
    assert refused.code == 2
    assert "vm/many-1-0" in refused.err
    assert "vm/many-1-1" in refused.err
    assert fabric.weft("delete", "deployment/many", "--yes").code == 0
