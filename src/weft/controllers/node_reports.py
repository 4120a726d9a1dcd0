"""Reports of nodes on the orders that they got."""

from __future__ import annotations

from typing import Any

from weft.informer.view import View
from weft.kinds.node import NODES_BY_UID, NodeReport
from weft.kinds.orders import O, OrderKind, R, find_report


def find_node_report(view: View, kind: OrderKind[O, R], order: O | None) -> R | None:
    """The report on ``order`` by its node; None: there is no order, no such node, or no report yet."""
    nodes = view.find(NODES_BY_UID, order.node_uid) if order is not None else []
    reports: list[Any] = [one for node in nodes for one in getattr(node.report(NodeReport).orders, kind.name)]
    return find_report(reports, order) if order is not None else None
