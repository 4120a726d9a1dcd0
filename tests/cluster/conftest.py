"""A real three-node cluster for a whole test run: its own state folder, so it stands beside a running one without touching it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.cluster import Cluster, lay_out


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs root and QEMU")
    made = lay_out(tmp_path_factory.mktemp("clone"))
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture
def gone(cluster: Cluster) -> Iterator[Callable[[str], str]]:
    """Names of VMs to delete when the test ends, however it ends."""
    names: list[str] = []

    def remember(name: str) -> str:
        names.append(name)
        return name

    yield remember
    for name in names:
        cluster.run("vm", "delete", name, "--yes")
