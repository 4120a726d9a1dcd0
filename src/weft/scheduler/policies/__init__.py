"""The shipped policies, one file each, by the strategy that names them."""

from __future__ import annotations

from weft.contracts.policy import Policy
from weft.kinds.strategy import STRATEGIES
from weft.scheduler.policies.best_fit import BestFit
from weft.scheduler.policies.least_loaded import LeastLoaded
from weft.scheduler.policies.random_choice import RandomChoice
from weft.scheduler.policies.round_robin import RoundRobin

POLICIES: dict[str, Policy] = {
    policy.name: policy for policy in (LeastLoaded(), BestFit(), RoundRobin(), RandomChoice())
}
assert set(POLICIES) == set(STRATEGIES)
