"""What holds for every test: drawn examples are the same each time, none is timed. See docs/recipes/run-and-write-tests.md."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from tests import logs
from tests.again import Again
from tests.long import ALL_EXAMPLES, examples
from tests.rewriting import rewrite_part
from tests.warm.snapshots import lay_out
from weft.images.parts import AGENT, compile_program

ARCHITECTURE = "tests/architecture"  # its files read the same source: at one worker each module is parsed once
DASHBOARD = "tests/dashboard"  # its files share a fabric and a browser: each worker that has some of them starts both
CLUSTER = "tests/cluster"
# Files of tests/cluster by the cluster that they use, those of the first are left out: each has a third of the time that all take.
CLUSTERS = {
    "second": (
        *("bad_days", "batch_jobs", "container_migration", "conversion", "debian", "department"),
        *("on_etcd", "readme", "three_servers", "three_tier"),
    ),
    "third": (
        *("backups", "function", "microvm", "preemption", "resize", "snapshot", "twin"),
        *("volume_snapshots", "warm"),
    ),
}
DEBIAN = f"{CLUSTER}/test_debian"
BUILD = """
import pathlib, sys
from weft.images.recipes import ensure_bundle
for name in ("python3-11", "debian-12"):
    ensure_bundle(name, pathlib.Path(sys.argv[1]), print)
"""
LONGEST_FIRST = (
    CLUSTER,
    DASHBOARD,
    "tests/simulation",
    "tests/host",
    "tests/conformance",
    "tests/placement",
    "tests/scenario",
)

# A suite that draws anew each time fails on the day nobody changed anything; new draws belong to the long runs.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=examples(100))
settings.load_profile("fixed")


class LongestFirst(LoadFileScheduling):
    """The files that use a cluster go to three workers, each of which makes one: one alone would be the last at work."""

    def _split_scope(self, nodeid: str) -> str:
        for folder in (ARCHITECTURE, DASHBOARD):
            if nodeid.startswith(folder):
                return folder
        return name_cluster(nodeid) or str(super()._split_scope(nodeid))


def name_cluster(nodeid: str) -> str:
    """The cluster that this test uses; "": none."""
    if not nodeid.startswith(CLUSTER):
        return ""
    file = nodeid.removeprefix(f"{CLUSTER}/test_")
    return next((f"{CLUSTER} {name}" for name, files in CLUSTERS.items() if file.startswith(files)), CLUSTER)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell the worker that it runs whole files only, and all of them."""
    node.workerinput["whole_files"] = node.config.getvalue("dist") == "loadfile"
    node.workerinput["whole_suite"] = node.config.args_source == pytest.Config.ArgsSource.TESTPATHS


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling | None:
    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # as they were collected, not by how many tests are in them
    return LongestFirst(config, log)


@pytest.hookimpl(tryfirst=True)  # before those that aren't asked for are left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """At a worker the folders of long files come first, so that neither is left alone with one in the end; what needs Debian comes
    after the others that use a cluster, so that its image is built by then."""

    def rank(item: pytest.Item) -> tuple[int, bool]:
        at = (at for at, folder in enumerate(LONGEST_FIRST) if item.nodeid.startswith(folder))
        return next(at, len(LONGEST_FIRST)), item.nodeid.startswith(DEBIAN)

    if hasattr(config, "workerinput"):
        items.sort(key=rank)
    if ALL_EXAMPLES:
        for item in items:
            if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
                item.add_marker(pytest.mark.long)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """What was loaded stays until the end: to look through all of it again and again finds nothing to free."""
    gc.disable()
    worker = getattr(session.config, "workerinput", {})
    if worker.get("whole_suite"):
        rewrite_part(session.config, int(worker["workerid"].removeprefix("gw")), worker["workercount"])
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--again", type=int, default=0, help="how often a test that failed is run again; all are named at the end"
    )


_keeping: list[tuple[Path, subprocess.Popen[bytes]]] = []
_building: list[subprocess.Popen[bytes]] = []


def pytest_configure(config: pytest.Config) -> None:
    """Guests start from a kernel that has booted, those of all workers: see tests/warm."""
    config.pluginmanager.register(Again(1 + config.option.again))
    config.pluginmanager.register(logs)
    if hasattr(config, "workerinput") or os.geteuid() != 0 or os.environ.get("WEFT_COLD"):
        return
    if shutil.which("qemu-system-x86_64") is None or shutil.which("gcc") is None:
        return
    folder = Path(tempfile.mkdtemp(prefix="weft-warm-", dir="/tmp"))
    lay_out(folder)
    words = [sys.executable, "-m", "tests.warm.snapshots", str(folder)]
    _keeping.append((folder, subprocess.Popen(words, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE)))
    os.environ["PATH"] = f"{folder}/bin:{os.environ['PATH']}"


def pytest_collection_finish(session: pytest.Session) -> None:
    """In a fresh clone Debian's image takes minutes to build, and that of functions half of one: they are begun beside the first
    tests, and whoever asks for one waits for the rest. What goes wrong is told to that one, who builds it again."""
    if os.geteuid() != 0 or session.config.option.collectonly or os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        return
    if any(item.nodeid.startswith(DEBIAN) for item in session.items):
        root = Path(__file__).parents[1]
        words = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-c", BUILD, str(root / ".weft/cache")]
        nowhere = subprocess.DEVNULL
        _building.append(subprocess.Popen(words, cwd=root, stdin=nowhere, stdout=nowhere, stderr=nowhere))


def pytest_unconfigure() -> None:
    while _building:
        build = _building.pop()
        build.terminate()
        build.wait()
    while _keeping:
        folder, keeper = _keeping.pop()
        keeper.communicate()  # what it reads ends, and so does it
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def agent_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's agent, as a program of this machine."""
    return compile_program(AGENT, tmp_path_factory.mktemp("agent") / "weft-agent")
