"""A caller's answer: the outcome of an invocation, or why it can't begin now. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from weft.contracts.function_placement import Ranking
from weft.gateway.function.instance.fleet import Fleet
from weft.gateway.function.invocation.call import InvocationOutcome
from weft.gateway.function.invocation.tracker import PendingInvocation
from weft.objects.errors import Throttled, TooLarge, Unavailable, Unplaceable
from weft.protocol.invocations import InvocationAnswer

NameOf = Callable[[str], str]  # a node's name by uid
MAX_REASONS = 5  # nodes that refused


def make_outcome(answer: InvocationAnswer, version: str, node: str) -> InvocationOutcome:
    return InvocationOutcome(**msgspec.structs.asdict(answer), version=version, node=node)


def no_node_error(what: str, pending: PendingInvocation, fleet: Fleet, name_of: NameOf) -> Unplaceable:
    """The error when no node accepted the invocation: the reason of each, and the nearest fit."""
    names = {node: name_of(node) for node in pending.ranking}
    if not pending.refusals:
        return unplaceable_error(
            what,
            Ranking(reason="noAvailableAgents", message=fleet.why_not(pending.recipe, names, list(pending.ranking))),
        )
    reasons = [f"{names[node]}: {refused.message or refused.reason}" for node, refused in pending.refusals.items()]
    lacking = any(refused.reason == "insufficientResources" for refused in pending.refusals.values())
    more = f"; and {len(reasons) - MAX_REASONS} more" if len(reasons) > MAX_REASONS else ""
    return unplaceable_error(
        what,
        Ranking(
            reason="insufficientResources" if lacking else "noAvailableAgents",
            message="; ".join(reasons[:MAX_REASONS]) + more,
            nearest=_find_nearest(pending, fleet, name_of),
        ),
    )


def unplaceable_error(what: str, ranking: Ranking) -> Unplaceable:
    """A ranking without nodes."""
    hint = f"nearest fit: {ranking.nearest}" if ranking.nearest else "weft node list shows the nodes"
    return Unplaceable(
        f"{what} can't run now: {ranking.message}", reason=ranking.reason, hint=hint, retry_after_seconds=1.0
    )


def lost_error(what: str, id: str, where: str) -> Unavailable:
    """The error for a lost invocation. ``where``: how it was lost."""
    return Unavailable(
        f"{what}: invocation {id} was {where}; it may have run",
        reason="invocationLost",
        hint="weft does not run it again; the caller decides whether to",
    )


def busy_error(what: str, running: int, most: int) -> Throttled:
    return Throttled(
        f"{what} is busy: {running} of at most {most} invocations run",
        hint=f"try again in a moment, or allow more: weft function set {what.partition('/')[2]} --max-concurrent N",
        retry_after_seconds=1.0,
    )


def full_error() -> Throttled:
    return Throttled(
        "the gateway holds too many payloads of other invocations, in all or of this project",
        hint="try again in a moment",
        retry_after_seconds=1.0,
    )


def too_large_error(what: str, length: int, most: int) -> TooLarge:
    return TooLarge(
        f"{what}: the payload has {length} bytes; at most {most}", hint="put it where the function can fetch it"
    )


def _find_nearest(pending: PendingInvocation, fleet: Fleet, name_of: NameOf) -> str:
    """Find, of the nodes that were asked, the one with the most free memory."""
    there = [(fleet.nodes[node].standing.free_memory, node) for node in pending.refusals if node in fleet.nodes]
    if not there:
        return ""
    memory, node = max(there)
    if memory >= pending.recipe.memory or memory <= 0:
        return ""
    return f"{name_of(node)}, if you ask for at most --memory {memory // 2**20}M"
