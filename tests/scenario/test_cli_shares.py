"""`weft image share`, and what other projects do with what was shared, against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tests.scenario.cli_lab import Fabric, start_fabric


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with start_fabric() as made:
        yield made


def test_an_image_is_shared_listed_used_and_its_share_withdrawn(fabric: Fabric) -> None:
    for project in ("physics", "biology"):
        assert fabric.weft("project", "create", project).code == 0
    assert fabric.weft("image", "add", "base", str(fabric.folder / "tiny.tar"), "-p", "physics").code == 0
    create = ("vm", "create", "-p", "biology", "--image", "physics/base")
    assert fabric.weft("image", "share", "tiny", "--with", "*").code == 0
    other = fabric.weft("vm", "create", "fold", "--image", "tiny", "-p", "biology")
    assert other.code == 3 and "give default/tiny" in other.err
    assert fabric.weft("image", "share", "tiny", "--stop", "*").code == 0
    refused = fabric.weft(*create, "fold")
    assert refused.code == 3 and "weft image share base -p physics --with biology" in refused.err
    none = fabric.weft("image", "list", "--shared", "-p", "biology")
    assert (none.out, none.err) == ("", "no images that other projects share with project biology\n")
    assert "--shared lists those that" in fabric.weft("image", "list", "-p", "biology").err
    assert "is not the ID of a trace" in fabric.weft("trace", "nope").err

    said = fabric.weft("image", "share", "base", "--with", "biology", "--with", "default", "-p", "physics")
    assert said.code == 0 and "no project" not in said.err, said.err
    typo = fabric.weft("image", "share", "base", "--with", "biologie", "-p", "physics")
    assert typo.code == 3 and 'project "biologie" not found' in typo.err and "did you mean biology?" in typo.err
    assert fabric.weft("project", "create", "biologie", "--dry-run").code == 0, "the name stays free"
    own = fabric.weft("image", "share", "base", "--with", "physics", "-p", "physics")
    assert own.code == 2 and "--with: physics is the project of this image itself" in own.err
    rows = fabric.weft("image", "list", "--shared", "-p", "biology").out.splitlines()
    assert [row.split()[:2] for row in rows] == [["NAME", "PHASE"], ["physics/base", "Available"]]
    (item,) = json.loads(fabric.weft("image", "list", "--shared", "-p", "biology", "-o", "json").out)["items"]
    assert (item["project"], item["name"], item["spec"]) == ("physics", "base", {})
    said = fabric.weft(*create, "fold", "--iso", "physics/base")
    assert said.code == 0, said.err
    assert fabric.weft("vm", "create", "here", "--image", "physics/base").code == 0

    deleted = fabric.weft("image", "delete", "base", "-p", "physics", "--yes")
    assert deleted.code == 5 and "others in project biology" in deleted.err and "fold" not in deleted.err
    assert fabric.weft("image", "share", "base", "--stop", "biology", "-p", "physics").code == 0
    assert fabric.weft(*create, "other").code == 3
    got = json.loads(fabric.weft("vm", "get", "fold", "-p", "biology", "-o", "json").out)
    assert (got["spec"]["image"], got["status"]["phase"]) == ("physics/base", "Running")

    wrong = fabric.weft("image", "share", "base", "-p", "physics")
    assert wrong.code == 2 and "--with PROJECT" in wrong.err
    assert fabric.weft("vm", "list", "--shared").code == 2
    both = fabric.weft("image", "list", "--shared", "-A")
    assert both.code == 2 and "leave out --watch and --all-projects" in both.err
    kind = fabric.weft("list", "vm", "--shared")
    assert kind.code == 2 and "vms can't be shared" in kind.err


def test_a_preview_of_a_conversion_names_the_shared_image_that_the_vm_will_be_made_of(fabric: Fabric) -> None:
    assert fabric.weft("project", "create", "chemistry").code == 0
    added = fabric.weft("image", "add", "base", str(fabric.folder / "tiny.tar"), "-p", "chemistry")
    assert added.code == 0 and fabric.weft("image", "share", "base", "--with", "*", "-p", "chemistry").code == 0
    fabric.weft("container", "create", "web", "--image", "chemistry/base", "--network", "default", "--detach")
    said = fabric.weft("convert", "container/web", "--to", "vm", "--dry-run", "-o", "json")
    assert json.loads(said.out)["spec"]["image"] == "of chemistry/base", said.err
    assert fabric.weft("vm", "create", "disk", "--image", "chemistry/base").code == 0
    refused = fabric.weft("convert", "vm/disk", "--to", "container", "--dry-run")
    assert refused.code != 0 and "of another project" in refused.err and "weft image add" in refused.err
