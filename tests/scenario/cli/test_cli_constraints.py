"""Constraints as a person meets them: what is typed, refused, waited for, explained, and kept from being deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.scenario.cli_lab import Fabric, Said, start_fabric

TINY = ["--image", "tiny", "--cpu", "0.1", "--memory", "64M"]


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with start_fabric() as made:
        for node, storage, zone in (("n1", "nvme", "a"), ("n2", "hdd", "b")):
            assert made.weft("label", f"node/{node}", f"storage={storage}", f"zone={zone}").code == 0
        yield made


def create(fabric: Fabric, name: str, *more: str) -> Said:
    return fabric.weft("vm", "create", name, *TINY, *more)


def node_of(fabric: Fabric, name: str) -> str:
    return str(json.loads(fabric.weft("vm", "get", name, "-o", "json").out)["status"]["node"])


def test_a_constraint_decides_and_explain_tells(fabric: Fabric) -> None:
    said = create(fabric, "db", "--constraint", "storage=hdd,memory>=1GB", "--prefer", "zone in (a,b)")
    assert said.code == 0, said.err
    assert node_of(fabric, "db") == "n2"
    told = fabric.weft("explain", "vm/db").out
    assert "storage is nvme, wanted hdd" in told
    assert "zone in (a,b)" in told
    said = create(fabric, "edge", "--constraint", "zone=b", "--prefer", "loction=edge;weight=0.2;priority=1")
    assert "note: no node has loction; did you mean location?" in said.err
    spec = json.loads(fabric.weft("vm", "get", "edge", "-o", "json").out)["spec"]
    assert spec["prefer"] == ["loction=edge;weight=0.2;priority=1"]
    assert fabric.weft("vm", "set", "edge", "--prefer", "", "--constraint", "").code == 0
    spec = json.loads(fabric.weft("vm", "get", "edge", "-o", "json").out)["spec"]
    assert (spec["prefer"], spec["constraint"]) == ([], None)


def test_a_wrong_one_is_shown_at_its_character(fabric: Fabric) -> None:
    said = create(fabric, "x", "--constraint", "storage=nvme,memory=>32GB")
    assert said.code == 2
    assert said.err == (
        "error: --constraint: character 20: '=>' is not an operator\n"
        "  storage=nvme,memory=>32GB\n"
        "                     ^^\n"
        "did you mean >=?\n"
    )
    said = create(fabric, "x", "--constraint", "memory>8GB AND memory<4GB")
    assert said.code == 2
    assert "memory>8GB (character 1) and memory<4GB (character 16)" in said.err
    said = create(fabric, "x", "--prefer", "zone=a;weight=2")
    assert (said.code, "--prefer: weight '2' is not a number from 0 to 1" in said.err) == (2, True)
    assert fabric.weft("get", "vm/x").code == 3
    assert create(fabric, "x").code == 0
    said = fabric.weft("vm", "set", "x", "--constraint", "zone=a,zone=b")
    assert (said.code, "  zone=a,zone=b\n         ^^^^^^\n" in said.err) == (2, True), said.err


def test_a_named_one_is_waited_for_and_kept_while_it_is_used(fabric: Fabric) -> None:
    said = create(fabric, "later", "--constraint", "@fast-disk")
    assert said.code == 6
    assert 'constraintNotReady: constraint "fast-disk" does not exist' in said.err
    made = fabric.weft(
        "constraint", "create", "fast-disk", "--expression", "storage=nvme", "--description", "databases"
    )
    assert made.code == 0, made.err
    assert fabric.weft("explain", "vm/later").out.count("does not exist") <= 1
    assert create(fabric, "typo", "--constraint", "@fast-dsik").code == 6
    why = fabric.weft("explain", "vm/typo").out
    assert why.count('constraint "fast-dsik" does not exist; did you mean @fast-disk?') == 1, why
    assert fabric.weft("delete", "vm/typo", "--yes").code == 0
    assert fabric.weft("wait", "vm/later", "--for=phase=Running", "--timeout", "20s").code == 0
    assert node_of(fabric, "later") == "n1"
    said = create(fabric, "torn", "--constraint", "@fast-disk AND storage=hdd")
    assert said.code == 2
    assert "storage=hdd (character 16) and storage=nvme (character 1 of constraint fast-disk)" in said.err
    said = fabric.weft("delete", "constraint/fast-disk", "--yes")
    assert (said.code, "in use by vm/later" in said.err) == (5, True)
    assert fabric.weft("constraint", "create", "c", "--expression", "@fast-disk").code == 2
    assert fabric.weft("delete", "vm/later", "--yes").code == 0
    assert fabric.weft("delete", "constraint/fast-disk", "--yes").code == 0


def test_manifests_take_both_forms_and_applying_again_changes_nothing(fabric: Fabric, tmp_path: Path) -> None:
    manifest = tmp_path / "web.yaml"
    manifest.write_text(
        """
kind: vm
name: web
spec:
  image: tiny
  memory: 64M
  constraint: {op: or, of: [{attribute: zone, op: in, value: [b, c]}, "@unused"]}
  prefer:
    - {expression: {attribute: storage, op: neq, value: nvme}, weight: 0.8}
---
kind: constraint
name: unused
spec: {expression: {attribute: cpu, op: gt, value: 999}, soft: true}
"""
    )
    said = fabric.weft("apply", "-f", str(manifest))
    assert said.code == 0, said.err
    assert node_of(fabric, "web") == "n2"
    spec = json.loads(fabric.weft("vm", "get", "web", "-o", "json").out)["spec"]
    assert spec["constraint"] == "zone in (b,c) OR @unused"
    assert spec["prefer"] == ["storage!=nvme;weight=0.8"]
    again = fabric.weft("apply", "-f", str(manifest))
    assert again.code == 0
    assert again.out.count("unchanged") == 2, again.out
    toml = tmp_path / "wrong.toml"
    toml.write_text('kind = "vm"\nname = "t"\n[spec]\nimage = "tiny"\nconstraint = "zone = = a"\n')
    said = fabric.weft("apply", "-f", str(toml))
    assert said.code == 2
    assert "wrong.toml:5:" in said.err and "the value after = is missing" in said.err
