"""VMs on a node: their images, volumes and seeds; and the plan of a machine, which is pure."""

from __future__ import annotations

import math
from typing import Literal

from msgspec.structs import replace

from weft.agent.image.cache import CachedImage
from weft.agent.state.allocation import LocalAllocation
from weft.agent.template.copied import note_copy, write_wait
from weft.agent.template.fit import shrink
from weft.agent.template.setup import write_setup
from weft.agent.volume.encrypted import ensure_volume, grow_volume
from weft.agent.volume.origin import begins_from_memory, clone_missing
from weft.agent.workload.kind import NodeParts, Prepared, Show, shared_with_source
from weft.agent.workload.seed import build_nocloud, build_tar
from weft.agent.workload.shape import (
    ISO_SERIAL,
    MOST_DISK_BYTES,
    ROOT_SERIAL,
    SEED_SERIAL,
    has_devices,
    has_resources,
    name_serial,
)
from weft.agent.workload.user_data import refuse_unread_user_data
from weft.contracts.driver.identity import Identity
from weft.contracts.driver.runtime import BootDisk, BootKernel, GuestDisk, GuestNic, GuestPlan, GuestShape
from weft.kinds.allocation import ROOT, AllocatedImage, AllocationSpec, HealthCheck
from weft.objects.errors import DriverFailed, InvalidInput
from weft.objects.quantity import format_bytes


class Vm:
    """See WorkloadKind."""

    has_root_disk = True
    needs_guest_agent = True

    async def fetch_image(self, node: NodeParts, local: LocalAllocation, prepared: Prepared, show: Show) -> str:
        image = local.spec.image
        if image is None:
            raise DriverFailed(f"{local.what} has no image", details={"step": "image"})
        prepared.image, detail = await _fetch(node, image, show)
        if local.spec.iso is not None:
            prepared.iso, iso_detail = await _fetch(node, local.spec.iso, show)
            detail = f"{detail}, iso {iso_detail}"
        prepared.template = None
        if await _is_new(node, local):
            refuse_unread_user_data(local, prepared.image)
            if local.spec.boot != "cold":
                prepared.template = await node.templates.choose(local.spec, prepared.image, show)
        return detail

    async def prepare_volumes(self, node: NodeParts, local: LocalAllocation, prepared: Prepared) -> None:
        prepared.volumes = []
        prepared.keys = await node.volume_keys.open(local)
        for volume in local.spec.volumes:
            disks, shared = await node.pools.of(local.spec, volume.uid), volume.uid in shared_with_source(local)
            async with node.heavy:
                whose = f"{local.what}: its volume {volume.name}"
                await node.pools.refuse_elsewhere(local.spec, volume.uid, volume.uid, whose)
                facts = await clone_missing(node.pools, local, prepared.origin, volume.uid)
                key = prepared.keys.get(volume.uid, "")
                if facts is None:
                    make = disks.inspect(volume.uid) if shared else ensure_volume(disks, volume, key, whose)
                    facts = await make
                if facts is None:
                    raise DriverFailed(
                        f"{local.what}: volume {volume.name} is not in this node's storage pool {volume.pool}",
                        details={"step": "disk"},
                    )
                stays = shared or name_serial(volume.name) in prepared.attached or begins_from_memory(prepared.origin)
                if facts.size_bytes < volume.size and not stays:
                    facts = await grow_volume(disks, volume, key, whose)
            node.volumes.uids.add(volume.uid)
            prepared.volumes.append(facts)
            prepared.layers[volume.uid] = await node.pools.list_layers(local.spec, volume.uid, volume.uid)

    def build_seed(self, local: LocalAllocation, prepared: Prepared) -> tuple[str, bytes] | None:
        lacks = prepared.adjusting and SEED_SERIAL not in prepared.attached  # it began from a template
        form = choose_seed(local, prepared) if prepared.template is None and not lacks else None
        if form is None:
            return None
        return form, build_nocloud(local) if form == "nocloud" else build_tar(local, machine=form == "machine")

    def plan_guest(self, local: LocalAllocation, prepared: Prepared) -> GuestPlan:
        plan, template = plan_guest(local, prepared), prepared.template
        if template is None:
            return plan
        ref = local.spec.workload
        identity = Identity(ref.name, ref.uid.replace("-", ""))
        seeded = prepared.image is not None and prepared.image.manifest.seed == "nocloud"
        plan = shrink(plan, template)
        setup = write_wait(local.spec.nics, plan) + write_setup(local.spec, has_cloud_init=seeded)
        image = local.spec.image.name if local.spec.image is not None else ""
        note = note_copy(ref, f"the booted machine of image {image}", template.made_at)
        return replace(plan, identity=identity, setup=setup, console_note=note)

    def is_shaped(self, spec: AllocationSpec, shape: GuestShape) -> bool:
        return has_resources(spec, shape) and has_devices(spec, shape)

    def find_resize_limits(self, shape: GuestShape) -> dict[str, int]:
        slots = {"volumes": shape.free_slots, "networks": shape.free_slots} if shape.has_slots else {}
        return {"cpu": int(shape.most_cpu), "memory": shape.most_memory_bytes, "disk": MOST_DISK_BYTES, **slots}

    def find_health_check(self, spec: AllocationSpec) -> HealthCheck | None:
        return spec.health_check


async def _is_new(node: NodeParts, local: LocalAllocation) -> bool:
    """Whether it has never run, and begins from its image alone."""
    spec = local.spec
    if spec.role != "active" or spec.origin is not None:
        return False
    return await node.pools.inspect(spec, local.id) is None


async def _fetch(node: NodeParts, image: AllocatedImage, show: Show) -> tuple[CachedImage, str]:
    """The image in this node's cache, and how it came there, for people."""
    found = node.images.find(image.sha256)
    if found is not None:
        return found, "cached"
    total = format_bytes(image.size)
    began = node.clock.elapsed()
    fetched = await node.images.ensure(image, lambda length: show(f"{format_bytes(length)} of {total}"))
    return fetched, f"{total} in {node.clock.elapsed() - began:.1f} s"


def plan_guest(local: LocalAllocation, prepared: Prepared) -> GuestPlan:
    """The guest of ``local``. Raises InvalidInput when the image needs more memory than the guest has."""
    spec, image, root = local.spec, prepared.image, prepared.root
    if image is None or root is None or spec.image is None:
        raise InvalidInput(f"{local.what} has no disk to boot from")
    if spec.resources.memory < image.manifest.min_memory_bytes:
        raise InvalidInput(
            f"{local.what} has {format_bytes(spec.resources.memory)} of memory; image {spec.image.name} needs "
            f"{format_bytes(image.manifest.min_memory_bytes)}",
            reason="tooLittleMemory",
            field="spec.memory",
            hint="stop it and give it more memory",
        )
    boot = _choose_boot(local, image, prepared.seed)
    disks = [
        GuestDisk(
            root.path,
            root.format,
            ROOT_SERIAL,
            size_bytes=max(root.size_bytes, spec.resources.disk),
            base=image.disk if root.rbd is None else None,  # an RBD image stands on its own in its pool
            base_format=image.disk_format,
            layers=prepared.layers.get(ROOT, []),
            rbd=root.rbd,
        )
    ]
    for volume, facts in zip(spec.volumes, prepared.volumes, strict=True):
        size = max(facts.size_bytes, volume.size)
        layers = prepared.layers.get(volume.uid, [])
        serial, key = name_serial(volume.name), prepared.keys.get(volume.uid, "")
        disk = GuestDisk(facts.path, facts.format, serial, size_bytes=size, layers=layers, rbd=facts.rbd, key=key)
        disks.append(disk)
    if prepared.seed is not None:
        disks.append(GuestDisk(prepared.seed, "raw", SEED_SERIAL, read_only=True))
    if prepared.iso is not None:
        disks.append(GuestDisk(prepared.iso.disk, "raw", ISO_SERIAL, read_only=True, cdrom=True))
    return GuestPlan(
        id=local.id,
        uid=local.uid,
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
        hostname=spec.hostname or spec.workload.name,
        cpu_model=spec.cpu_model,
        devices=[gpu.address for gpu in spec.gpus if gpu.address],
        screen=spec.screen == "yes" or (spec.screen == "auto" and isinstance(boot, BootDisk)),
    )


def _choose_boot(local: LocalAllocation, image: CachedImage, seed: str | None) -> BootKernel | BootDisk:
    """How the guest boots: with the image's own kernel, unless the spec names firmware or the image has no kernel."""
    firmware, kernel, manifest = local.spec.firmware, image.kernel, image.manifest
    if kernel is not None and firmware == "auto":
        unseeded = manifest.seed == "nocloud" and seed is None  # spares the guest the search for a seed
        return BootKernel(
            kernel, image.initrd, f"{manifest.cmdline} cloud-init=disabled" if unseeded else manifest.cmdline
        )
    if kernel is not None and manifest.seed != "nocloud":
        raise InvalidInput(
            f"{local.what}: {_name_image(local)} has no boot loader for {firmware}",
            field="spec.firmware",
            hint="set spec.firmware to auto",
        )
    return BootDisk("uefi" if firmware == "uefi" else "bios")


def choose_seed(local: LocalAllocation, prepared: Prepared) -> Literal["tar", "nocloud", "machine"] | None:
    """The form of the guest's seed disk, if it gets one. Raises InvalidInput for users or keys that its image can't set up."""
    spec, image = local.spec, prepared.image
    given = bool(spec.user_data or spec.ssh_keys or spec.users)
    if image is not None and image.manifest.seed == "nocloud":
        direct = image.kernel is not None and spec.firmware == "auto"  # then the kernel's command line sets the name
        return None if direct and not given else "nocloud"
    if spec.ssh_keys or spec.users:
        raise InvalidInput(
            f"{local.what}: {_name_image(local)} has no cloud-init to set up users and keys",
            reason="noCloudInit",
            field="spec.ssh_keys" if spec.ssh_keys else "spec.users",
            hint="use an image that has it, such as debian-12 (weft image build debian-12)",
        )
    if image is not None and image.manifest.seed == "machine":
        return "machine"
    return "tar" if given else None


def _name_image(local: LocalAllocation) -> str:
    return f"image {local.spec.image.name}" if local.spec.image is not None else "its image"
