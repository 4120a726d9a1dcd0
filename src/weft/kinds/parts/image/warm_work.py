"""Booted machines of images that nodes are asked to keep: the order, and the node's report on it."""

from __future__ import annotations

import msgspec

from weft.kinds.allocation import AllocatedImage
from weft.kinds.image import name_order


class WarmOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """For every node: what its image's spec says of booted machines of it."""

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
