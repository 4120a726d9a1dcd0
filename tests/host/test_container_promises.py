"""What drivers of containers promise, kept by each of the real ones: crun, runc, containerd, and machines of their own,
weft's and (by runc's shim in place of its own) Kata's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from container_lab import ContainerLab
from container_labs import NEEDED, open_lab

pytest.register_assert_rewrite("tests.conformance.container_contract")

from tests.conformance.container_contract import ContainerPromises
from tests.long import mark_long

pytestmark = pytest.mark.host


# What the others do otherwise is shown every day by test_containers, test_containerd, test_kata and test_microvm.
@pytest.fixture(scope="module", params=mark_long(sorted(NEEDED), "containerd", "kata", "microvm", "runc"))
def lab(request: pytest.FixtureRequest) -> Iterator[ContainerLab]:
    with open_lab(request.param) as lab:
        yield lab


class TestContainers(ContainerPromises):
    pass
