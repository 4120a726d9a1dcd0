"""What becomes of invocations, written down: each function's metrics, what it printed, and what is learnt of its arrivals."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from weft.contracts.clock import Clock
from weft.gateway.function.definition.catalogue import Function, Version
from weft.gateway.function.instance.keep_alive import KeepAliveController
from weft.gateway.function.invocation.call import Outcome
from weft.gateway.function.record.counts_file import CountsFile
from weft.gateway.function.record.metrics import Counts, There, Told, tell
from weft.gateway.function.record.output_log import PrintedLog
from weft.protocol.invocations import Printed

log = logging.getLogger("weft.gateway.functions")


class InvocationRecorder:
    """The dispatcher's witness. ``function_of`` gives the function (uid) of a recipe by digest."""

    def __init__(self, printed: PrintedLog, kept: CountsFile, clock: Clock) -> None:
        self._printed, self._kept, self._clock = printed, kept, clock
        self._counts: dict[str, Counts] = {}  # by uid
        self.keeping = KeepAliveController(clock)
        self._troubled = ""
        self.running: Callable[[str], int] = lambda function: 0
        self.find_instances: Callable[[str], list[There]] = lambda function: []
        self.function_of: Callable[[str], tuple[str, float] | None] = lambda digest: None

    def arrived(self, function: Function, version: Version) -> None:
        self._of(function.uid).arrive(self.running(function.uid) + 1)
        self.keeping.begin(version.recipe, function.spec)

    def throttled(self, function: Function) -> None:
        self._of(function.uid).throttles += 1

    def refused(self, function: Function, reason: str, digest: str) -> None:
        self._of(function.uid).refuse(reason)
        self.keeping.end(digest, cold=False)

    def ended(self, function: Function, outcome: Outcome, digest: str, seconds: float) -> None:
        self._of(function.uid).end(outcome, seconds)
        self.keeping.end(digest, cold=outcome.start != "warm")

    def lost(self, function: Function, digest: str) -> None:
        self._of(function.uid).lost += 1
        self.keeping.end(digest, cold=False)

    def printed(self, node: str, printed: Printed) -> None:
        found = self.function_of(printed.digest)
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

    def tell(self, uid: str, project: str, name: str) -> Told:
        told = tell(self._find(uid), name, project, self.running(uid))
        return msgspec.structs.replace(told, instances=self.find_instances(uid))

    def forget(self, uid: str) -> None:
        self._counts.pop(uid, None)

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
