"""Messages between an agent and the process that makes an image of a VM's disk."""

from __future__ import annotations

import msgspec

from weft.objects.image.bundle import BundleManifest

BUNDLE, DISK = "image", "disk.qcow2"  # files in the job's folder


class ImageJob(msgspec.Struct, frozen=True):
    socket: str  # where the disk is served
    size: int
    extents: list[tuple[int, int, bool]]
    folder: str  # empty, for this job alone
    manifest: BundleManifest  # of the image that the VM was made from
    parts: str = ""  # the folder with that image's kernel and initrd
    keeps_identity: bool = False
    hostname: str = ""


class ImageLine(msgspec.Struct, frozen=True, omit_defaults=True):
    step: str = ""  # what is being done
    sha256: str = ""  # of the image: it is done
    size: int = 0
    cleaned: list[str] = []
    reason: str = ""  # it failed
    message: str = ""
