"""The allocations of this node, and summaries for the agent's parts: networks, volumes, images, capacity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from weft.agent.state.allocation import LocalAllocation
from weft.agent.state.allocation_state import AllocationState, has_begun
from weft.agent.state.lease import closes_ports
from weft.agent.state.snapshots import find_snapshots
from weft.contracts.driver.runtime import GuestFacts
from weft.protocol.heartbeat import Instances


class FunctionHost(Protocol):
    """The instances of functions on this node. Allocations have the first claim on its capacity."""

    def used_images(self) -> set[str]:
        """Digests of the container images that instances need."""

    def report(self) -> dict[str, str]:
        """Report by isolation, for the node's report: "yes", or why instances can't run here."""

    def count(self) -> Instances:
        """Count the instances for the heartbeat."""

    def on_capacity(self) -> None:
        """Allocations may take more capacity now, or less."""


class AllocationTable:
    def __init__(self) -> None:
        self.states: dict[str, AllocationState] = {}  # by allocation uid
        self.found: dict[str, GuestFacts] = {}  # the guests that were here at the start, by id
        self.egress: dict[str, LocalAllocation] = {}  # the node's own endpoints, by network uid
        self.functions: FunctionHost | None = None
        self.booting_bytes = 0  # of memory: of a machine that boots to become a template

    def __iter__(self) -> Iterator[AllocationState]:
        return iter(list(self.states.values()))

    def find(self, allocation: str) -> LocalAllocation | None:
        """The allocation of that name or uid, if this node has it."""
        return next((state.local for state in self if allocation in (state.local.name, state.local.uid)), None)

    def orphans(self) -> list[AllocationState]:
        """Allocations that the server doesn't know."""
        return [state for state in self if state.checkpoint.orphan]

    def unexplained(self) -> list[GuestFacts]:
        """The guests that were here at the start and belong to no allocation."""
        ids = {state.local.id for state in self}
        return [guest for id, guest in self.found.items() if id not in ids]

    def hosted(self) -> list[LocalAllocation]:
        """Allocations whose networks are needed on this node, and the node's own egress endpoints."""
        return [s.local for s in self if s.checkpoint.made and not s.unplugged] + list(self.egress.values())

    def find_closed(self, now: float) -> set[str]:
        """The uids of allocations whose ports are closed at ``now`` (seconds since 1970)."""
        return {s.local.uid for s in self if closes_ports(s.local.spec.lease, s.guest, now, begun=has_begun(s))}

    def networks(self) -> set[str]:
        """The uids of the networks that anything here is in or will be in."""
        return {nic.network_uid for state in self for nic in state.local.spec.nics} | self.egress.keys()

    def volumes(self) -> set[str]:
        """The uids of the volumes that allocations have here."""
        return {volume.uid for state in self if state.checkpoint.made for volume in state.local.spec.volumes}

    def snapshots(self) -> set[str]:
        """The uids of the snapshots that are being taken of allocations here, or that allocations begin from or go back to."""
        return set[str]().union(*(find_snapshots(s.local, s.checkpoint) for s in self if not s.released))

    def images(self) -> set[str] | None:
        """The hashes of the images that disks here need, or soon will. None: an unexplained guest may need any."""
        specs = [state.local.spec for state in self]
        used = {image.sha256 for spec in specs for image in (spec.image, spec.iso) if image is not None}
        return None if self.unexplained() else used

    def container_images(self) -> set[str] | None:
        """The digests of the images of containers here, and of functions; None as for ``images``."""
        used = self.functions.used_images() if self.functions is not None else set()
        used |= {state.checkpoint.image for state in self}
        return None if self.unexplained() else used - {""}

    def count_requested(self) -> tuple[float, int]:
        """CPU in cores and bytes of memory that allocations reserve, whether or not their guests run now, and a template's boot."""
        resources = [state.local.spec.resources for state in self if not state.released]
        return sum(one.cpu for one in resources), sum(one.memory for one in resources) + self.booting_bytes
