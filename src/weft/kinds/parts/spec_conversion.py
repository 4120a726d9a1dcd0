"""A container as a VM on the same image, and back. Pure.

Common fields are copied; fields that a VM reads from lines of its user data are written there (``user_data``), and fields that it
lacks are kept there, so that converting back gives the same spec. The caller gives the image: the same digest."""

from __future__ import annotations

from typing import Any

import msgspec

from weft.kinds.container import ContainerSpec, check_container
from weft.kinds.fields.mount import read_mount
from weft.kinds.parts.placement_spec import MIB
from weft.kinds.parts.user_data import MOST_CHARACTERS, Process, read_process, write_process
from weft.kinds.parts.workload import WorkloadSpec
from weft.kinds.vm import VmSpec, check_vm
from weft.objects.errors import InvalidInput

KERNEL_BYTES = 64 * MIB  # what a machine's own kernel takes beside what runs in it
LEAST_VM_BYTES = 128 * MIB
_SHARED = tuple(name for name in WorkloadSpec.__struct_fields__ if name not in ("run", "hold", "memory"))
# A container's fields that a VM lacks, and the text that "left out" shows for each.
_KEPT = {
    "read_only": "read_only: the VM's root is writable",
    "add_capabilities": "add_capabilities: its process may do what its user may in a machine of its own",
    "drop_capabilities": "drop_capabilities: its process may do what its user may in a machine of its own",
    "pids": "pids: the number of its processes isn't limited",
    "health_check": "health_check: a VM's health isn't checked",
    "disk": "",  # the image's, or as it is asked for
    "isolation": "",  # a machine of its own is what it gets
    "preemptible": "preemptible: it is never evicted",
    "registry_secret": "",  # the Image's, if that was made for it
}
# A VM's fields that a container lacks.
_LOST = {
    "disk": "",  # as much may the container write
    "pool": "pool: what a container writes lies in its node's own pool",
    "machine": "",
    "cpu_model": "cpu_model: a container sees its node's CPU",
    "firmware": "",
    "screen": "screen: a container has none",
    "iso": "iso: a container has no drives",
    "ssh_keys": "ssh_keys: a container has no SSH server",
    "users": "users: a container has those of its image",
}


class Translated(msgspec.Struct, frozen=True):
    spec: WorkloadSpec
    left_out: tuple[str, ...]  # what the new workload lacks, a sentence each


def refuse_untranslatable(spec: WorkloadSpec) -> None:
    """Raises InvalidInput, naming field and remedy, for fields that the other kind can't take."""
    if spec.gpus or spec.gpu_share is not None:
        raise _refused(
            "gpus",
            "a workload with a GPU can't be converted",
            "remove the GPU first, or create the new workload by hand",
        )
    if spec.gang is not None:
        raise _refused("gang", "a member of a gang can't be converted alone", "take it out of its gang first")
    if isinstance(spec, ContainerSpec):
        if spec.once:
            raise _refused(
                "once", "a workload that runs once can't be started again as another kind", "create the VM by hand"
            )
        if spec.env_secrets:
            hint = "give these variables another way, like a file in a volume, and take them out of env_secrets"
            raise _refused("env_secrets", "a VM can't be given variables from secrets", hint)
        _lines_of(spec, spec.memory)
        return
    assert isinstance(spec, VmSpec)
    process = read_process(spec.user_data)
    named = [read_mount(mount, "spec.user_data").volume for mount in process.mounts]
    strange = [volume for volume in named if volume not in spec.volumes]
    if strange:
        hint = f"weft volume attach {strange[0]} VM, or remove that line"
        raise _refused("user_data", f"it mounts volume {strange[0]}, which the VM doesn't have", hint)
    loose = [volume for volume in spec.volumes if volume not in named]
    if loose:
        hint = f"mount {loose[0]}:/PATH in its user data says where, or: weft volume detach {loose[0]} VM"
        raise _refused("volumes", f"nothing says where a container would mount volume {loose[0]}", hint)


def to_vm(spec: ContainerSpec, image: str, *, memory: int = 0, disk: int = 0) -> Translated:
    """The VM on ``image``, an Image of the same digest, that does what the container does; bytes, 0 where weft chooses.
    Raises InvalidInput."""
    refuse_untranslatable(spec)
    own_kernel = 0 if spec.isolation == "vm" else KERNEL_BYTES
    memory = memory or max(LEAST_VM_BYTES, spec.memory + own_kernel)
    vm = VmSpec(
        **_shared(spec),
        memory=memory,
        image=image,
        disk=disk,
        volumes=[read_mount(mount).volume for mount in spec.mounts],
        user_data=_lines_of(spec, memory),
        run="stop",
    )
    check_vm(vm)
    default = ContainerSpec(image=spec.image)
    gone = (text for name, text in _KEPT.items() if text and getattr(spec, name) != getattr(default, name))
    return Translated(vm, tuple(gone))


def refuse_elsewhere(what: str, image: str) -> None:
    """Raises InvalidInput for a VM on an image of another project: where that is from, and its credentials, are that project's."""
    if "/" in image:
        raise InvalidInput(
            f"{what} stands on image {image} of another project; only VMs on images of their own project can be converted",
            field="spec.image",
            hint="weft image add NAME oci://… makes one of your own",
        )


def to_container(spec: VmSpec, image: str, *, memory: int = 0, registry_secret: str = "") -> Translated:
    """The container of ``image``, REGISTRY/NAME@sha256:… or NAME, that does what the VM on it does. Raises InvalidInput."""
    refuse_untranslatable(spec)
    process = read_process(spec.user_data)
    kept, sizes = _read_kept(process.keep)
    unchanged = sizes.memory and sizes.vm_memory == spec.memory
    container = ContainerSpec(
        **{**_shared(spec), "restart": process.restart or spec.restart},
        memory=memory or (sizes.memory if unchanged else spec.memory),
        image=image,
        command=process.command,
        args=process.args,
        env=process.env,
        mounts=process.mounts,
        user=process.user,
        run="stop",
        **{"registry_secret": registry_secret, **({"disk": spec.disk} if spec.disk else {}), **kept},
    )
    check_container(container)
    default = VmSpec(image=spec.image)
    gone = [text for name, text in _LOST.items() if text and getattr(spec, name) != getattr(default, name)]
    return Translated(
        container,
        (*gone, *([f"cwd {process.cwd}: the container starts in its image's directory"] if process.cwd else [])),
    )


def _shared(spec: WorkloadSpec) -> dict[str, Any]:
    """Fields that both kinds have, except whether it runs."""
    return {name: getattr(spec, name) for name in _SHARED}


def _lines_of(spec: ContainerSpec, vm_memory: int) -> str:
    default = ContainerSpec(image=spec.image)
    kept = {name: getattr(spec, name) for name in _KEPT if getattr(spec, name) != getattr(default, name)}
    lines = write_process(
        Process(
            command=spec.command,
            args=spec.args,
            env=spec.env,
            user=spec.user,
            mounts=spec.mounts,
            restart="on-failure" if spec.restart == "on-failure" else "",
            keep={**msgspec.to_builtins(kept), "memory": spec.memory, "vm_memory": vm_memory},
        )
    )
    if len(lines) > MOST_CHARACTERS:
        hint = "put large values into a volume"
        raise _refused("env", "variables and arguments are more than a VM can be given (64 KiB)", hint)
    return lines


class _Sizes(msgspec.Struct):
    memory: int = 0
    vm_memory: int = 0


def _read_kept(keep: dict[str, Any]) -> tuple[dict[str, Any], _Sizes]:
    """The kept fields of a container's spec, and its memory with the VM's."""
    kept = {name: keep[name] for name in _KEPT if name in keep}
    try:
        spec, sizes = msgspec.convert({"image": "", **kept}, ContainerSpec), msgspec.convert(keep, _Sizes)
    except msgspec.ValidationError as problem:  # anybody may have written that line
        raise _refused("user_data", f"its line keep: {problem}", "correct that line, or remove it") from None
    return {name: getattr(spec, name) for name in kept}, sizes


def _refused(name: str, fact: str, hint: str) -> InvalidInput:
    return InvalidInput(f"spec.{name}: {fact}", field=f"spec.{name}", hint=hint)
