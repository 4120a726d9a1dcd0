"""Whether a running guest is what its allocation asks for, told by its devices' names. Pure."""

from __future__ import annotations

import hashlib

from weft.contracts.driver.runtime import GuestFacts, GuestShape
from weft.kinds.allocation import AllocationSpec, Resources

MAX_SERIAL = 20
MOST_DISK_BYTES = 2**50
ROOT_SERIAL, ISO_SERIAL, SEED_SERIAL = "root", "iso", "weft-seed"
_DIGEST = 6


def name_serial(volume: str) -> str:
    """The disk serial of a volume: its name where that fits, else its beginning and a digest. It stays the same whatever
    other volumes there are, because it tells them apart in a running guest."""
    if len(volume) <= MAX_SERIAL and volume not in (ROOT_SERIAL, SEED_SERIAL, ISO_SERIAL):
        return volume
    digest = hashlib.sha256(volume.encode()).hexdigest()[:_DIGEST]
    return f"{volume[: MAX_SERIAL - _DIGEST - 1]}-{digest}"


def is_shaped(spec: AllocationSpec, shape: GuestShape) -> bool:
    """Whether a machine of this shape has all that is asked for, and nothing else. Of a container only its share of the node
    changes while it runs."""
    if spec.container is not None:
        return (shape.cpu, shape.memory_bytes) == (spec.resources.cpu, spec.resources.memory)
    wanted = {name_serial(volume.name): volume.size for volume in spec.volumes} | {ROOT_SERIAL: spec.resources.disk}
    has = {serial: size for serial, size in shape.disks.items() if serial not in (SEED_SERIAL, ISO_SERIAL)}
    return (
        (shape.cpu, shape.memory_bytes) == (spec.resources.cpu, spec.resources.memory)
        and has.keys() == wanted.keys()
        and all(has[serial] >= size for serial, size in wanted.items())
        and sorted(shape.nics) == sorted(nic.mac for nic in spec.nics)
    )


def resources_of(guest: GuestFacts, spec: AllocationSpec) -> Resources | None:
    """What the guest's machine takes of its node now; None if that can't be told."""
    shape = guest.shape
    if shape is None:
        return None
    return Resources(cpu=shape.cpu, memory=shape.memory_bytes, disk=spec.resources.disk)


def find_resize_limits(guest: GuestFacts, spec: AllocationSpec) -> dict[str, int]:
    """What the guest can come to while it runs, by field of its kind's spec."""
    shape = guest.shape
    if shape is None:
        return {}
    room = {"cpu": int(shape.most_cpu), "memory": shape.most_memory_bytes}
    if spec.container is not None:
        return room
    room["disk"] = MOST_DISK_BYTES
    return room | ({"volumes": shape.free_slots, "networks": shape.free_slots} if shape.has_slots else {})
