"""What every workload may wish of its place, whatever it is: the placement fields that all workload kinds share.

A workload's spec inherits it, and its kind's check calls ``check_wish``."""

from __future__ import annotations

from typing import Annotated

import msgspec

from weft.kinds.strategy import read_strategy
from weft.kinds.taint import check_taints
from weft.objects.schema import field


class WorkloadWish(msgspec.Struct, kw_only=True):
    strategy: Annotated[str | None, field("Placement strategy; the cluster's default if unset", change="live")] = None
    node: Annotated[str | None, field("Place on this node and no other", change="live", name=True)] = None
    tolerate: Annotated[
        list[str], field("Taints it can live with: NAME, or NAME=VALUE for that value only", change="live")
    ] = []


def check_wish(spec: WorkloadWish) -> None:
    """What types can't say of them; what has several spellings gets its one. Raises InvalidInput."""
    if spec.strategy is not None:
        spec.strategy = read_strategy(spec.strategy)
    check_taints(spec.tolerate, "spec.tolerate")
