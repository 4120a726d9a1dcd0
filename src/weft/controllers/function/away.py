"""Says in an event that nodes which a function names are away, so that they serve it, or what changed of it, once they are back.

Reads functions; writes events, and no function anew. Woken by their status, which the gateway writes. That they serve it then,
they say themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.informer.commit import Commit, put, unchanged
from weft.informer.view import Changed, Item, View
from weft.kinds.function import FUNCTION, FunctionStatus, describe_away

SOURCE = "functions"


class FunctionsAway:
    name = "functions away"
    kinds = (FUNCTION.name,)

    def route(self, view: View, change: Changed) -> Iterable[str]:
        old, new = change.old, change.new
        if old is None or new is None or not set(_away(new)) - set(_away(old)):
            return ()  # what stood before the controllers did was said by others
        return (change.key,)

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            item = view.get(key)
            if item is None or not (away := _away(item)):
                continue
            event = Event("Warning", "NotServedAtNode", describe_away(away), item.envelope.ref, SOURCE)
            # Written as it is: the event is told only while that holds.
            plan.commits.append(Commit(key, [put(item.envelope)], [unchanged(item)], [event]))
        return plan


def _away(function: Item) -> list[str]:
    return function.status(FunctionStatus).away_nodes
