"""Publisher for a site's cache: each device's twin as JSON under ``weft:twin:PROJECT:DEVICE``, for other programs.

The gateway only notes which devices changed; each waits at most once, so a newer state takes the place of the one that waited.
A task encodes and writes them, fifty together. It writes each twin again after a third of its time, also where nothing changed:
so a cache that forgot all has all again soon, and a key that is gone says that no gateway speaks for the device any more.
The gateway never reads a cache.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.device import Value
from weft.contracts.edge.cache import MOST_VALUE_BYTES, Cache
from weft.edge.device.twin import Phase, Twin
from weft.edge.model.engine import By, Decision
from weft.objects.errors import WeftError

TOGETHER = 50  # twins in one write, unless they are large: encoding them takes the loop less than a millisecond
TOGETHER_BYTES = 256 << 10  # after so many no other twin is encoded for this write
PAUSE_SECONDS = 0.1  # between two looks for what changed
MORE_SECONDS = 0.02  # between two writes while more waits: at most 2,500 twins a second
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0  # while the cache can't be written
MOST_GONE = 5000  # keys of devices that went and wait to be deleted; beyond it their time ends them
MOST_RESULTS = 50  # of models, of one device


class Result(msgspec.Struct, frozen=True):
    """The last decision of a model, or of its fallback, about a device. ``at``: Unix seconds by the server's clock."""

    value: Value
    by: By
    at: float


class CachedTwin(msgspec.Struct, frozen=True):
    """The value under ``weft:twin:PROJECT:DEVICE``. ``seen_at``: when the device spoke last, None: never; ``at``: when this was
    written; both Unix seconds by the server's clock. ``measures``: of windows, like ``temperature.mean60``. ``models``: by name."""

    project: str
    device: str
    phase: Phase
    seen_at: float | None
    at: float
    reported: Mapping[str, Value]
    measures: Mapping[str, Value]
    models: Mapping[str, Result]


class Counts(msgspec.Struct):
    """Counts since the gateway started. ``written``: twins; ``replaced``: states that a newer one replaced while they waited;
    ``dropped``: what was too large, or a deletion too many; ``failed``: writes."""

    written: int = 0
    replaced: int = 0
    dropped: int = 0
    failed: int = 0


log = logging.getLogger("weft.edge.cache")


class CachedGateway(msgspec.Struct, frozen=True):
    """The value under ``weft:gateway:NODE``."""

    node: str
    at: float
    devices: int
    counts: Counts


class TwinPublisher:
    """``node``: of the gateway. ``seconds``: how long a key is there after it was written."""

    def __init__(self, cache: Cache, clock: Clock, node: str, seconds: float) -> None:
        self._cache, self._clock, self._node, self._seconds = cache, clock, node, seconds
        self._twins: Mapping[str, Twin] = {}
        self._find_now: Callable[[], float] = clock.now
        self._waiting: dict[str, None] = {}  # uids, the oldest first
        self._written_at: dict[str, float] = {}  # by uid, clock's elapsed seconds; the oldest first
        self._gone: dict[str, None] = {}  # keys
        self._results: dict[str, dict[str, Result]] = {}
        self._told_at = float("-inf")
        self._problem = ""
        self.counts = Counts()

    def serve(self, twins: Mapping[str, Twin], find_now: Callable[[], float]) -> None:
        """``twins``: the gateway's own, by uid. ``find_now`` gives Unix seconds by the server's clock."""
        self._twins, self._find_now = twins, find_now

    # --- what the gateway notes: in its loop, at once ------------------------------------------------------------------

    def note(self, uid: str) -> None:
        """The device's state changed."""
        if uid in self._waiting:
            self.counts.replaced += 1
        elif uid in self._twins:
            self._waiting[uid] = None
            self._gone.pop(find_key(self._twins[uid]), None)

    def note_gone(self, twin: Twin) -> None:
        """The device isn't one of this gateway any more."""
        uid = twin.device.uid
        self._waiting.pop(uid, None)
        self._written_at.pop(uid, None)
        self._results.pop(uid, None)
        if len(self._gone) < MOST_GONE:
            self._gone[find_key(twin)] = None
        else:
            self.counts.dropped += 1

    def note_decision(self, decision: Decision) -> None:
        if decision.value is None or decision.device not in self._twins:
            return
        results = self._results.setdefault(decision.device, {})
        results.pop(decision.model.name, None)
        results[decision.model.name] = Result(decision.value, decision.by, self._find_now())
        while len(results) > MOST_RESULTS:
            del results[next(iter(results))]
        self.note(decision.device)

    def keep_results(self, names: Mapping[str, set[str]]) -> None:
        """These models decide about a device now, by its uid; results of others are forgotten."""
        for uid, results in self._results.items():
            kept = names.get(uid, set())
            for name in results.keys() - kept:
                del results[name]
                self.note(uid)

    # --- the task ------------------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Write until this is cancelled."""
        tries = 0
        while True:
            try:
                more = await self.publish()
                tries = 0
                self._note_problem("")
            except Exception as problem:  # devices are served all the same, and it is tried again
                tries += 1
                self.counts.failed += 1
                if not isinstance(problem, WeftError):
                    log.exception("the cache's driver failed")
                words = getattr(problem, "message", f"its driver failed: {type(problem).__name__}")
                self._note_problem(words, getattr(problem, "hint", "") or "")
                await self._clock.sleep(min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(tries - 1, 8)))
                continue
            await self._clock.sleep(MORE_SECONDS if more else PAUSE_SECONDS)

    async def publish(self) -> bool:
        """Write what waits first, and what wasn't written for long; whether there is more. Raises what the cache does: then it all
        waits again."""
        at = self._clock.elapsed()
        self._take_due(at)
        gone = list(self._gone)[:TOGETHER]
        values, taken = self._take_waiting(at)
        is_due = at - self._told_at >= self._seconds / 3
        if is_due:
            about = CachedGateway(self._node, self._find_now(), len(self._twins), self.counts)
            values[f"weft:gateway:{self._node}"] = _encoder.encode(about)
        try:
            if gone:
                await self._cache.delete([key for key in gone if key not in values])
            if values:
                await self._cache.put(values, self._seconds)
        except BaseException:
            for uid in taken:
                if uid in self._twins:
                    self._waiting.setdefault(uid)
            raise
        for key in gone:
            self._gone.pop(key, None)
        if is_due:
            self._told_at = at
        for uid in taken:
            self.counts.written += 1
            if uid in self._twins:
                self._written_at.pop(uid, None)
                self._written_at[uid] = at
        return bool(self._waiting) or len(gone) == TOGETHER

    def _take_waiting(self, at: float) -> tuple[dict[str, bytes], list[str]]:
        """The next values by key, and the devices that they are of."""
        values: dict[str, bytes] = {}
        taken: list[str] = []
        size = 0
        for uid in [*itertools.islice(self._waiting, TOGETHER)]:
            if size >= TOGETHER_BYTES:
                break
            del self._waiting[uid]
            twin = self._twins.get(uid)
            if twin is None:
                continue
            taken.append(uid)
            body = self._encode(twin, at)
            size += len(body)
            if len(body) > MOST_VALUE_BYTES:
                self.counts.dropped += 1
                continue
            values[find_key(twin)] = body
        return values, taken

    def _take_due(self, at: float) -> None:
        """Take what is due: what was written a third of its time ago, and not since, waits again."""
        while self._written_at:
            uid, when = next(iter(self._written_at.items()))
            if at - when < self._seconds / 3:
                return
            del self._written_at[uid]
            if uid in self._twins:
                self._waiting.setdefault(uid)

    def _encode(self, twin: Twin, at: float) -> bytes:
        now = self._find_now()
        values = twin.read_values(at)
        measures = {name: value for name, value in values.items() if name not in twin.reported and name != "phase"}
        device = twin.device
        seen = None if twin.heard_at is None else now - (at - twin.heard_at)
        results = self._results.get(device.uid, {})
        return _encoder.encode(
            CachedTwin(device.project, device.name, twin.find_phase(at), seen, now, twin.reported, measures, results)
        )

    def _note_problem(self, problem: str, hint: str = "") -> None:
        """Log the first of many."""
        if problem and not self._problem:
            log.warning("%s%s; devices are served all the same", problem, f" ({hint})" if hint else "")
        elif self._problem and not problem:
            counts = self.counts
            log.info(
                "the cache is written again; since the start %d states were replaced by newer ones, %d dropped, %d writes failed",
                counts.replaced,
                counts.dropped,
                counts.failed,
            )
        self._problem = problem


def find_key(twin: Twin) -> str:
    return f"weft:twin:{twin.device.project}:{twin.device.name}"


_encoder = msgspec.json.Encoder()
