"""How a change of the template reaches the instances of a deployment."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.fields.deployment.scaling import MOST_REPLICAS
from weft.objects.errors import InvalidInput
from weft.objects.schema import field

StrategyType = Literal["rolling", "blue-green", "canary"]
Share = Annotated[float, field("", quantity="share")]


class RolloutStrategy(msgspec.Struct, kw_only=True):
    type: Annotated[
        StrategyType,
        field(
            "rolling: one instance after another; blue-green: a whole set beside the old one; canary: a part of the requests first"
        ),
    ] = "rolling"
    max_unavailable: Annotated[
        int, field("How many instances fewer than replicas may be healthy", ge=0, le=MOST_REPLICAS)
    ] = 1
    max_surge: Annotated[int, field("How many instances more than replicas there may be", ge=0, le=MOST_REPLICAS)] = 1
    health_check_timeout: Annotated[
        float, field("How long the rollout waits for the next healthy instance before it fails", quantity="duration")
    ] = 300.0
    rollback_on_failure: Annotated[bool, field("Go back to the old revision if the new one fails")] = False
    live_migrate: Annotated[
        bool, field("Migrate an instance live if its node lacks the capacity for a change that needs no restart")
    ] = False
    traffic_split: Annotated[
        float, field("blue-green: share of the requests for the new set until it is promoted", quantity="share")
    ] = 0.0
    canary_steps: Annotated[
        list[Share], field("canary: share of the requests for the new revision in each step, like 5%")
    ] = msgspec.field(default_factory=lambda: [0.05])
    success_threshold: Annotated[float, field("canary: share of the requests that must succeed", quantity="share")] = (
        0.999
    )
    monitor_duration: Annotated[float, field("canary: how long each step is watched", quantity="duration")] = 600.0
    auto_promote: Annotated[bool, field("Promote without a person's word once the new revision is judged good")] = False
    on_undecided: Annotated[
        Literal["hold", "promote", "revert"], field("canary: what to do when too few requests came to judge")
    ] = "hold"
    keep_old: Annotated[
        float, field("blue-green: how long the old set is kept after the switch, for a quick undo", quantity="duration")
    ] = 300.0


def check_strategy(strategy: RolloutStrategy, min_healthy: float) -> None:
    """Raises InvalidInput; ``min_healthy`` in seconds."""
    at = "spec.strategy"
    if strategy.type == "rolling" and strategy.max_surge == 0 and strategy.max_unavailable == 0:
        raise InvalidInput(
            f"{at}.max_unavailable: with max_surge 0, too, no instance could be replaced",
            field=f"{at}.max_unavailable",
            hint="set either of them to at least 1",
        )
    if strategy.health_check_timeout < max(1.0, min_healthy):
        raise InvalidInput(
            f"{at}.health_check_timeout: shorter than spec.min_healthy, so that no instance could become healthy in time",
            field=f"{at}.health_check_timeout",
            hint="give a longer timeout, or set spec.min_healthy to less",
        )
    steps = strategy.canary_steps
    if not 1 <= len(steps) <= 20 or sorted(set(steps)) != steps or steps[0] <= 0:
        raise InvalidInput(
            f"{at}.canary_steps: 1 to 20 shares are needed, each larger than the one before",
            field=f"{at}.canary_steps",
            hint="like 5%, or 5%, 25% and 50%",
        )
    if not 0.5 <= strategy.success_threshold < 1:
        raise InvalidInput(
            f"{at}.success_threshold: must be at least 50 % and less than 100 %: no number of requests shows that none ever fails",
            field=f"{at}.success_threshold",
            hint="like 99.9%",
        )
