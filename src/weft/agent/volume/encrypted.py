"""Makes and grows a workload's volume, encrypted where its spec says so."""

from __future__ import annotations

from weft.contracts.driver.volume import CanEncrypt, Encryption, VolumeDriver, VolumeFacts
from weft.kinds.allocation import AllocatedVolume
from weft.objects.errors import InvalidInput


async def ensure_volume(disks: VolumeDriver, volume: AllocatedVolume, key: str, whose: str) -> VolumeFacts:
    """Raises InvalidInput (``unsupported``) where the pool can't encrypt, DriverFailed."""
    if not volume.encrypted:
        return await disks.ensure(volume.uid, size_bytes=volume.size)
    return await _find(disks, volume, whose).ensure(volume.uid, size_bytes=volume.size, key=key)


async def grow_volume(disks: VolumeDriver, volume: AllocatedVolume, key: str, whose: str) -> VolumeFacts:
    """Grow a volume, see ``ensure_volume``."""
    if not volume.encrypted:
        return await disks.grow(volume.uid, volume.size)
    return await _find(disks, volume, whose).grow(volume.uid, volume.size, key=key)


def _find(disks: VolumeDriver, volume: AllocatedVolume, whose: str) -> Encryption:
    if not isinstance(disks, CanEncrypt):
        raise InvalidInput(
            f"{whose} is encrypted, which driver {disks.name} of storage pool {volume.pool} can't do",
            reason="unsupported",
            hint="create an encrypted volume in another pool",
        )
    return disks.encryption
