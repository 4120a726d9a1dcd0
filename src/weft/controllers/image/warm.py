"""Records in images' condition Warm how many nodes have the booted machine that the image's spec asks for.

Reads images and nodes; writes the condition. Woken by either. The nodes learn of the images from the API server's answers to their
reports, and report what became of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.controllers.loop import Plan
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.image import FITS, NO_NODE, NOT_WARM, WARM, ImageSpec, ImageStatus, find_obstacle
from weft.kinds.node import NodeReport, NodeStatus
from weft.objects.envelope import Condition, set_condition

READY, MAKING = "ready", "making"  # a node's words for its machine; any other is why there is none


class WarmImages:
    name = "warm"
    kinds = ("image", "node")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "image":
            return (change.key,)
        if not has_changed(change, lambda node: (node.report(NodeReport).warm, _counts(node))):
            return ()
        return [item.key for item in view.of_kind("image").values() if item.spec(ImageSpec).warm is not None]

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        images = [item for key in keys if (item := view.get(key)) is not None]
        nodes = [node for node in view.of_kind("node").values() if _counts(node)] if images else []
        return Plan([commit for item in images if (commit := plan_image(item, nodes, now)) is not None])


def _counts(node: Item) -> bool:
    return node.status(NodeStatus).phase == "Ready" and bool(node.report(NodeReport).machines)


def plan_image(item: Item, nodes: Sequence[Item], now: float) -> Commit | None:
    """Write the condition if it changes."""
    envelope, digest = edit(item), item.status(ImageStatus).sha256
    if item.spec(ImageSpec).warm is None or item.deleting:
        kept = [one for one in envelope.conditions if one.type != WARM]
        if len(kept) == len(envelope.conditions):
            return None
        envelope.conditions = kept
        return Commit(item.key, [put(envelope)], [unchanged(item)])
    is_warm, reason, message = describe_image(item.status(ImageStatus)) or describe_nodes(
        {node.envelope.name: node.report(NodeReport).warm.get(digest, "") for node in nodes}
    )
    condition = Condition(
        "Warm", "True" if is_warm else "False", reason, message, since=now, generation=item.envelope.generation
    )
    return Commit(item.key, [put(envelope)], [unchanged(item)]) if set_condition(envelope, condition) else None


def describe_image(status: ImageStatus) -> tuple[bool, str, str] | None:
    """The same for an image that no node can have as it is; None: the nodes say how it goes."""
    if status.phase == "Failed":
        return False, NOT_WARM, f"the image couldn't be fetched: {status.message or status.reason}"
    obstacle = find_obstacle(msgspec.to_builtins(status))
    return (False, NOT_WARM, f"the image {obstacle}; {FITS}") if obstacle is not None else None


def describe_nodes(words: dict[str, str]) -> tuple[bool, str, str]:
    """Whether all have it, and reason and message of the condition, from each node's word."""
    ready = [name for name, word in words.items() if word == READY]
    failed = {name: word for name, word in sorted(words.items()) if word not in (READY, MAKING, "")}
    if failed:
        name = next(iter(failed))
        return False, NOT_WARM, f"{len(ready)} of {len(words)} nodes; {name}: {failed[name]}"
    if not words:
        return False, NO_NODE, "no node that is ready runs VMs"
    if len(ready) < len(words):
        return False, "making", f"{len(ready)} of {len(words)} nodes"
    return True, "", f"{len(ready)} of {len(words)} nodes"
