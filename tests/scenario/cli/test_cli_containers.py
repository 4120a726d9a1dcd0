"""Containers by the command, on nodes that run none: they are made, wait, and say what for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.scenario.cli_lab import Fabric, start_fabric

IMAGE = "registry.example.org/shop/web:1.4"


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with start_fabric() as made:
        yield made


def get(fabric: Fabric) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fabric.weft("container", "get", "web", "-o", "json").out)
    return found


def test_a_container_is_made_and_waits_with_the_reason_where_no_node_runs_containers(fabric: Fabric) -> None:
    words = ["--env", "A=1", "--arg", "-c", "--arg", "echo a,b", "--", "/bin/sh"]
    said = fabric.weft("container", "create", "web", "--image", IMAGE, *words)
    assert said.code == 6
    assert "container/web fits on no node: noAvailableAgents" in said.err
    assert "n1  runs no containers" in said.err
    until = time.monotonic() + 60
    while (made := get(fabric))["status"]["message"] != "no node runs containers" and time.monotonic() < until:
        time.sleep(0.1)  # its verdict stands before it is folded into its status; a new store waits for its nodes first
    assert (made["status"]["phase"], made["status"]["message"]) == ("Pending", "no node runs containers")
    assert (made["spec"]["command"], made["spec"]["args"]) == (["/bin/sh"], ["-c", "echo a,b"])
    assert "no node runs containers" in fabric.weft("explain", "container/web").out
    assert fabric.weft("exec", "container/web", "--", "ls").code != 0
    refused = fabric.weft("container", "create", "bad", "--image", "nginx")
    assert refused.code == 3
    assert 'image "nginx" not found' in refused.err and "REGISTRY/nginx:TAG" in refused.err
    assert fabric.weft("container", "migrate", "web").code == 5
    assert fabric.weft("container", "delete", "web", "--yes").code == 0
    assert json.loads(fabric.weft("container", "list", "-o", "json").out)["items"] == []


def test_an_empty_word_is_no_command(fabric: Fabric) -> None:
    said = fabric.weft("container", "create", "wordless", "--image", "busybox", "--", "")
    assert said.code == 2 and "the command after -- is an empty word" in said.err, said.err
    assert "the image's command runs" in said.err
    assert fabric.weft("container", "get", "wordless").code == 3
