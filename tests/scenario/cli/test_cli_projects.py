"""`weft project create` and `weft project delete`: a project that works immediately, and goes with all that is in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.scenario.cli_lab import Fabric, start_fabric


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with start_fabric() as made:
        yield made


def test_what_weft_made_with_a_project_does_not_keep_it(fabric: Fabric) -> None:
    assert fabric.weft("project", "create", "brief").code == 0
    assert fabric.weft("quota", "set", "--cpu", "4", "-p", "brief").code == 0
    said = fabric.weft("project", "delete", "brief", "--yes")
    assert said.code == 0 and "project/brief  deleted" in said.out, said.err


def test_a_range_that_no_network_can_have_leaves_no_project(fabric: Fabric) -> None:
    for wrong in ("nonsense", "10.9.0.1/24", "127.0.0.0/24", "fd00::/64"):
        assert fabric.weft("project", "create", "halves", "--cidr", wrong).code == 2, wrong
        assert fabric.weft("project", "get", "halves").code == 3
    assert fabric.weft("project", "create", "halves", "--cidr", "10.9.0.0/24", "--no-network").code == 2


def test_a_project_goes_with_everything_only_if_that_was_asked_for(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fabric.weft("image", "share", "tiny", "--with", "*").code == 0
    created = fabric.weft("project", "create", "lab")
    assert created.code == 0 and "weft quota set -p lab" in created.err
    taken = fabric.weft("project", "create", "lab")
    assert taken.code == 5 and "use another name; weft describe project/lab shows this one" in taken.err
    assert fabric.weft("volume", "create", "data", "--size", "1G", "-p", "lab").code == 0
    made = fabric.weft("vm", "create", "web", "--image", "default/tiny", "--volume", "data", "-p", "lab")
    assert made.code == 0, made.err
    assert fabric.weft("user", "create", "ann").code == 0
    assert fabric.weft("rolebinding", "create", "r", "--role", "viewer", "--user", "ann", "-p", "lab").code == 0
    refused = fabric.weft("project", "delete", "lab", "--yes")
    assert refused.code == 5 and "vm/web, volume/data" in refused.err and "--everything" in refused.err
    asked = fabric.weft("project", "delete", "lab", "--everything")
    assert asked.code == 2 and "project/lab without a terminal needs --yes" in asked.err
    listed = asked.err.partition("deleting ")[2].partition(" without")[0].split(", ")
    assert {"rolebinding/r", "network/default", "vm/web", "volume/data"} < set(listed), "as a terminal shows them"
    assert fabric.weft("vm", "get", "web", "-p", "lab").code == 0
    assert fabric.weft("wait", "vm/web", "-p", "lab", "--for", "ready").out.startswith("vm/web  Running")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("weft.cli.wait.finish.follow", interrupt)
        stopped = fabric.weft("project", "delete", "lab", "--everything", "--yes")
    assert stopped.code == 130 and "weft project delete lab --everything goes on" in stopped.err
    assert "weft wait" not in stopped.err
    for words in (
        ("project", "delete", "default"),
        ("project", "delete", "default", "--everything"),
        ("delete", "project/default"),
    ):
        stays = fabric.weft(*words, "--yes")
        assert stays.code == 5 and "can't be deleted: every cluster has it" in stays.err
        assert "--everything" not in stays.err and fabric.weft("network", "get", "default").code == 0
    gone = fabric.weft("project", "delete", "lab", "--everything", "--yes")
    assert gone.code == 0, gone.err
    lines = [line.split("  ")[0] for line in gone.out.splitlines()]
    assert lines[-1] == "project/lab"  # some of the rest went after the interruption
    assert set(lines[:-1]) <= {"vm/web", "volume/data", "network/default"}
    assert fabric.weft("user", "get", "ann").code == 0
    assert fabric.weft("project", "delete", "lab", "--everything", "--yes").code == 3
