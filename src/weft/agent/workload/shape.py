"""The names of a guest's devices, and whether a running guest matches its spec by them. Pure."""

from __future__ import annotations

import hashlib

from weft.contracts.driver.runtime import GuestShape
from weft.kinds.allocation import AllocationSpec

MAX_SERIAL = 20
MOST_DISK_BYTES = 2**50
ROOT_SERIAL, ISO_SERIAL, SEED_SERIAL = "root", "iso", "weft-seed"
_DIGEST = 6


def name_serial(volume: str) -> str:
    """The disk serial of a volume: its name if that fits, else its beginning and a digest. It doesn't depend on other volumes,
    because it identifies the disk in a running guest."""
    if len(volume) <= MAX_SERIAL and volume not in (ROOT_SERIAL, SEED_SERIAL, ISO_SERIAL):
        return volume
    digest = hashlib.sha256(volume.encode()).hexdigest()[:_DIGEST]
    return f"{volume[: MAX_SERIAL - _DIGEST - 1]}-{digest}"


def has_resources(spec: AllocationSpec, shape: GuestShape) -> bool:
    """Whether a guest of this shape has the CPU and memory of the spec."""
    return (shape.cpu, shape.memory_bytes) == (spec.resources.cpu, spec.resources.memory)


def lacks_devices(spec: AllocationSpec, shape: GuestShape | None) -> bool:
    """Whether a volume or a NIC of the spec is yet to be plugged in, as of one that began from a template."""
    if shape is None or not shape.has_slots:
        return False
    serials, macs = {name_serial(volume.name) for volume in spec.volumes}, {nic.mac for nic in spec.nics}
    return bool(serials - shape.disks.keys() or macs - set(shape.nics))


def has_devices(spec: AllocationSpec, shape: GuestShape) -> bool:
    """Whether it has the disks and NICs of the spec, and no others."""
    wanted = {name_serial(volume.name): volume.size for volume in spec.volumes} | {ROOT_SERIAL: spec.resources.disk}
    has = {serial: size for serial, size in shape.disks.items() if serial not in (SEED_SERIAL, ISO_SERIAL)}
    return (
        has.keys() == wanted.keys()
        and all(has[serial] >= size for serial, size in wanted.items())
        and sorted(shape.nics) == sorted(nic.mac for nic in spec.nics)
    )
