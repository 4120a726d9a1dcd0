"""One node: runs its parts, reports it, and passes on the server's answers.

Starts from the checkpoints and from what the drivers find, so that guests are cared for whether or not a server answers.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from weft.agent.allocation.supervisor import Allocations
from weft.agent.server.readiness import ReadinessSource
from weft.agent.server.reporter import HEARTBEAT_SECONDS, Reporter, ReportQuestion
from weft.agent.tasks import Tasks
from weft.agent.watches import Change, Listed, Put, ServerWatches
from weft.contracts.driver.host import Host
from weft.failover.timing import NODES
from weft.kinds.allocation import AllocationSpec, is_lost
from weft.kinds.node import NodeReport
from weft.objects.envelope import Envelope, decode_part
from weft.protocol.report import ReportAnswer

SHORT_SILENCE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class AgentPart:
    """One part of an agent; it sets what it has. ``report`` and ``ask``: fields of ``NodeReport`` and ``ReportQuestion``."""

    keep: Callable[[], Coroutine[Any, Any, None]] | None = None  # works for ever
    report: Callable[[], Mapping[str, Any]] = dict
    ask: Callable[[], Mapping[str, Any]] = dict
    # Whether the server's next answer may end what it does: then the node reports often.
    is_asking: Callable[[], object] = bool
    is_renewing: Callable[[], object] = bool  # whether answers put off an end: then it reports a bit more often
    take_answer: Callable[[ReportAnswer], None] = lambda answer: None
    wake: Callable[[], None] = lambda: None  # this node's allocations have changed
    note_contact: Callable[[], None] = lambda: None  # the server hears this node again, after a silence


class Parts(Protocol):
    """All parts of one agent."""

    host: Host
    tasks: Tasks
    reporter: Reporter
    readiness: ReadinessSource
    watches: ServerWatches
    allocations: Allocations

    def list_parts(self) -> Sequence[AgentPart]:
        """The parts in the order in which they start, report, and take answers."""

    async def begin(self) -> None:
        """Find the guests that are here, before any part works."""

    async def inspect(self) -> None:
        """Find what must be known before the first report; guests don't wait for this."""

    def follow(self) -> None:
        """Follow the server's objects, except allocations."""

    async def close(self) -> None:
        """End all work, and close the drivers; guests, networks and disks stay as they are."""


def _is_own(allocation: Envelope) -> bool:
    return allocation.deleting_since is None and not is_lost(decode_part(allocation.spec, AllocationSpec))


def _join(given: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of all parts together. Raises ValueError where two parts give the same one: the earlier would be lost."""
    joined = dict[str, Any]()
    for fields in given:
        if twice := joined.keys() & fields.keys():
            raise ValueError(f"two parts of the agent give the fields {', '.join(sorted(twice))}")
        joined |= fields
    return joined


class Agent:
    """One node's agent, made of ``parts``."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self._list = parts, parts.list_parts()
        self._reporter, self._allocations, self._watches = parts.reporter, parts.allocations, parts.watches

    async def start(self) -> None:
        """Find the guests that are here, then follow the server. Returns once all guests are known."""
        parts = self.parts
        await parts.begin()
        for part in self._list:
            if part.keep is not None:
                parts.tasks.spawn(part.keep())
        parts.tasks.spawn(self._introduce())
        parts.tasks.spawn(self._allocations.listen())
        own = {"node": parts.host.node_uid}
        self._watches.follow("allocations", "allocation", own, self._on_allocation, self._reporter.wake)
        parts.follow()
        self._reporter.contact.ask = self._list_own
        parts.readiness.has_started = True

    async def run(self) -> None:
        """Run until cancelled. Raises the error of a part that failed."""
        await self.parts.tasks.failed

    async def close(self) -> None:
        await self.parts.close()

    # --- ReportSource -------------------------------------------------------------------------------------------------

    async def save_before_report(self) -> None:
        await self._allocations.save_orphans()

    def make_node_report(self) -> NodeReport:
        return NodeReport(**_join(part.report() for part in self._list))

    @property
    def longest_silence_seconds(self) -> float:
        """Only the server's answers name what to remove: report often while anything here could be removed."""
        if any(part.is_asking() for part in self._list):
            return SHORT_SILENCE_SECONDS
        return NODES.renew if any(part.is_renewing() for part in self._list) else HEARTBEAT_SECONDS

    def make_question(self) -> ReportQuestion:
        return ReportQuestion(**_join(part.ask() for part in self._list))

    def take_answer(self, answer: ReportAnswer) -> None:
        for part in self._list:
            part.take_answer(answer)

    def note_contact(self) -> None:
        for part in self._list:
            part.note_contact()

    # ------------------------------------------------------------------------------------------------------------------

    async def _introduce(self) -> None:
        await self.parts.inspect()
        self._reporter.wake()
        await self._reporter.run(self)

    def _on_allocation(self, change: Change) -> None:
        if self._allocations.put(change):
            self._watches.follow_networks()
            for part in self._list:
                part.wake()

    def _list_own(self) -> None:
        """List this node's allocations once, for its contact; the watch of them may be behind."""
        own, token = set[str](), self._reporter.contact.token

        def take(change: Change) -> None:
            if isinstance(change, Put) and _is_own(change.envelope):
                own.add(change.envelope.name)
            elif isinstance(change, Listed):
                self._watches.end("own allocations")
                self._reporter.contact.note_list(token, own)
                self._allocations.wake()
                for part in self._list:
                    part.wake()

        self._watches.follow("own allocations", "allocation", {"node": self.parts.host.node_uid}, take)
