"""What the allocations of this node take of it: room, networks, volumes, images; and which of them nobody wishes any more. Pure:
their workers are only read."""

from __future__ import annotations

from collections.abc import Iterable

from weft.agent.allocation.worker import Worker
from weft.agent.state.allocation import LocalAllocation
from weft.kinds.parts.orphan import GuestLocation


def list_hosted(workers: Iterable[Worker]) -> list[LocalAllocation]:
    """Those whose networks are needed on this node."""
    return [worker.wanted for worker in workers if worker.is_hosted]


def list_orphans(workers: Iterable[Worker]) -> list[LocalAllocation]:
    """Those that the server doesn't know."""
    return [worker.wanted for worker in workers if worker.memory.orphan]


def describe_orphans(workers: Iterable[Worker]) -> list[tuple[LocalAllocation, GuestLocation, str, bool]]:
    """The same, with where their guests are, the move that they were a side of last, and whether they run."""
    return [
        (worker.wanted, worker.notes.standing, worker.notes.last_move, worker.life.is_seen_alive)
        for worker in workers
        if worker.memory.orphan
    ]


def count_room(workers: Iterable[Worker]) -> tuple[float, int]:
    """CPU in cores and bytes of memory that they have here, whether or not their guests run now."""
    resources = [worker.wanted.spec.resources for worker in workers if not worker.released]
    return sum(one.cpu for one in resources), sum(one.memory for one in resources)


def find_networks(workers: Iterable[Worker]) -> set[str]:
    """The uids of the networks that they are to be in."""
    return {nic.network_uid for worker in workers for nic in worker.wanted.spec.nics}


def find_volumes(workers: Iterable[Worker]) -> set[str]:
    """The uids of the volumes that they have here."""
    return {volume.uid for worker in workers if worker.memory.made for volume in worker.wanted.spec.volumes}


def find_images(workers: Iterable[Worker]) -> set[str]:
    """The hashes of those that a disk of theirs stands on, or soon will."""
    specs = [worker.wanted.spec for worker in workers]
    return {image.sha256 for spec in specs for image in (spec.image, spec.iso) if image is not None}


def find_container_images(workers: Iterable[Worker]) -> set[str]:
    """The digests of those that their containers run; "" for what has none yet."""
    return {worker.memory.image for worker in workers}
