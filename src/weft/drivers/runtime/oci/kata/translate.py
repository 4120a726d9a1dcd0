"""The configuration that containerd gets for a container with a machine of its own. Pure.

Source: containerd's runtime v2 documentation (names of classes and their shims), overlayfs in the kernel's documentation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.driver.container import ContainerPlan
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.translate import OciHostFacts, translate_container
from weft.objects.errors import InvalidInput

_PREFIX, _VERSION = "io.containerd.", "v2"
ROOT = "rootfs"  # in the bundle, where a shim mounts what it is given with the task


def name_class(word: str) -> str:
    """containerd's name for a runtime: of ``kata-clh`` io.containerd.kata-clh.v2."""
    return f"{_PREFIX}{word}.{_VERSION}"


def name_shim(runtime_class: str) -> str:
    """The program that containerd starts for it."""
    return f"containerd-shim-{runtime_class.removeprefix(_PREFIX).replace('.', '-')}"


def check_plan(plan: ContainerPlan) -> None:
    """Raises InvalidInput for what a machine of its own can't have."""
    for asked, name in ((plan.devices, "devices"), (plan.terminal, "terminal"), (plan.nics, "nics")):
        if asked:
            raise InvalidInput(
                f"container/{plan.name}: {name} is not supported in a microVM", reason="notServed", field=name
            )


def translate_isolated(
    plan: ContainerPlan, paths: ContainerPaths, facts: OciHostFacts, volumes: Path, *, cgroup: str
) -> dict[str, Any]:
    """Its OCI configuration: users are the machine's own; disks are mounted on the node below ``volumes``, handed in as folders."""
    mounts = [
        msgspec.structs.replace(mount, source=str(volumes / str(number)), file_system="")
        if mount.file_system
        else mount
        for number, mount in enumerate(plan.mounts)
    ]
    plan = msgspec.structs.replace(plan, mounts=mounts)
    config = translate_container(plan, paths, facts, cgroup=cgroup, users=None, devices=[])
    config["root"]["path"] = ROOT
    return config


def plan_root(layers: int, paths: ContainerPaths, written: Path) -> list[str]:
    """The options of the overlay that is its root, over what lies in ``written``. Layers go by short names, as many fit into one
    page."""
    lower = ":".join(str(paths.mounts / str(number)) for number in range(layers))
    return [f"lowerdir={lower}", f"upperdir={written / 'upper'}", f"workdir={written / 'work'}"]
