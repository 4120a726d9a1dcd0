"""Find the data of a node-local volume, if it isn't at the home that the store has: an older store has an older home. The nodes
report what they have; nobody may create an empty disk while one of them has the data. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from weft.informer.view import Item, View
from weft.kinds.node import NODES_BY_UID, NODES_BY_VOLUME, NodeReport, NodeStatus
from weft.kinds.parts.node.orphan import read_copies


def find_data(view: View, volume: str) -> Sequence[Item]:
    """The nodes that have data of the volume of this uid. A disk that was made for a guest that never ran there is no data."""
    return [node for node in view.find(NODES_BY_VOLUME, volume) if not _is_half_made(node, volume)]


def find_strays(view: View, volume: str, home: str) -> Sequence[Item]:
    """The nodes that have the data of the volume of this uid, if ``home`` reports that it has none. Empty while ``home`` doesn't
    report, or is gone: a workload waits for data on a lost disk."""
    nodes = view.find(NODES_BY_UID, home)
    if not nodes or nodes[0].status(NodeStatus).phase != "Ready" or volume in nodes[0].report(NodeReport).volumes:
        return ()
    return find_data(view, volume)


def _is_half_made(node: Item, volume: str) -> bool:
    given_up = (copy for copy in read_copies(node.report(NodeReport)) if copy.standing == "abandoned")
    return any(volume == one.uid for copy in given_up for one in copy.spec.volumes)


def find_copies(view: View, volume: str, home: str | None, explained: set[str]) -> list[str]:
    """Names of nodes, except ``home`` if it has one, that have unexplained data of the volume; the nodes of ``explained`` may
    have it."""
    return sorted(
        node.envelope.name
        for node in view.find(NODES_BY_VOLUME, volume)
        if node.uid != home and node.uid not in explained
    )
