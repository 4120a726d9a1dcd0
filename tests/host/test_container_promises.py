"""What drivers of containers promise, kept by each of the real ones: crun, runc, containerd, and machines of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from container_lab import ContainerLab
from container_labs import NEEDED, open_lab

pytest.register_assert_rewrite("tests.conformance.container_contract")

from tests.conformance.container_contract import ContainerPromises

pytestmark = [pytest.mark.host, pytest.mark.timeout(240)]


@pytest.fixture(scope="module", params=sorted(NEEDED))
def lab(request: pytest.FixtureRequest) -> Iterator[ContainerLab]:
    with open_lab(request.param) as lab:
        yield lab


class TestContainers(ContainerPromises):
    pass
