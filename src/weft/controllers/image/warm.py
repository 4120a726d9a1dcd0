"""Records in images' condition Warm how many nodes have the booted machine that the image's spec asks for, and in Booted which
nodes have one, and for what each keeps it.

Reads images and nodes; writes the conditions. Woken by either. The nodes learn of the images from the API server's answers to their
reports, and report what became of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from weft.controllers.loop import Plan
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.image import (
    BOOTED,
    FITS,
    NO_NODE,
    NOT_WARM,
    WARM,
    ImageSpec,
    ImageStatus,
    find_obstacle,
    read_cores,
)
from weft.kinds.node import NodeReport, NodeStatus
from weft.kinds.parts.image.work import name_order
from weft.objects.envelope import Condition, set_condition
from weft.objects.errors import shorten

_MOST_NAMED, _MOST_LETTERS = 8, 200  # in a condition
READY, MAKING = "ready", "making"  # a node's words for its machine; any other is why there is none


class WarmImages:
    name = "warm"
    kinds = ("image", "node")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "image":
            return (change.key,)
        if not has_changed(change, lambda node: _read_report(node)):
            return ()
        reasons = {
            uid for node in (change.old, change.new) if node is not None for uid in node.report(NodeReport).booted
        }
        images = view.of_kind("image").values()
        return [item.key for item in images if item.spec(ImageSpec).warm is not None or item.uid in reasons]

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        images = [item for key in keys if (item := view.get(key)) is not None]
        nodes = [node for node in view.of_kind("node").values() if _can_boot_machines(node)] if images else []
        orders = _list_orders(view) if images else {}
        return Plan([commit for item in images if (commit := plan_image(item, nodes, orders, now)) is not None])


def _list_orders(view: View) -> dict[str, set[str]]:
    """Orders by sha256: images of the same content may be ordered differently, and a node keeps one machine for all."""
    orders = dict[str, set[str]]()
    for item in view.of_kind("image").values():
        if (warm := item.spec(ImageSpec).warm) is not None and not item.deleting:
            digest = item.status(ImageStatus).sha256
            orders.setdefault(digest, set()).add(name_order(warm.memory, *read_cores(warm.cpu)))
    return orders


def _read_word(node: Item, digest: str, orders: Mapping[str, set[str]]) -> str:
    """The node's word on its machine; "" if that is about an earlier order."""
    reports = (one for one in node.report(NodeReport).orders.warm if one.sha256 == digest)
    return next((one.state for one in reports if one.order in orders.get(digest, ())), "")


def _read_report(node: Item) -> object:
    return node.report(NodeReport).orders.warm, _list_booted(node), _can_boot_machines(node)


def _can_boot_machines(node: Item) -> bool:
    return node.status(NodeStatus).phase == "Ready" and bool(node.report(NodeReport).machines)


def _list_booted(node: Item) -> dict[str, str]:
    return node.report(NodeReport).booted


def plan_image(item: Item, nodes: Sequence[Item], orders: Mapping[str, set[str]], now: float) -> Commit | None:
    """Write the conditions that change."""
    envelope, digest = edit(item), item.status(ImageStatus).sha256
    conditions = list[Condition]()
    generation = item.envelope.generation
    if item.spec(ImageSpec).warm is not None and not item.deleting:
        words = {node.envelope.name: _read_word(node, digest, orders) for node in nodes}
        is_warm, reason, message = describe_image(item.status(ImageStatus)) or describe_nodes(words)
        conditions.append(
            Condition("Warm", "True" if is_warm else "False", reason, message, since=now, generation=generation)
        )
    reasons = {node.envelope.name: _list_booted(node)[item.uid] for node in nodes if item.uid in _list_booted(node)}
    if reasons and not item.deleting:
        conditions.append(Condition("Booted", "True", "", describe_reasons(reasons), since=now, generation=generation))
    there = {one.type for one in conditions}
    kept = [one for one in envelope.conditions if one.type not in (WARM, BOOTED) or one.type in there]
    has_gone = len(kept) < len(envelope.conditions)
    envelope.conditions = kept
    changed = [set_condition(envelope, condition) for condition in conditions]
    return Commit(item.key, [put(envelope)], [unchanged(item)]) if has_gone or any(changed) else None


def describe_reasons(reasons: dict[str, str]) -> str:
    """Each node with why it keeps a booted machine, those with the same reason together."""
    nodes = dict[str, list[str]]()
    for name, why in sorted(reasons.items()):
        nodes.setdefault(why, []).append(name)
    texts = [f"{_name_some(names)}: {shorten(why, _MOST_LETTERS)}" for why, names in nodes.items()]
    more = [f"and {len(texts) - _MOST_NAMED} other reasons"] if len(texts) > _MOST_NAMED else []
    return "; ".join([*texts[:_MOST_NAMED], *more])


def _name_some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


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
