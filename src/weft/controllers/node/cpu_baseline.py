"""The CPU model for guests that may migrate to any node: the best that all nodes of a group have. Pure.

A group is nodes between which guests can migrate at all: same architecture, same accelerator. Each node lists its models, best
first; the common model is the one that comes earliest in the list that ranks it worst.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from weft.informer.view import Changed
from weft.kinds.node import NodeReport

Group = tuple[str, str]  # architecture, accelerator


class Cpus:
    """The CPU models of nodes, and the common model of each group."""

    def __init__(self) -> None:
        self._nodes: dict[str, tuple[Group, tuple[str, ...]]] = {}  # by key
        self._common: dict[Group, str] = {}

    def note(self, change: Changed) -> Iterable[str]:
        """Note a node's change; the keys of the nodes whose common model changes."""
        report = change.new.report(NodeReport) if change.new is not None else None
        now = ((report.arch, report.accelerator), tuple(report.cpu_models)) if report and report.cpu_models else None
        before = self._nodes.get(change.key)
        if now == before:
            return ()
        if now is None:
            self._nodes.pop(change.key, None)
        else:
            self._nodes[change.key] = now
        changed: list[str] = []
        for group in {known[0] for known in (before, now) if known is not None}:
            offers = {key: models for key, (of, models) in self._nodes.items() if of == group}
            common = choose_common(offers)
            if common != self._common.get(group):
                self._common[group] = common
                changed += offers
        return changed

    def common(self, node_key: str) -> str:
        """The common model of the node's group; "" while the node has reported no models."""
        known = self._nodes.get(node_key)
        return self._common.get(known[0], "") if known is not None else ""


def choose_common(offers: Mapping[str, tuple[str, ...]]) -> str:
    """The best model that all of them have, "" if there is none."""
    if not offers:
        return ""
    distinct = set(offers.values())
    shared = set.intersection(*map(set, distinct))
    return min(shared, key=lambda model: (max(models.index(model) for models in distinct), model), default="")
