"""An image bundle: one plain tar that holds a disk and, where the image boots its kernel directly, kernel and initrd.

``image.json`` comes first in the archive and is a BundleManifest; the other members are plain files at the top level,
named in it. The image recipes write bundles, nodes unpack them; a plain qcow2 or raw file is an image too and needs none.
"""

from __future__ import annotations

from typing import Literal

import msgspec

MANIFEST_NAME = "image.json"


class BundleManifest(msgspec.Struct, frozen=True):
    """``disk`` is required; ``kernel``, ``initrd``, ``cmdline`` come together; ``agent`` says a weft guest agent is inside."""

    disk: str
    disk_format: Literal["qcow2", "raw"]
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str = ""
    agent: bool = False
    min_memory_bytes: int = 0
