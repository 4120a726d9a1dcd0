"""Translates an allocation and what was prepared for it into the plan a runtime starts. Pure."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from weft.agent.image.cache import CachedImage
from weft.agent.image.oci import PulledImage
from weft.agent.state.allocation import DiskRelocation, LocalAllocation, MigrationState
from weft.agent.workload.shape import ISO_SERIAL, ROOT_SERIAL, SEED_SERIAL, name_serial
from weft.contracts.driver.runtime import BootDisk, BootKernel, GuestDisk, GuestNic, GuestPlan
from weft.contracts.driver.volume import VolumeFacts
from weft.kinds.allocation import AllocatedNic
from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_bytes


class Prepared(msgspec.Struct):
    """What the steps before the start have made; the interface names are in the order of the NICs."""

    image: CachedImage | None = None
    digest: str = ""  # of a container's image, once it has had one
    pulled: PulledImage | None = None
    env: dict[str, str] = {}  # of a container's variables, those that secrets hold
    root: VolumeFacts | None = None
    volumes: list[VolumeFacts] = []
    adjusting: bool = False  # what runs has its volumes
    links: list[str] = []
    seed: str | None = None
    iso: CachedImage | None = None
    leftover: list[AllocatedNic] = []
    attached: list[str] = []  # serials of the disks that the running guest has open
    part: MigrationState | None = None
    store: DiskRelocation | None = None


def plan_guest(wanted: LocalAllocation, prepared: Prepared) -> GuestPlan:
    """The guest of ``wanted``. Raises InvalidInput when the image asks for more memory than the guest has."""
    spec, image, root = wanted.spec, prepared.image, prepared.root
    if image is None or root is None or spec.image is None:
        raise InvalidInput(f"{wanted.what} has no disk to boot from")
    if spec.resources.memory < image.manifest.min_memory_bytes:
        raise InvalidInput(
            f"{wanted.what} has {format_bytes(spec.resources.memory)} of memory; image {spec.image.name} needs "
            f"{format_bytes(image.manifest.min_memory_bytes)}",
            reason="tooLittleMemory",
            field="spec.memory",
            hint="stop it and give it more memory",
        )
    boot = _choose_boot(wanted, image, prepared.seed)
    disks = [
        GuestDisk(
            root.path,
            root.format,
            ROOT_SERIAL,
            size_bytes=max(root.size_bytes, spec.resources.disk),
            base=image.disk,
            base_format=image.disk_format,
        )
    ]
    for volume, facts in zip(spec.volumes, prepared.volumes, strict=True):
        size = max(facts.size_bytes, volume.size)
        disks.append(GuestDisk(facts.path, facts.format, name_serial(volume.name), size_bytes=size))
    if prepared.seed is not None:
        disks.append(GuestDisk(prepared.seed, "raw", SEED_SERIAL, read_only=True))
    if prepared.iso is not None:
        disks.append(GuestDisk(prepared.iso.disk, "raw", ISO_SERIAL, read_only=True, cdrom=True))
    return GuestPlan(
        id=wanted.id,
        uid=wanted.uid,
        name=spec.workload.name,
        incarnation=spec.incarnation,
        machine=spec.machine,
        cpu=spec.resources.cpu,
        vcpus=max(1, math.ceil(spec.resources.cpu)),
        memory_bytes=spec.resources.memory,
        boot=boot,
        disks=disks,
        nics=[GuestNic(link, nic.mac, nic.mtu) for link, nic in zip(prepared.links, spec.nics, strict=True)],
        has_agent=image.manifest.agent,
        qemu_agent=image.manifest.qemu_agent,
        has_process=image.manifest.seed == "machine",
        hostname=spec.workload.name,
        cpu_model=spec.cpu_model,
        devices=[gpu.address for gpu in spec.gpus if gpu.address],
        screen=spec.screen == "yes" or (spec.screen == "auto" and isinstance(boot, BootDisk)),
    )


def _choose_boot(wanted: LocalAllocation, image: CachedImage, seed: str | None) -> BootKernel | BootDisk:
    """What the guest boots: the image's own kernel, unless firmware is asked for or is all there is."""
    firmware, kernel, manifest = wanted.spec.firmware, image.kernel, image.manifest
    if kernel is not None and firmware == "auto":
        unseeded = manifest.seed == "nocloud" and seed is None  # spares the guest the search for what isn't there
        return BootKernel(
            kernel, image.initrd, f"{manifest.cmdline} cloud-init=disabled" if unseeded else manifest.cmdline
        )
    if kernel is not None and manifest.seed != "nocloud":
        raise InvalidInput(
            f"{wanted.what}: {_name_image(wanted)} has no boot loader for {firmware}",
            field="spec.firmware",
            hint="set spec.firmware to auto",
        )
    return BootDisk("uefi" if firmware == "uefi" else "bios")


def choose_seed(wanted: LocalAllocation, prepared: Prepared) -> Literal["tar", "nocloud", "machine"] | None:
    """Which seed disk the guest gets, if any. Raises InvalidInput for users or keys that its image can't make."""
    spec, image = wanted.spec, prepared.image
    given = bool(spec.user_data or spec.ssh_keys or spec.users)
    if image is not None and image.manifest.seed == "nocloud":
        direct = image.kernel is not None and spec.firmware == "auto"  # then the kernel's command line tells the name
        return None if direct and not given else "nocloud"
    if spec.ssh_keys or spec.users:
        raise InvalidInput(
            f"{wanted.what}: {_name_image(wanted)} has no cloud-init to set up users and keys",
            reason="noCloudInit",
            field="spec.ssh_keys" if spec.ssh_keys else "spec.users",
            hint="use an image that has it, such as debian-12 (weft image build debian-12)",
        )
    if image is not None and image.manifest.seed == "machine":
        return "machine"
    return "tar" if given else None


def _name_image(wanted: LocalAllocation) -> str:
    return f"image {wanted.spec.image.name}" if wanted.spec.image is not None else "its image"
