"""Records invocations: each function's metrics and output, and its arrivals for keep-alive."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable

from weft.contracts.clock import Clock
from weft.gateway.function.definition.catalogue import Catalogue, Function, Version
from weft.gateway.function.instance.agents import Agents
from weft.gateway.function.instance.keep_alive import KeepAliveController
from weft.gateway.function.invocation.call import InvocationOutcome
from weft.gateway.function.invocation.tracker import InvocationTracker
from weft.gateway.function.record.counts_file import CountsFile
from weft.gateway.function.record.metrics import Counts, MetricsPart, find_instances
from weft.gateway.function.record.output_log import PrintedLog
from weft.protocol.function_counts import FunctionCounts
from weft.protocol.invocations import Printed

log = logging.getLogger("weft.gateway.functions")


class InvocationRecorder:
    """The dispatcher's observer."""

    def __init__(
        self,
        catalogue: Catalogue,
        agents: Agents,
        tracker: InvocationTracker,
        keep_alive: KeepAliveController,
        printed: PrintedLog,
        kept: CountsFile,
        clock: Clock,
    ) -> None:
        self._catalogue, self._agents, self._running = catalogue, agents, tracker.running
        self._keep_alive, self._printed, self._kept, self._clock = keep_alive, printed, kept, clock
        self._counts: dict[str, Counts] = {}  # by uid
        self._since_start: defaultdict[str, FunctionCounts] = defaultdict(FunctionCounts)  # by uid
        self._troubled = ""

    def arrived(self, function: Function, version: Version) -> None:
        self._of(function.uid).arrive(self._running(function.uid) + 1)
        self._since_start[function.uid].invocations += 1
        self._keep_alive.begin(version.recipe, function.spec)

    def throttled(self, function: Function) -> None:
        self._of(function.uid).throttles += 1
        self._since_start[function.uid].throttles += 1

    def refused(self, function: Function, reason: str, digest: str) -> None:
        self._of(function.uid).refuse(reason)
        self._keep_alive.end(digest, cold=False)

    def ended(self, function: Function, outcome: InvocationOutcome, digest: str, seconds: float) -> None:
        self._of(function.uid).end(outcome, seconds)
        counts = self._since_start[function.uid]
        counts.seconds += outcome.seconds
        counts.errors += bool(outcome.error)
        self._keep_alive.end(digest, cold=outcome.start != "warm")

    def lost(self, function: Function, digest: str) -> None:
        self._of(function.uid).lost += 1
        self._since_start[function.uid].errors += 1
        self._keep_alive.end(digest, cold=False)

    def printed(self, node: str, printed: Printed) -> None:
        found = self._catalogue.function_of(printed.digest)
        if found is None:
            return
        try:
            now = self._clock.now()
            self._printed.append(found[0], printed.text, printed.id, now - min(max(0.0, printed.age), now))
            self._troubled = ""
        except OSError as problem:  # a full disk costs lines, not invocations
            if str(problem) != self._troubled:
                self._troubled = str(problem)
                log.error("the output of functions can't be stored: %s", problem)

    def disconnected(self, node: str) -> None:
        self._keep_alive.disconnect(node)

    def read_part(self, uid: str) -> MetricsPart:
        """The part of the function's metrics that this gateway has."""

        def is_its(digest: str) -> bool:
            known = self._catalogue.function_of(digest)
            return known is not None and known[0] == uid

        instances = find_instances(self._agents.fleet, is_its, self._agents.name_of)
        counts = self._counts.get(uid) or self._kept.read(uid) or Counts(since=self._clock.now())
        return MetricsPart(counts, self._running(uid), instances)

    def list_counts(self, uids: Iterable[str]) -> dict[str, FunctionCounts]:
        """List the counts of these functions, since this gateway's start; of one that wasn't invoked zeros, so that its first is an
        increase."""
        return {uid: self._since_start[uid] for uid in uids}

    def forget(self, uid: str) -> None:
        self._counts.pop(uid, None)
        self._since_start.pop(uid, None)

    def _of(self, uid: str) -> Counts:
        """Its counts, which are about to change."""
        counts = self._find(uid)
        self._kept.change(uid, counts)
        return counts

    def _find(self, uid: str) -> Counts:
        counts = self._counts.get(uid)
        if counts is None:
            counts = self._counts[uid] = self._kept.read(uid) or Counts(since=self._clock.now())
        return counts
