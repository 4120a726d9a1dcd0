"""Choose the strategy that decides on a workload, in its one spelling. Pure.

Its own counts first; then its project's; then the placement policy called ``default``; then the server's. A placement policy has
one strategy for long-lived workloads and one for serverless ones; a plain strategy of the project or the server is for long-lived
ones only.
"""

from __future__ import annotations

import os

import msgspec

from weft.contracts.policy import Basis
from weft.informer.view import View
from weft.kinds.fields.strategy import DEFAULT_STRATEGY, SERVERLESS_STRATEGY, read_strategy
from weft.kinds.parts.placement_spec import PlacementSpec
from weft.kinds.placement_policy import CLUSTER_DEFAULT, PlacementPolicySpec
from weft.kinds.project import ProjectSpec
from weft.objects.errors import NotFound
from weft.objects.identity import object_key
from weft.objects.schema import suggest


class Chosen(msgspec.Struct, frozen=True):
    strategy: str  # with all its weights
    named: str = ""  # @NAME of its placement policy, if it has one
    basis: Basis = "allocation"


def find_strategy(view: View, project: str | None, spec: PlacementSpec, default: str) -> Chosen:
    """How a workload with this ``spec`` is placed; ``default`` is the server's strategy. Raises InvalidStrategy, and NotFound
    (policyNotFound) for a missing placement policy."""
    if spec.strategy is not None:
        strategy = read_strategy(spec.strategy)
        return _open(view, strategy, spec) if strategy.startswith("@") else Chosen(strategy)
    strategy = _default_of(view, project) or default
    if strategy.startswith("@"):
        return _open(view, strategy, spec)
    return Chosen(SERVERLESS_STRATEGY if spec.type == "serverless" else strategy)


def _default_of(view: View, project: str | None) -> str | None:
    item = None if project is None else view.get(object_key("project", None, project))
    strategy = None if item is None else item.spec(ProjectSpec).strategy
    if strategy is not None:
        return read_strategy(strategy)
    known = view.get(object_key("placementpolicy", None, CLUSTER_DEFAULT))
    return None if known is None else f"@{CLUSTER_DEFAULT}"


def _open(view: View, named: str, workload_spec: PlacementSpec) -> Chosen:
    item = view.get(object_key("placementpolicy", None, named[1:]))
    if item is None:
        meant = suggest(named[1:], [known.envelope.name for known in view.of_kind("placementpolicy").values()])
        hint = f"; did you mean @{meant}?" if meant else ""
        raise NotFound(f'placement policy "{named[1:]}" does not exist{hint}', reason="policyNotFound")
    spec = item.spec(PlacementPolicySpec)
    text = spec.serverless if workload_spec.type == "serverless" else spec.strategy
    return Chosen(read_strategy(text or DEFAULT_STRATEGY), named, spec.basis)


def default_strategy() -> str:
    """The cluster's strategy: SCHEDULING_STRATEGY, else least_loaded. Raises InvalidInput."""
    return read_strategy(os.environ.get("SCHEDULING_STRATEGY") or DEFAULT_STRATEGY, "SCHEDULING_STRATEGY")
