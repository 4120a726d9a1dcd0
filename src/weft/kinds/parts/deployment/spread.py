"""How replicas of a deployment keep apart by default: over the nodes, each revision by itself, so that what an update leaves is
spread, too. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from weft.kinds.parts.workload import WorkloadSpec

S = TypeVar("S", bound=WorkloadSpec)
_PLACING = ("node", "affinity_groups", "anti_affinity_groups", "spread")  # of the template, that replace the default
DEFAULTS = ("anti_affinity_groups", "spread")  # fields that the default sets


def names_places(template: Mapping[str, Any]) -> bool:
    """Whether a template says itself where its instances go."""
    return any(template.get(name) for name in _PLACING)


def spread_replicas(template: S, deployment: str, revision: int) -> S:
    """The spec of an instance: kept apart from others of its revision, if nodes allow it."""
    if names_places(msgspec.structs.asdict(template)):
        return template
    return msgspec.structs.replace(
        template, anti_affinity_groups=[f"{deployment}-{revision}:preferred"], spread=["host:preferred"]
    )
