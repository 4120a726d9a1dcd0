"""Late results: of invocations that a former gateway began, or that were taken for lost.

They are kept for a while, bounded, for a caller that sends the same id again; it waits until the nodes have reported what
they have under way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from weft.contracts.clock import Clock
from weft.gateway.function.instance.fleet import Fleet
from weft.gateway.function.invocation.call import InvocationOutcome
from weft.gateway.function.invocation.outcome import NameOf, lost_error, make_outcome
from weft.protocol.invocations import InvocationAnswer

KEPT_SECONDS = 300.0
KEPT_BYTES = 32 * 2**20
_EACH_BYTES = 512  # what keeping one takes beside its payload
GATHER_SECONDS = 15.0  # for nodes to report what they have of a former gateway
STEP_SECONDS = 0.05


class LateResults:
    """``find_expected`` gives the known nodes (uids) that serve functions; ``is_stray`` whether an invocation may run on a node
    while nobody waits for it."""

    def __init__(
        self,
        clock: Clock,
        fleet: Fleet,
        is_stray: Callable[[str], bool],
        name_of: NameOf,
        find_expected: Callable[[], set[str]],
    ) -> None:
        self._clock, self._fleet, self._is_stray, self._name_of = clock, fleet, is_stray, name_of
        self._find_expected = find_expected
        self._gathered_by = clock.elapsed() + GATHER_SECONDS
        self._kept: OrderedDict[str, tuple[float, str, InvocationAnswer]] = OrderedDict()
        self._bytes = 0

    def keep(self, node: str, answer: InvocationAnswer) -> None:
        """Keep a late result of ``node``."""
        self._take(answer.id)
        self._kept[answer.id] = (self._clock.elapsed(), node, answer)
        self._bytes += len(answer.payload) + _EACH_BYTES
        before = self._clock.elapsed() - KEPT_SECONDS
        while self._kept:
            id, (at, _, _) = next(iter(self._kept.items()))
            if at >= before and self._bytes <= KEPT_BYTES:
                return
            self._take(id)

    async def recall(self, what: str, version: str, id: str) -> InvocationOutcome | None:
        """The outcome of the invocation with this id; None if none was begun. Raises Unavailable (invocationLost) if nobody knows
        any more."""
        while (missing := self.find_missing()) and self._clock.elapsed() < self._gathered_by:
            await self._clock.sleep(STEP_SECONDS)
        is_known = False
        while self._is_stray(id):
            is_known = True
            await self._clock.sleep(STEP_SECONDS)
        found = self._take(id)
        if found is not None:
            return make_outcome(found[1], version, self._name_of(found[0]))
        if not is_known and not (missing and self._clock.elapsed() < self._gathered_by + GATHER_SECONDS):
            return None
        why = (
            "the node no longer knows this invocation" if is_known else f"{self._name_of(min(missing))} isn't back yet"
        )
        raise lost_error(what, id, f"begun, perhaps, through a gateway before this one, and {why}")

    def find_missing(self) -> set[str]:
        """The nodes that haven't reported yet what they have under way."""
        return {uid for uid in self._find_expected() if (there := self._fleet.nodes.get(uid)) is None or not there.open}

    def _take(self, id: str) -> tuple[str, InvocationAnswer] | None:
        """Remove the answer; the node and the answer."""
        kept = self._kept.pop(id, None)
        if kept is None:
            return None
        self._bytes -= len(kept[2].payload) + _EACH_BYTES
        return kept[1:]
