"""What sandboxes promise, kept by all that there are: containers of crun, runc and containerd and in microVMs, and functions'
instances as processes, as containers and as clones of a microVM."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

pytest.register_assert_rewrite("tests.conformance.sandbox_contract", "tests.conformance.container_contract")

from container_lab import ContainerLab
from container_labs import NEEDED, open_lab
from function_lab import DRIVERS
from sandbox_labs import ContainerSandboxes, InstanceSandboxes, open_instances
from tests.conformance.sandbox_contract import LastingPromises, PassingPromises
from tests.long import mark_long

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", params=mark_long(sorted(NEEDED), "containerd", "kata", "microvm", "runc"))
def node(request: pytest.FixtureRequest) -> Iterator[ContainerLab]:
    with open_lab(request.param) as lab:
        yield lab


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's state: its base is unpacked, and its template made, once for all tests."""
    return tmp_path_factory.mktemp("instances")


class TestContainers(LastingPromises):
    @pytest.fixture
    def lab(self, node: ContainerLab) -> ContainerSandboxes:
        return ContainerSandboxes(node)


class TestInstances(PassingPromises):
    @pytest_asyncio.fixture(params=mark_long(sorted(DRIVERS), "vm"))
    async def lab(self, folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[InstanceSandboxes]:
        if os.geteuid() != 0 or shutil.which(DRIVERS[request.param][1]) is None:
            pytest.skip(f"needs root and {DRIVERS[request.param][1]}")
        async with open_instances(folder, request.param) as lab:
            yield lab
