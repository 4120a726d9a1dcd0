"""A real three-node cluster for a whole test run: its own state folder, so it stands beside a running one without touching it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.cluster import Cluster, lay_out
from tests.cluster.containers import IMAGE, PROGRAM, SERVES
from tests.files_table import find_undescribed
from tests.registry import push_busybox, serve


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs root and QEMU")
    made = lay_out(tmp_path_factory.mktemp("clone"))
    try:
        made.up()
        yield made
        assert find_undescribed(made.appended()) == []  # whatever the tests have had it do
    finally:
        made.down()


@pytest.fixture(scope="session")
def registry(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The ADDRESS:PORT of a registry that nodes reach, with an image in it that tests of containers run."""
    folder = tmp_path_factory.mktemp("registry")
    with serve(folder, cluster.host_address) as place:
        push_busybox(folder, f"{place}/{IMAGE}", ["sh", "-c", PROGRAM], {"www/index.html": SERVES})
        yield place


@pytest.fixture
def gone(cluster: Cluster) -> Iterator[Callable[[str], str]]:
    """Names of VMs to delete when the test ends, however it ends."""
    yield from _delete(cluster, "vm")


@pytest.fixture
def gone_containers(cluster: Cluster) -> Iterator[Callable[[str], str]]:
    """Names of containers to delete when the test ends, however it ends."""
    yield from _delete(cluster, "container")


def _delete(cluster: Cluster, kind: str) -> Iterator[Callable[[str], str]]:
    names: list[str] = []

    def remember(name: str) -> str:
        names.append(name)
        return name

    yield remember
    for name in names:
        cluster.run(kind, "delete", name, "--yes")
