"""Why a node takes no workloads, for those who plan to send some there. Pure."""

from __future__ import annotations

from weft.informer.view import View
from weft.kinds.node import NodeActions, NodeStatus, find_cordon
from weft.objects.identity import object_key


def find_trouble(view: View, name: str) -> str:
    """Why a node takes no workloads; empty if it does."""
    node = view.get(object_key("node", None, name))
    if node is None or node.deleting:
        return f"{name} is gone"
    if node.status(NodeStatus).phase != "Ready":
        return f"{name} is {node.status(NodeStatus).phase}"
    cordon = find_cordon(node.actions(NodeActions), node.status(NodeStatus))
    return f"{name} is {cordon}" if cordon else ""
