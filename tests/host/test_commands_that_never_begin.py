"""Commands that never begin: nothing of them is left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from container_lab import ContainerLab
from container_labs import open_lab

from weft.drivers.linux.processes import find_by_argument
from weft.drivers.runtime.oci.mount_namespace import spawn_in_mount_namespace

pytestmark = pytest.mark.host


@pytest.fixture
def runc() -> Iterator[ContainerLab]:
    with open_lab("runc") as lab:
        yield lab


async def test_a_program_whose_start_is_cancelled_does_not_run_on(runc: ContainerLab) -> None:
    (place := runc.folder / "nothing").touch()
    starting = asyncio.create_task(spawn_in_mount_namespace(["tail", "-f", str(place)], []))
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled() and find_by_argument(str(place)) == []
