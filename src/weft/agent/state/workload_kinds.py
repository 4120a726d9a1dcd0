"""The kinds of workloads, of which there are few: an agent needs hardly any other, and the registry of all takes 2 MB."""

from __future__ import annotations

from weft.kinds.container import CONTAINER
from weft.kinds.record import Kind
from weft.kinds.vm import VM

WORKLOAD_KINDS: dict[str, Kind] = {kind.name: kind for kind in (VM, CONTAINER)}


def is_workload(kind: str) -> bool:
    """Whether objects of the kind are placed and run."""
    return kind in WORKLOAD_KINDS
