"""`weft image share`, what other projects do with what was shared, and what they learn of each other, against a real server."""

from __future__ import annotations

import json
import shlex
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
    assert fabric.weft("image", "add", "box", "registry.example.org/a:1", "-p", "chemistry", "--detach").code == 0
    assert fabric.weft("image", "share", "box", "--with", "*", "-p", "chemistry").code == 0
    fabric.weft("container", "create", "web", "--image", "chemistry/box", "--network", "default", "--detach")
    said = fabric.weft("convert", "container/web", "--to", "vm", "--dry-run", "-o", "json")
    assert json.loads(said.out)["spec"]["image"] == "of chemistry/box", said.err
    assert fabric.weft("vm", "create", "disk", "--image", "chemistry/base").code == 0
    refused = fabric.weft("convert", "vm/disk", "--to", "container", "--dry-run")
    assert refused.code != 0 and "of another project" in refused.err and "weft image add" in refused.err
    already = fabric.weft("convert", "disk", "--to", "vm")
    assert already.code == 2 and "vm/disk is a VM already" in already.err
    assert "weft convert vm/disk --to container" in already.err
    untraced = fabric.weft("network", "trace", "vm/disk", "vm/disk", "--port", "x")
    assert untraced.code == 2 and "--port: 'x' is not a port" in untraced.err
    assert 'named "nope"' in fabric.weft("logs", "nope").err


def test_a_trace_names_what_stops_a_connection_and_what_lets_it_pass_but_nothing_of_another_project(
    fabric: Fabric,
) -> None:
    def do(*words: str) -> None:
        said = fabric.weft(*words)
        assert said.code == 0, said.err

    for project in ("geology", "zoology"):
        do("project", "create", project)
    do("network", "create", "lab", "--cidr", "10.61.0.0/24", "--shared-with", "zoology", "-p", "geology")
    do("securitygroup", "create", "web", "--egress", "tcp:5432 to 10.61.0.0/24", "-p", "geology")
    do("securitygroup", "create", "db", "--ingress", "tcp:5432 from group:web", "-p", "geology")
    inside = ("--image", "default/tiny", "-p", "geology", "--network", "lab")
    do("image", "share", "tiny", "--with", "*")
    do("vm", "create", "shop", *inside, "--security-group", "web")
    do("vm", "create", "db", *inside, "--security-group", "db", "--publish", "8091:5432")
    do("vm", "create", "cat", "--image", "default/tiny", "-p", "zoology", "--network", "geology/lab")
    do("vm", "create", "far", "--image", "default/tiny", "-p", "zoology", "--network", "default")
    do("service", "create", "store", "--selector", "app=db", "--port", "5432", "--network", "lab", "-p", "geology")
    db = json.loads(fabric.weft("vm", "get", "db", "-p", "geology", "-o", "json").out)["status"]["address"]

    def trace(*words: str, project: str = "geology", context: str = "") -> dict[str, object]:
        who = ("--context", context) if context else ()
        said = fabric.weft(*who, "network", "trace", *words, "-p", project, "-o", "json")
        found: dict[str, object] = json.loads(said.out or said.err)
        assert said.code == (found["verdict"] != "allowed")
        return found

    assert trace("vm/shop", "db", "--port", "5432")["verdict"] == "allowed"
    assert trace("vm/shop", db, "--port", "5432")["target"] == "vm/db"
    for words, reason, by in (
        (("vm/shop", "vm/db"), "egressDenied", "securitygroup/web"),
        (("internet", "port/8091"), "ingressDenied", "securitygroup/db"),
        (("vm/zoology/cat", "vm/db"), "ingressDenied", "securitygroup/db"),
        (("vm/zoology/far", "vm/db"), "otherNetwork", "network/zoology/default"),
        (("vm/shop", "service/store"), "noEndpoints", "service/store"),
    ):
        found = trace(*words)
        assert (found["verdict"], found["reason"], found["by"]) == ("blocked", reason, by)
    shown = fabric.weft("network", "trace", "internet", "port/8091", "-p", "geology")
    lines = shown.out.splitlines()
    assert shown.code == 1 and lines[-2] == "blocked by securitygroup/db: no rule allows tcp/5432 from everywhere"
    allow = lines[-1].removeprefix("next: weft ")
    do(*shlex.split(allow))
    assert trace("internet", "port/8091")["verdict"] == "allowed"
    do("vm", "stop", "db", "-p", "geology")
    assert trace("vm/shop", "db", "--port", "5432")["silent"] == "vm/db is Stopped: it answers nothing"

    secret = fabric.weft("token", "create", "--role", "viewer", "-p", "zoology").out.strip()
    keeper = fabric.folder / "keeper.json"
    keeper.write_text(json.dumps({**json.loads(fabric.context.read_text()), "token": secret}))
    hidden = trace("vm/cat", db, project="zoology", context=str(keeper))
    assert (hidden["verdict"], hidden["target"]) == ("unknown", db)
    assert not {"db", "shop", "securitygroup/db"} & set(str(hidden).replace("'", " ").split())
    other = trace("vm/far", db, project="zoology", context=str(keeper))
    assert (other["verdict"], other["by"]) == ("blocked", "")
    assert other["message"] == f"{db} is in another project's network"
    for target in ("vm/geology/db", "port/8091", "service/geology/store"):
        refused = fabric.weft("--context", str(keeper), "network", "trace", "vm/cat", target, "-p", "zoology")
        assert refused.code != 0 and "securitygroup" not in refused.err and not refused.out
