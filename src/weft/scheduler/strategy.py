"""Which strategy decides on a workload: its own, else the cluster's; in its one spelling. Pure."""

from __future__ import annotations

from weft.kinds.strategy import parse_strategy, read_strategy
from weft.kinds.workload_wish import WorkloadWish
from weft.objects.errors import NotFound


def find_strategy(wish: WorkloadWish, default: str) -> str:
    """The strategy that a workload with this ``wish`` is placed by. Raises InvalidStrategy, and NotFound for a policy that
    isn't there."""
    strategy = default if wish.strategy is None else read_strategy(wish.strategy)
    if strategy.startswith("@"):
        raise NotFound(f'placement policy "{strategy[1:]}" does not exist', reason="policyNotFound")
    own = next((term.name for term in parse_strategy(strategy) if term.own), None)
    if own is not None:
        raise NotFound(f"{own} is no policy that this server runs", reason="policyNotFound")
    return strategy
