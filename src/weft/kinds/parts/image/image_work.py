"""The work on an image that a node is asked to do: the order, which is in the image's status, and the node's report on it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

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
    """What a node has sent for the image with this uid."""
    return folder / f"{SENT}{uid}.{sha256}"
