"""Work on images that nodes are asked to do: to make one of a VM's disk, and to keep booted machines. Orders and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from weft.kinds.allocation import AllocatedImage

MOST_IMAGE_BYTES = 256 * 1024**3
# How files begin that lie among the contents of images on the server: partial ones, which may go at any time, and what a node has
# sent, until it is checked.
FETCHING, SENT = ".fetch-", ".sent-"


class ImageOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Make an image of a snapshot's root disk, and send it to the server."""

    uid: str  # of the Image
    name: str  # PROJECT/NAME of the Image, for people
    node_uid: str  # whom it is for
    snapshot: str  # uid
    disk: str  # what the pool's records call it
    image_sha256: str = ""  # content of the image that the disk stands on
    keeps_identity: bool = False
    hostname: str = ""  # of the VM

    @property
    def key(self) -> tuple[str, str]:
        return self.uid, self.snapshot


class ImageReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    uid: str
    snapshot: str
    phase: Literal["working", "done", "failed"] = "working"  # a failed one is final
    sha256: str = ""  # of what the server got
    cleaned: list[str] = []  # what was removed
    reason: str = ""
    message: str = ""  # of one that is being worked on: what is being done

    @property
    def key(self) -> tuple[str, str]:
        return self.uid, self.snapshot


def name_sent(folder: Path, uid: str, sha256: str) -> Path:
    """Path of what a node has sent for the image with this uid."""
    return folder / f"{SENT}{uid}.{sha256}"


def name_order(memory: int, least_cpu: int, most_cpu: int) -> str:
    """An order for a booted machine, as a node's word about it names it."""
    return f"{memory}/{least_cpu}-{most_cpu}"


class WarmOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """Order to every node: what its image's spec says of booted machines of it."""

    image: AllocatedImage
    memory: int = 0  # bytes; 0: what the image needs
    least_cpu: int = 1
    most_cpu: int = 4
    wanted: bool = True  # a node keeps one
    often: bool = True  # else a node keeps none automatically

    @property
    def node_uid(self) -> str:
        return ""

    @property
    def key(self) -> tuple[str, str]:
        return self.image.sha256, name_order(self.memory, self.least_cpu, self.most_cpu)


class WarmReport(msgspec.Struct, frozen=True, omit_defaults=True):
    sha256: str
    order: str  # ``name_order``: an image's order may have changed since
    state: str  # ready, making, or why there is no machine

    @property
    def key(self) -> tuple[str, str]:
        return self.sha256, self.order
