"""A real three-node cluster for a whole test run: its own state folder, so it stands beside a running one without touching it."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.cluster import Cluster, lay_out
from tests.cluster.containers import IMAGE, PROGRAM, SERVES
from tests.files_table import find_undescribed
from tests.registry import push_busybox, serve
from weft.client import Client
from weft.client.context import find_context
from weft.objects.errors import WeftError

STANDING: list[Cluster] = []  # the cluster of this run, once a test has asked for it


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs root and QEMU")
    made = lay_out(tmp_path_factory.mktemp("clone"))
    try:
        made.up()
        STANDING.append(made)
        yield made
        assert find_undescribed(made.appended()) == []  # whatever the tests have had it do
    finally:
        STANDING.clear()
        made.down()


@pytest.fixture(scope="module", autouse=True)
def swept() -> Iterator[None]:
    """What the tests of a file made and, as one failed, didn't delete goes before the next file's begin."""
    before = {what for made in STANDING for what in list_objects(made, *WORKLOADS, *HELD)} | {"vm/hello"}
    yield
    sweep(before)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """What a failed test made goes before the test is run again: it would be in its own way."""
    if report.outcome == "rerun" and report.nodeid.startswith("tests/cluster"):  # type: ignore[comparison-overlap]
        older = {what for made in STANDING for what in list_objects(made, *WORKLOADS, *HELD, until=report.start)}
        sweep(older | {"vm/hello"})


def sweep(but: set[str]) -> None:
    """Delete all workloads ``but`` these, then what they held, and wait until they are gone."""
    for made in STANDING:
        for kinds in (WORKLOADS, HELD):
            left = set(list_objects(made, *kinds)) - but - {"network/default"}
            for what in left:
                made.run("delete", what, "--yes")
            deadline = time.monotonic() + 60
            while left & set(list_objects(made, *kinds)) and time.monotonic() < deadline:  # what may not go stays
                time.sleep(0.4)


WORKLOADS = ("function", "job", "container", "vm")
HELD = ("reservation", "volume", "network")  # by workloads, so after them


def list_objects(cluster: Cluster, *kinds: str, until: float = math.inf) -> list[str]:
    """KIND/NAME of what there is of these kinds, made before ``until`` (unix seconds); none while its server is away."""
    client = Client(find_context(folder=str(cluster.folder), environ={}))
    try:
        found = [(kind, one) for kind in kinds for one in client.list(kind).items]
        return [f"{kind}/{one['name']}" for kind, one in found if one["created_at"] < until]
    except WeftError:
        return []
    finally:
        client.close()


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
