"""The policies by the strategies that name them: weft's own, one file each, and combinations of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from weft.contracts.policy import Policy
from weft.kinds.fields.strategy import STRATEGIES, Term, parse_strategy
from weft.scheduler.policies.best_fit import BestFit
from weft.scheduler.policies.combined import Combined
from weft.scheduler.policies.cost import Cost
from weft.scheduler.policies.data_locality import DataLocality
from weft.scheduler.policies.fgd import Fgd
from weft.scheduler.policies.fragmentation import Fragmentation
from weft.scheduler.policies.hardware_match import HardwareMatch
from weft.scheduler.policies.least_loaded import LeastLoaded
from weft.scheduler.policies.network_proximity import NetworkProximity
from weft.scheduler.policies.random_choice import RandomChoice
from weft.scheduler.policies.resource_balance import ResourceBalance
from weft.scheduler.policies.round_robin import RoundRobin
from weft.scheduler.policies.topology_spread import TopologySpread

SHIPPED: dict[str, Callable[[], Policy]] = {
    "least_loaded": LeastLoaded,
    "best_fit": BestFit,
    "round_robin": RoundRobin,
    "random": RandomChoice,
    "resource_balance": ResourceBalance,
    "data_locality": DataLocality,
    "network_proximity": NetworkProximity,
    "cost": Cost,
    "topology_spread": TopologySpread,
    "hardware_match": HardwareMatch,
    "fragmentation": Fragmentation,
    "fgd": Fgd,
}
assert set(SHIPPED) == set(STRATEGIES)
_KEPT = 10_000


class Policies(Mapping[str, Policy]):
    """Strategy, in its one spelling → the policy. ``find_own`` gives the policy behind a user's own term."""

    def __init__(self, find_own: Callable[[Term], Policy] | None = None) -> None:
        self._find_own = find_own
        self._made: dict[str, Policy] = {name: make() for name, make in SHIPPED.items()}

    def __getitem__(self, strategy: str) -> Policy:
        policy = self._made.get(strategy)
        if policy is None:
            if len(self._made) > _KEPT:
                self._made = {name: self._made[name] for name in SHIPPED}
            policy = self._made[strategy] = self._make(strategy)
        return policy

    def __iter__(self) -> Iterator[str]:
        return iter(SHIPPED)

    def __len__(self) -> int:
        return len(SHIPPED)

    def _make(self, strategy: str) -> Policy:
        terms = parse_strategy(strategy)
        if len(terms) == 1:
            return self._find(terms[0])
        return Combined(strategy, [(self._find(term), term.weight) for term in terms])

    def _find(self, term: Term) -> Policy:
        if term.own:
            if self._find_own is None:
                raise LookupError(f"{term.name}: custom policies are not available here")
            return self._find_own(term)
        if term.argument:
            return TopologySpread(term.argument)
        return self._made[term.name]


POLICIES: Mapping[str, Policy] = Policies()
