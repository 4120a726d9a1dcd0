"""Conditions before the search for a place: a free volume, a worker of its policy, addresses; preferences that can't hold."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from weft.informer.view import View
from weft.informer.workloads import name_of
from weft.scheduler.batches import Batch, PendingBatches
from weft.scheduler.constraint.relax import relax
from weft.scheduler.intake import Intake
from weft.scheduler.own_policies.registry import OwnPolicies
from weft.scheduler.table.snapshot import Snapshot
from weft.scheduler.workload.request import Candidate, Waiting, reserve_addresses


class PlacementReadiness:
    """``find_batch`` gives the batch in hand."""

    def __init__(
        self,
        view: View,
        snapshot: Snapshot,
        intake: Intake,
        own: OwnPolicies,
        pending: PendingBatches,
        find_batch: Callable[[], Batch],
    ) -> None:
        self._view = view
        self._snapshot = snapshot
        self._intake = intake
        self._own = own
        self._pending = pending
        self._find_batch = find_batch

    def make_ready(self, candidates: list[Candidate]) -> list[Candidate] | Waiting:
        """``candidates`` with an address reserved for each of their NICs, or what one of them must wait for."""
        obstacle = next((found for each in candidates if (found := self.find_obstacle(each)) is not None), None)
        return obstacle or reserve_addresses(self._intake.addresses, self._view, candidates)

    def find_obstacle(self, candidate: Candidate) -> Waiting | None:
        """The obstacle that it must wait for: a volume that another workload got in a pending batch, or a worker of its policy."""
        attached = self._find_batch().attached
        for volume in candidate.volumes:
            other = attached.get(volume.uid) or self._pending.attached(volume.uid)
            if other is not None:
                return Waiting("volumeInUse", f"volume {volume.name} is attached to {name_of(other)}")
        if not self._own.prepare(candidate.request.strategy):
            return Waiting("policyStarting", "the placement policy is starting")
        return None

    def relax(self, candidate: Candidate) -> Candidate:
        """It without the preferences that no node satisfies any more."""
        request, given_up = relax(candidate.request, self._snapshot)
        return msgspec.structs.replace(candidate, request=request, given_up=given_up) if given_up else candidate
