"""One decision: filters choose the nodes that fit, the policy ranks them; ties go to the first by name.

Pure over a snapshot: the same snapshot, request, seed and history give the same answer. Equal requests share their scores;
after a placement only the rows that changed are computed again. Scores are whole multiples of 1/SCALE, so that the order in
which floats are added decides nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from weft.contracts.policy import (
    Column,
    Filter,
    Flags,
    LoadPolicy,
    Occasion,
    Outlook,
    Policy,
    PreferenceTerm,
    Request,
    Values,
)
from weft.informer.pool.claims import Claim
from weft.scheduler.constraint.filters import FILTERS, FREE_CAPACITY
from weft.scheduler.constraint.preferences import PREFERENCES
from weft.scheduler.engine.demand import Demand
from weft.scheduler.lease.backfill import LeaseQueue
from weft.scheduler.lease.lead import Leads
from weft.scheduler.policies import POLICIES
from weft.scheduler.policies.combined import uses_outlook
from weft.scheduler.ranking.equivalence import Anew, ByLoad, ByRow, Class
from weft.scheduler.ranking.linear_scores import SCALE, LinearScores, Weights
from weft.scheduler.ranking.score import Bonuses, Score
from weft.scheduler.table.devices import choose_devices
from weft.scheduler.table.facts import NO_LOAD, Load, name_pool
from weft.scheduler.table.filter_masks import Masks
from weft.scheduler.table.least_free import LeastFree
from weft.scheduler.table.rows import Rows
from weft.scheduler.table.snapshot import Snapshot

REFUSED = -1.0
_CLASSES_KEPT = 2048
_ENTRIES_KEPT = 4_000_000  # of all rankings together
_LEAST_RANKED = 1024  # of one


class Engine:
    """Decides over ``snapshot``. ``last`` is the node chosen most recently; ``demand`` makes the outlook of policies that use
    one."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        seed: int = 0,
        filters: Sequence[Filter] = FILTERS,
        preferences: Sequence[PreferenceTerm] = PREFERENCES,
        policies: Mapping[str, Policy] = POLICIES,
        demand: Demand | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.filters = filters
        self._preferences = preferences
        self.last: str | None = None
        self.leads = Leads()
        self.leases = LeaseQueue()
        self.outlook = Outlook()
        self._demand = demand
        self._linear: dict[str, LoadPolicy | None] = {}
        self._ahead: dict[str, bool] = {}  # by strategy: whether it uses the outlook
        self._seed = seed
        self._policies = policies
        self._masks = Masks(snapshot, filters)
        self._bonuses = Bonuses(snapshot)
        self._slopes: dict[Weights, LinearScores] = {}
        self._least = LeastFree(snapshot)
        self._classes: OrderedDict[Request, Class] = OrderedDict()

    def expect(self, outlook: Outlook) -> None:
        """Use this outlook from now on."""
        self.outlook = outlook
        for request in [r for r in self._classes if self._uses_outlook(r.strategy)]:
            del self._classes[request]

    def choose(self, request: Request, uid: str) -> int | None:
        """The row of the best node for the request of workload ``uid``, or None when none fits."""
        self.snapshot.settle()
        if self._demand is not None and self._uses_outlook(request.strategy):
            self._demand.note(request)
            outlook = self._demand.renew(self.snapshot)
            if outlook is not None:
                self.expect(outlook)
        return self._class(request).best(uid)

    def place(self, request: Request, uid: str, allocation: str) -> int | None:
        """Choose, and count the new allocation of that name."""
        row = self.choose(request, uid)
        if row is not None:
            snapshot = self.snapshot
            snapshot.take(allocation, row, request.amounts, self.load(request, row))
            self.last = snapshot.names[row]
        return row

    def load(self, request: Request, row: int) -> Load:
        """Load of the request on node ``row`` beside its amounts, devices included."""
        if request.gpus is None and not request.extras and not request.groups and not request.asks:
            return NO_LOAD
        gpus = () if request.gpus is None else choose_devices(self.snapshot, request.gpus, row)
        return Load(request.extras, gpus, request.groups, claims=self.claims(request, row))

    def claims(self, request: Request, row: int) -> tuple[Claim, ...]:
        """Claims of the request on the pools of node ``row``, but for its own."""
        texts = self.snapshot.facts[row].texts
        return tuple(
            [(storage, ask.disk, ask.size) for ask in request.asks if (storage := texts.get(name_pool(ask.pool)))]
        )

    def scores(self, request: Request, uid: str) -> Values:
        """Every node's score (0–100), REFUSED where a filter refuses."""
        self.snapshot.settle()
        scores: Values = self._class(request).scores(uid) * (1.0 / SCALE)
        np.maximum(scores, REFUSED, out=scores)
        return scores

    def leaders(self, request: Request, most: int) -> list[tuple[int, float]] | None:
        """The rows and scores of at most so many best nodes, the best first; None where a node may be refused, or where it takes
        all scores to know. Called after ``choose``."""
        found = self._classes.get(request)
        leaders = found.leaders(most) if isinstance(found, ByLoad) else None
        return None if leaders is None else [(row, score * (1.0 / SCALE)) for row, score in leaders]

    def terms(self, request: Request, uid: str, rows: Sequence[int]) -> list[Column]:
        """The terms that make up the scores of these rows."""
        score, occasion = self._score(request), self._occasion(uid)
        if self._is_wide(request, score):
            columns = score.columns(self.snapshot, occasion)
            return [Column(c.name, c.weight, c.values[list(rows)]) for c in columns]
        return score.columns(Rows(self.snapshot, rows), occasion)

    def refusers(self, request: Request) -> list[tuple[Filter, Flags]]:
        """The filters that refuse any node, and of each the nodes it is the first to refuse."""
        self.snapshot.settle()
        return self._masks.refusers(request)

    def may_fit(self, request: Request, uids: Sequence[str]) -> bool:
        """Whether any of these nodes passes all filters."""
        rows = [index for uid in uids if (index := self.snapshot.index_of(uid)) is not None]
        if not rows:
            return False
        return bool(self._masks.fits(request, rows).any())

    def fits(self, request: Request) -> Flags:
        """The nodes that fit now."""
        return self._masks.fits(request)

    def _occasion(self, uid: str) -> Occasion:
        return Occasion(self._seed, uid, self.last, self.outlook)

    def _score(self, request: Request) -> Score:
        linear = None if request.gpus is not None or request.basis == "used" else self._find_linear(request.strategy)
        weights = None if linear is None else linear.load(request)
        return Score(
            self.snapshot,
            request,
            self._policies[request.strategy],
            [preference for preference in self._preferences if preference.asks(request) is not None],
            None if weights is None else self._find_slopes(weights),
            self._bonuses,
        )

    def _uses_outlook(self, strategy: str) -> bool:
        found = self._ahead.get(strategy)
        if found is None:
            found = self._ahead[strategy] = uses_outlook(self._policies[strategy])
        return found

    def _is_wide(self, request: Request, score: Score) -> bool:
        """Whether a node's score depends on other nodes."""
        reads = self._policies[request.strategy].reads
        return (
            reads == "fabric"
            or (reads == "outlook" and not self.outlook.lasts(request))
            or any(preference.reads == "fabric" for preference in score.dynamic)
        )

    def _class(self, request: Request) -> Class:
        found = self._classes.get(request)
        if found is not None:
            self._classes.move_to_end(request)
            return found
        found = self._classes[request] = self._begin(request)
        if len(self._classes) > _CLASSES_KEPT:
            self._classes.popitem(last=False)
        return found

    def _begin(self, request: Request) -> Class:
        dynamic, score = self._masks.dynamic(request), self._score(request)
        if self._is_wide(request, score) or any(filter_.reads == "fabric" for filter_ in dynamic):
            return Anew(self._masks, score, request, self._occasion)
        if score.slopes is None or score.dynamic or dynamic != [FREE_CAPACITY] or request.extras:
            return ByRow(self.snapshot, self._masks, score, request, self._occasion)
        most = max(_LEAST_RANKED, _ENTRIES_KEPT // max(64, len(self._classes)))
        return ByLoad(self.snapshot, self._masks, score, score.slopes, request, most, self._least)

    def _find_linear(self, strategy: str) -> LoadPolicy | None:
        """The strategy's policy if its score may be linear in load."""
        if strategy not in self._linear:
            policy = self._policies[strategy]
            self._linear[strategy] = policy if isinstance(policy, LoadPolicy) else None
        return self._linear[strategy]

    def _find_slopes(self, weights: Weights) -> LinearScores:
        slopes = self._slopes.get(weights)
        if slopes is None:
            slopes = self._slopes[weights] = LinearScores(self.snapshot, weights)
        return slopes
