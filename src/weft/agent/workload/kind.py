"""The contract of a kind of workload on a node: its images, volumes and seed, and the plan of its guest. A kind is one file beside
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
from weft.agent.secret.volume_keys import VolumeKeys
from weft.agent.state.allocation import LocalAllocation
from weft.agent.template.fit import Template
from weft.agent.template.library import TemplateLibrary
from weft.agent.volume.inventory import Volumes
from weft.agent.volume.pools import Pools
from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import DiskLayer, GuestShape
from weft.contracts.driver.volume import VolumeFacts
from weft.kinds.allocation import AllocationSpec, HealthCheck
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin

Show = Callable[[str], None]  # shows a step's progress to people


class Prepared(msgspec.Struct):
    """The results of the steps before the start."""

    iso: CachedImage | None = None
    image: CachedImage | None = None
    template: Template | None = None  # it begins from this one
    origin: AllocatedOrigin | None = None  # no guest of it has begun from this one
    digest: str = ""  # of a container's image, if it has had one
    pulled: PulledImage | None = None
    env: dict[str, str] = {}  # a container's variables from secrets
    root: VolumeFacts | None = None
    volumes: list[VolumeFacts] = []  # in the order of the spec's
    keys: dict[str, str] = {}  # of encrypted volumes, by uid: paths of their passphrases
    layers: dict[str, list[DiskLayer]] = {}  # under the files of ROOT and of volumes by uid, bottom first
    links: list[str] = []  # interface names in the order of the NICs, or for each the namespace that they lie in
    in_namespace: bool = True
    seed: str | None = None  # its path
    adjusting: bool = False  # the running guest has its volumes
    attached: list[str] = []  # serials of the disks that the running guest has open


class GathersLogs(Protocol):
    async def drain(self, local: LocalAllocation) -> None:
        """Read all that it printed here: its files are about to go."""


class NodeParts(msgspec.Struct, frozen=True):
    """The parts of the node through which a kind acts."""

    images: ImageCache
    container_images: ContainerImages
    secrets: Secrets
    volume_keys: VolumeKeys
    pools: Pools
    volumes: Volumes
    templates: TemplateLibrary
    heavy: asyncio.Semaphore  # bounds concurrent disks and starts, which slow each other
    logs: GathersLogs
    clock: Clock


class WorkloadKind(Protocol):
    @property
    def has_root_disk(self) -> bool:
        """Whether it has a root disk of its own on the node; else its root is its image's."""

    @property
    def needs_guest_agent(self) -> bool:
        """Whether commands reach it only through an agent inside."""

    async def fetch_image(self, node: NodeParts, local: LocalAllocation, prepared: Prepared, show: Show) -> str:
        """Bring its image to this node; returns how, for people. Raises WeftError, OSError."""

    async def prepare_volumes(self, node: NodeParts, local: LocalAllocation, prepared: Prepared) -> None:
        """Make its volumes on this node. Raises WeftError, OSError."""

    def build_seed(self, local: LocalAllocation, prepared: Prepared) -> tuple[str, bytes] | None:
        """The seed disk's file extension and content, if it needs one. Raises InvalidInput."""

    def plan_guest(self, local: LocalAllocation, prepared: Prepared) -> Any:
        """The plan for its runtime. Raises InvalidInput, DriverFailed."""

    def is_shaped(self, spec: AllocationSpec, shape: GuestShape) -> bool:
        """Whether a running guest of this shape matches the spec."""

    def find_resize_limits(self, shape: GuestShape) -> dict[str, int]:
        """The limits of a resize while the guest runs, by field of its spec."""

    def find_health_check(self, spec: AllocationSpec) -> HealthCheck | None:
        """Its own health check, if it has one."""


def shared_with_source(local: LocalAllocation) -> tuple[str, ...]:
    """The disks that an arriving guest shares with its source, which uses them."""
    migration = local.spec.migration
    return migration.shared if migration is not None and local.spec.role == "target" else ()
