"""Usage by invocations at this node's own address: counted in a file that outlives the agent, and from time to time an event of
each function, which the node's outbox brings to the server. Totals make an event that a crash repeats recognisable."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from weft.contracts.durable_file import write_durably
from weft.objects.identity import Ref

log = logging.getLogger("weft.agent")
FILE = "local-usage.json"
MOST = 1024  # functions; beyond that those that were counted longest ago are forgotten
_MOST_BYTES = 4 << 20  # of the file


class Count(msgspec.Struct):
    """The count of one function: since the last event, and ``total`` invocations since the node serves it."""

    object: Ref
    invocations: int = 0
    errors: int = 0
    seconds: float = 0.0
    total: int = 0


class Usage:
    """``folder`` has the file; blocking."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._counts: dict[str, Count] = {}  # by the function's uid, the one that was counted last at the end
        self.changed = False
        try:
            if self._path.stat().st_size > _MOST_BYTES:
                raise ValueError("it is too large")
            self._counts = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Count])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as problem:
            log.warning("functions: %s can't be read, what it counted is lost: %s", self._path, problem)

    def count(self, function: Ref, *, failed: bool, seconds: float) -> None:
        """An invocation has ended after ``seconds`` of run time."""
        found = self._counts.pop(function.uid, None) or Count(function)
        self._counts[function.uid] = found
        found.object = function
        found.invocations += 1
        found.errors += failed
        found.seconds += seconds
        found.total += 1
        self.changed = True
        if len(self._counts) > MOST:
            del self._counts[next(iter(self._counts))]

    def take(self) -> list[tuple[Ref, str]]:
        """The functions that were invoked since the last call, each with a sentence; they are counted from 0 again."""
        found: list[tuple[Ref, str]] = []
        for count in self._counts.values():
            if count.invocations:
                found.append((count.object, describe_count(count)))
                count.invocations, count.errors, count.seconds = 0, 0, 0.0
                self.changed = True
        return found

    def write(self) -> None:
        """Save what was counted. A full disk costs counts, not invocations."""
        self.changed = False
        try:
            write_durably(self._path, msgspec.json.encode(self._counts))
        except OSError as problem:
            self.changed = True
            log.warning("functions: invocations at the node can't be saved: %s", problem.strerror)


def describe_count(count: Count) -> str:
    """Pure. As people read it in the function's events."""
    plural = "" if count.invocations == 1 else "s"
    failed = f", {count.errors} with an error" if count.errors else ""
    return f"{count.invocations} invocation{plural} at the node{failed}, {count.seconds:.1f} s of run time; {count.total} in all"
