"""Transfer of the layers under disks, and of their snapshots, in a migration: they go before the disks, each as a file; see
``LayerTransfer``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from weft.agent.state.allocation import LocalAllocation
from weft.agent.volume.pools import Pools
from weft.agent.workload.shape import ROOT_SERIAL, name_serial
from weft.contracts.driver.layers import MEMORY, CarriedDisk, CarriesLayers, HasLayers, LayerTransfer
from weft.contracts.driver.runtime import DiskLayer, GuestPlan
from weft.contracts.driver.volume import VolumeDriver
from weft.kinds.allocation import ROOT
from weft.objects.errors import InvalidInput
from weft.protocol.migration import MigrationRequest

_SPARE_BYTES = 64 << 20  # of a file, beside the guest's data


class TransferConnection(Protocol):
    """The part of a migration's connection that is needed here."""

    async def order(self, ask: MigrationRequest) -> None: ...

    async def carry_file(self, disk: str, path: Path, form: str = "qcow2") -> None: ...


class PackedLayers(msgspec.Struct, frozen=True):
    """``files``: their paths, by the name under which they go."""

    disks: dict[str, CarriedDisk] = {}
    files: dict[str, Path] = {}


def id_of(local: LocalAllocation, disk: str) -> str:
    return local.id if disk == ROOT else disk


async def pack_layers(pools: Pools, local: LocalAllocation, key: str, disks: Iterable[str]) -> PackedLayers:
    """Pack what goes with these disks. Raises WeftError."""
    packed = PackedLayers()
    for disk in disks:
        transfer = await _find(pools, local, disk)
        if transfer is None:
            await pools.refuse_layers(local.spec, id_of(local, disk), disk, local.what)
            continue
        workload = local.spec.workload.uid
        carried, files = await transfer.pack(id_of(local, disk), disk, workload, key, memory=disk == ROOT)
        if carried != CarriedDisk():
            packed.disks[disk] = carried
            packed.files.update({f"{disk}/{name}": Path(path) for name, path in files.items()})
    return packed


async def send_layers(connection: TransferConnection, packed: PackedLayers) -> None:
    """Raises OSError, WeftError."""
    if packed.disks:
        await connection.order(MigrationRequest("layers", layers=packed.disks))
        for name, path in packed.files.items():
            await connection.carry_file(name, path)


async def release_snapshots(pools: Pools, local: LocalAllocation, disk: str) -> None:
    """The disk is on another node for good, and so are its snapshots. Repeated is fine. Raises WeftError."""
    if (transfer := await _find(pools, local, disk)) is not None:
        await transfer.release(disk, local.spec.workload.uid, memory=disk == ROOT)
        pools.snapshots_changed.ring()


async def settle_layers(pools: Pools, local: LocalAllocation, disks: Iterable[str]) -> None:
    """The disks are here for good: their snapshots are kept here. Repeated is fine. Raises WeftError."""
    for disk in disks:
        if (transfer := await _find(pools, local, disk)) is not None:
            await transfer.settle(id_of(local, disk))
            pools.snapshots_changed.ring()  # the server hears of them before the source says that it has them no more


async def adopt_layers(driver: VolumeDriver, volume_id: str) -> list[DiskLayer]:
    """The layers of a volume that nobody has written to: it stands on what has come for it. Raises IllegalTransition while files
    are missing, DriverFailed."""
    if isinstance(driver, CarriesLayers):
        await driver.transfer.adopt(volume_id)
    if not isinstance(driver, HasLayers):
        return []
    layers = await driver.layers.list_layers(volume_id)
    return [DiskLayer(one.path, one.format, one.server) for one in layers if one.format != "rbd"]


async def _find(pools: Pools, local: LocalAllocation, disk: str) -> LayerTransfer | None:
    driver = await pools.of(local.spec, disk)
    return driver.transfer if isinstance(driver, CarriesLayers) else None


class ArrivingLayers:
    """The target's part, for these disks of the allocation."""

    def __init__(self, pools: Pools, local: LocalAllocation, disks: Iterable[str]) -> None:
        self._pools, self._local, self._disks = pools, local, list(disks)

    async def expect(self, layers: Mapping[str, CarriedDisk]) -> None:
        """Raises InvalidInput, DriverFailed."""
        for disk, carried in layers.items():
            await (await self._transfer(disk)).expect(id_of(self._local, disk), carried)

    async def begin(self, file: str) -> tuple[Path, int]:
        """Begin a file, see ``Receive``."""
        disk, name = _split(file)
        path = await (await self._transfer(disk)).begin(id_of(self._local, disk), name)
        resources = self._local.spec.resources
        sizes = {ROOT: resources.disk, **{volume.uid: volume.size for volume in self._local.spec.volumes}}
        most = 2 * (resources.memory if name.endswith(MEMORY) else max(sizes[disk], await self._find_size(disk)))
        return Path(path), most + _SPARE_BYTES

    async def complete(self, file: str, form: str) -> None:
        """Complete a file, see ``Receive``."""
        disk, name = _split(file)
        await (await self._transfer(disk)).complete(id_of(self._local, disk), name)

    async def adopt(self, plan: GuestPlan) -> GuestPlan:
        """The plan of a guest whose disks, which are empty, stand on what has come. Raises as ``adopt_layers``."""
        local = self._local
        names = {ROOT: ROOT_SERIAL, **{volume.uid: name_serial(volume.name) for volume in local.spec.volumes}}
        layers = {
            names[disk]: await adopt_layers(await self._pools.of(local.spec, disk), id_of(local, disk))
            for disk in self._disks
        }
        disks = [
            msgspec.structs.replace(disk, layers=layers[disk.serial]) if disk.serial in layers else disk
            for disk in plan.disks
        ]
        return msgspec.structs.replace(plan, disks=disks)

    async def settle(self) -> None:
        await settle_layers(self._pools, self._local, self._disks)

    async def _find_size(self, disk: str) -> int:
        facts = await self._pools.inspect(self._local.spec, id_of(self._local, disk), disk)
        return facts.size_bytes if facts is not None else 0

    async def _transfer(self, disk: str) -> LayerTransfer:
        transfer = await _find(self._pools, self._local, disk) if disk in self._disks else None
        if transfer is None:
            raise InvalidInput(
                f"{self._local.what}: the snapshots of disk {disk} can't come to this node", reason="unsupported"
            )
        return transfer


def _split(file: str) -> tuple[str, str]:
    disk, slash, name = file.partition("/")
    if not slash:
        raise InvalidInput(f"disk {disk} is not part of this migration")
    return disk, name
