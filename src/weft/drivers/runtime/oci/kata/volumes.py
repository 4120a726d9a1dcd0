"""The disks of a container whose machine has folders of the node, its volumes and what it writes into its root: each mounted on the
node, where containerd's shim sees it.

They lie apart from the container's run files: nothing that clears those away may ever meet what somebody keeps in a volume.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from weft.contracts.driver.container import ContainerPlan
from weft.drivers.linux.syscalls import unmount
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.rootfs.loop_device import mount_disk
from weft.drivers.runtime.oci.rootfs.overlay import mount_written


def volumes_folder(paths: ContainerPaths) -> Path:
    return paths.run.parent.with_name("volumes") / paths.run.name


def mount_volumes(plan: ContainerPlan, paths: ContainerPaths, folder: Path) -> Path:
    """Each in a folder that has its number among the plan's mounts. Where its root's overlay is to write. Raises OSError."""
    unmount_volumes(folder)  # of a run whose end was never settled
    for number, volume in enumerate(plan.mounts):
        if volume.source and volume.file_system:
            target = folder / str(number)
            target.mkdir(mode=0o700, parents=True)
            mount_disk(volume.source, target, volume.file_system)
    return mount_written(paths, folder / "root")


def unmount_volumes(folder: Path) -> None:
    """Unmount what is mounted there, if anything; a disk is released once the last process that sees it has ended. Raises
    OSError."""
    for target in folder.glob("*"):
        while target.is_mount():
            unmount(target)
        target.rmdir()
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
