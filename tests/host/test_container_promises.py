"""What drivers of containers promise, kept by each of the real ones: crun, runc, containerd, and machines of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from container_lab import ContainerLab
from containerd_lab import ContainerdLab
from enclosed_lab import EnclosedLab

pytest.register_assert_rewrite("tests.conformance.container_contract")

from tests.conformance.container_contract import ContainerPromises

pytestmark = [pytest.mark.host, pytest.mark.timeout(240)]

NEEDED = {
    "crun": ("crun", "conmon"),
    "runc": ("runc", "conmon"),
    "containerd": ("containerd", "ctr", "runc"),
    "enclosed": ("qemu-system-x86_64", "mkfs.ext4", "gcc"),
}


@pytest.fixture(scope="module", params=sorted(NEEDED))
def lab(request: pytest.FixtureRequest) -> Iterator[ContainerLab]:
    if os.geteuid() != 0 or not all(map(shutil.which, NEEDED[request.param])):
        pytest.skip(f"needs root, and {' and '.join(NEEDED[request.param])}")
    labs = {"enclosed": EnclosedLab, "containerd": ContainerdLab}
    lab = labs[request.param]() if request.param in labs else ContainerLab(request.param)
    try:
        yield lab
    finally:
        lab.close()


class TestContainers(ContainerPromises):
    pass
