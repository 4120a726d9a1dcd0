"""A node's disks with something on them, so that it is seen whether what a guest has written goes along with it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from weft.contracts.driver.volume import VolumeFacts
from weft.drivers.volume.fake.driver import FakeVolumes


class OnDisk(msgspec.Struct):
    """``mark`` is made with the disk, and stays for as long as what is on it is kept."""

    size_bytes: int
    mark: str
    writes: list[int] = []  # of its guests


def read_mark(path: str) -> str:
    return msgspec.json.decode(Path(path).read_bytes(), type=OnDisk).mark


class MarkedVolumes(FakeVolumes):
    """The fake driver, with a small file for each disk; files of other nodes may come."""

    async def ensure(
        self, volume_id: str, *, size_bytes: int, base: str | None = None, base_format: str = "qcow2"
    ) -> VolumeFacts:
        facts = await super().ensure(volume_id, size_bytes=size_bytes, base=base, base_format=base_format)
        return self._mark(volume_id, facts)

    async def ensure_files(self, volume_id: str, *, size_bytes: int, owner: tuple[int, int] = (0, 0)) -> VolumeFacts:
        facts = await super().ensure_files(volume_id, size_bytes=size_bytes, owner=owner)
        machine_made = Path(self._path(volume_id))
        if machine_made.exists():  # a disk of a machine becomes the raw one, with what is on it
            os.replace(machine_made, facts.path)
        return self._mark(volume_id, facts)

    def _mark(self, volume_id: str, facts: VolumeFacts) -> VolumeFacts:
        path = Path(facts.path)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            mark = f"{volume_id}, made on {self._host.node} at {self._clock.elapsed():.9f}"
            path.write_bytes(msgspec.json.encode(OnDisk(facts.size_bytes, mark)))
        return facts

    async def remove(self, volume_id: str) -> None:
        await super().remove(volume_id)
        for path in (Path(self._path(volume_id)), Path(self._path(volume_id)).with_suffix(".raw")):
            path.unlink(missing_ok=True)

    def begin(self, volume_id: str) -> str:
        path = Path(self._path(volume_id)).with_suffix(".coming")
        path.unlink(missing_ok=True)
        return str(path)

    async def complete(
        self, volume_id: str, *, base: str | None = None, base_format: str = "qcow2", form: str = "qcow2"
    ) -> VolumeFacts:
        await self._meet("complete", volume_id)
        path = self._path(volume_id)
        os.replace(Path(path).with_suffix(".coming"), path)
        size = msgspec.json.decode(Path(path).read_bytes(), type=OnDisk).size_bytes
        facts = self.shelf.volumes[volume_id] = VolumeFacts(volume_id, path, "qcow2", size, 0)
        return facts

    def _path(self, volume_id: str) -> str:
        return f"{self._host.state_dir}/volumes/{volume_id}.qcow2"
