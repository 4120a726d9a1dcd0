"""What a workload of one kind is on a node: what it needs before it starts, and the plan of its guest. A kind is one file beside
this one, and one line in ``kinds.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from weft.agent.image.cache import CachedImage, ImageCache
from weft.agent.image.oci import ContainerImages, PulledImage
from weft.agent.secret.cache import Secrets
from weft.agent.state.allocation import LocalAllocation
from weft.agent.volume.inventory import Volumes
from weft.agent.volume.pools import Pools
from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import GuestShape
from weft.contracts.driver.volume import VolumeFacts
from weft.kinds.allocation import AllocationSpec, HealthCheck

Show = Callable[[str], None]  # how far a step is, for people who watch


class Prepared(msgspec.Struct):
    """What the steps before the start have made."""

    image: CachedImage | None = None
    iso: CachedImage | None = None
    digest: str = ""  # of a container's image, once it has had one
    pulled: PulledImage | None = None
    env: dict[str, str] = {}  # of a container's variables, those that secrets hold
    root: VolumeFacts | None = None
    volumes: list[VolumeFacts] = []  # in the order of the spec's
    links: list[
        str
    ] = []  # the interfaces' names, in the order of the NICs; or the namespace that they lie in, for each the same
    in_namespace: bool = True
    seed: str | None = None  # its path
    adjusting: bool = False  # what runs has its volumes
    attached: list[str] = []  # serials of the disks that the running guest has open


class NodeParts(msgspec.Struct, frozen=True):
    """What of the node a kind acts through."""

    images: ImageCache
    container_images: ContainerImages
    secrets: Secrets
    pools: Pools
    volumes: Volumes
    heavy: asyncio.Semaphore  # for disks and starts: more at once only slow each other
    clock: Clock


class WorkloadKind(Protocol):
    @property
    def has_root_disk(self) -> bool:
        """Whether its root is a disk that is made on the node; else it is its image's."""

    @property
    def needs_guest_agent(self) -> bool:
        """Whether commands reach it only through an agent inside."""

    async def fetch_image(self, node: NodeParts, local: LocalAllocation, prepared: Prepared, show: Show) -> str:
        """Have its image on this node, and return how it came there. Raises WeftError, OSError."""

    async def prepare_volumes(self, node: NodeParts, local: LocalAllocation, prepared: Prepared) -> None:
        """Have its volumes on this node. Raises WeftError, OSError."""

    def build_seed(self, local: LocalAllocation, prepared: Prepared) -> tuple[str, bytes] | None:
        """The seed disk, if it needs one, and the ending of its file's name. Raises InvalidInput."""

    def plan_guest(self, local: LocalAllocation, prepared: Prepared) -> Any:
        """What its runtime starts. Raises InvalidInput, DriverFailed."""

    def is_shaped(self, spec: AllocationSpec, shape: GuestShape) -> bool:
        """Whether a running guest of this shape is what the spec asks for."""

    def find_resize_limits(self, shape: GuestShape) -> dict[str, int]:
        """What the guest can be resized to while it runs, by field of its spec."""

    def find_health_check(self, spec: AllocationSpec) -> HealthCheck | None:
        """Its own health check, if it has one."""


def shared_with_source(local: LocalAllocation) -> tuple[str, ...]:
    """The disks of a guest that comes which are here already, and in use where it comes from."""
    migration = local.spec.migration
    return migration.shared if migration is not None and local.spec.role == "target" else ()
