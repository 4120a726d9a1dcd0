"""A real three-node cluster for all tests here at a worker, gone after the last: its own state folder, so it stands beside a
running one without touching it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, lay_out
from tests.cluster.containers import IMAGE, PROGRAM, SERVES
from tests.cluster.sweep import Object, read_nodes, restore, sweep
from tests.conftest import CLUSTER, name_cluster
from tests.files_table import find_undescribed
from tests.registry import push_busybox, serve
from weft.objects.errors import WeftError

WAIT_FOR_VALUES = (
    "bad_afternoon",
    "measured_usage",
    "metrics",
)  # files with tests that wait for gathered values or alerts
STANDING: list[
    tuple[Cluster, list[Object]]
] = []  # the cluster of this run, once a test has asked for it, and its nodes
RUNNING: list[str] = []  # the test that is being run
BEGAN = pytest.StashKey[float]()  # when a test did, after the fixtures that it shares with others
FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="package")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs root and QEMU")
    made = lay_out(tmp_path_factory.mktemp("clone"), often=_waits_for_values(request.session))
    try:
        made.up()
        STANDING.append((made, read_nodes(made)))
        yield made
        assert find_undescribed(made.appended()) == []  # whatever the tests have had it do
    finally:
        STANDING.clear()
        made.down()


def _waits_for_values(session: pytest.Session) -> bool:
    """Whether a test that may use this process's cluster does. A worker that runs whole files has those of one cluster."""
    whole = getattr(session.config, "workerinput", {}).get("whole_files", False)
    mine = name_cluster(RUNNING[0])
    used = (item.nodeid for item in session.items if not whole or name_cluster(item.nodeid) == mine)
    return any(nodeid.startswith(tuple(f"{CLUSTER}/test_{name}" for name in WAIT_FOR_VALUES)) for nodeid in used)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    RUNNING[:] = [item.nodeid]


@pytest.fixture(scope="module", autouse=True)
def swept_after_the_file() -> Iterator[None]:
    """What the tests of a file made and didn't delete goes before the next file's begin."""
    began = time.time()
    yield
    for made, _ in STANDING:
        sweep(made, began)


@pytest.fixture(autouse=True)
def began(request: pytest.FixtureRequest) -> None:
    """What the fixtures of a file have made by now isn't this test's."""
    request.node.stash[BEGAN] = time.time()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    """What a fixture made before it failed would be in its own way as it is tried again."""
    began = time.time()
    try:
        return (yield)
    except Exception:
        with suppress(WeftError):  # that the fixture failed says more
            for made, _ in STANDING:
                sweep(made, began)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a failed test made, changed or killed is put right before it is run again, or the next one is run."""
    report = yield
    item.stash[FAILED] = report.failed or (call.when != "setup" and item.stash[FAILED])
    if call.when == "teardown" and item.stash[FAILED]:
        try:
            for made, nodes in STANDING:
                restore(made, nodes, item.stash.get(BEGAN, time.time()))
        except Exception as problem:  # said beside the failure; the tests that follow say more
            report.sections.append(("the cluster could not be put right", repr(problem)))
    return report


@pytest.fixture(scope="package")
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
