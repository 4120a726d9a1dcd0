"""Runs models in a process, and keeps one there: replaces it when they change, and starts another when it ends or hangs.

Another set of models is another process: it is ready before it takes over, and the one before may still answer what it was
asked. Where none runs yet, those that load quickly come first: one that hangs as it is loaded holds nobody up. A model that made a
process end or hang is left out for a while, which grows; the others go on without it. What it can't load, it never tries again
until its file is another; what there was no memory for, when other models are wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

from weft.contracts.clock import Clock
from weft.contracts.edge.model_runner import AnswerListener, ModelFile
from weft.drivers.model.process import RunnerProcess
from weft.objects.errors import Unavailable

HANG_SECONDS = 5.0  # that one answer may take
LOAD_SECONDS = 60.0  # that a start, or one model, may take
SLOW_SECONDS = 5.0  # a model that takes longer to load than that is loaded when the others run
LATE_SECONDS = 1.0  # that a process which was replaced may still answer
REFRESH_SECONDS = 0.25
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
CALM_SECONDS = 120.0  # a model that worked so long begins with the first pause again
_OF_ALL = ""  # in place of a model: nobody knows which one it was

log = logging.getLogger("weft.edge.model")


class _Trouble:
    """How often something went wrong, and until when it is left out."""

    def __init__(self) -> None:
        self.times, self.until, self.words = 0, 0.0, ""


class ModelSupervisor:
    """``make_command``: the process for a socket's descriptor; ``find_missing``: why there can't be one ("" if there can)."""

    def __init__(
        self,
        make_command: Callable[[int], Sequence[str]],
        clock: Clock,
        *,
        find_missing: Callable[[], str] = lambda: "",
        hang_seconds: float = HANG_SECONDS,
        load_seconds: float = LOAD_SECONDS,
        slow_seconds: float = SLOW_SECONDS,
    ) -> None:
        self._make_command, self._clock, self._find_missing = make_command, clock, find_missing
        self._hang_seconds, self._load_seconds, self._slow_seconds = hang_seconds, load_seconds, slow_seconds
        self._wanted: dict[str, ModelFile] = {}
        self._good: dict[str, ModelFile] = {}  # that the process runs
        self._refused: dict[tuple[str, str], str] = {}  # by model and version: why it can't be loaded
        self._crowded: dict[tuple[str, str], str] = {}  # the same, for want of memory: until other models are wanted
        self._slow: set[tuple[str, str]] = set()  # models and versions that take long to load
        self._trouble: dict[tuple[str, str], _Trouble] = {}  # by model and version
        self._process: RunnerProcess | None = None
        self._listener: AnswerListener | None = None
        self._changed = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()
        self.starts = 0

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def put(self, files: Mapping[str, ModelFile]) -> None:
        if files != self._wanted:
            self._wanted = dict(files)
            self._crowded.clear()
            self._slow &= {(uid, one.version) for uid, one in files.items()}
            self._changed.set()

    def list_used(self) -> set[str]:
        return {one.path for one in (*self._wanted.values(), *self._good.values())}

    def ask(self, number: int, uid: str, inputs: Sequence[float]) -> bool:
        return self._process is not None and self._process.ask(number, uid, inputs)

    async def keep(self, listener: AnswerListener) -> None:
        self._listener = listener
        try:
            while True:
                self._changed.clear()
                await self._refresh(listener)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._find_pause()):
                        await self._changed.wait()
        finally:
            for task in self._retiring:
                task.cancel()
            await asyncio.gather(*self._retiring, return_exceptions=True)
            if self._process is not None:
                await self._process.end()

    def _find_pause(self) -> float | None:
        """The time until the next refresh: soon while there is a process to watch, or a pause that ends."""
        return REFRESH_SECONDS if self._process is not None or self._trouble else None

    async def _refresh(self, listener: AnswerListener) -> None:
        """End what hangs, and bring about that what shall run does."""
        await self._watch(listener)
        wanted = self._plan(self._clock.elapsed())
        if wanted != self._good:
            quick = {uid: file for uid, file in wanted.items() if (uid, file.version) not in self._slow}
            await self._replace(quick if quick and self._process is None else wanted, listener)
        listener.note_problems(self._list_problems())

    async def _watch(self, listener: AnswerListener) -> None:
        """End the process if it hangs, and note it if it has ended."""
        now, process = self._clock.elapsed(), self._process
        if process is not None and not process.ended.is_set() and process.waiting:
            number, uid, asked_at = process.waiting[0]
            since = max(asked_at, process.answered_at)  # until then it answered others
            if now - since > self._hang_seconds:
                log.warning(
                    "question %d to model %s has no answer after %g s: its process is killed", number, uid, now - since
                )
                process.kill()
                self._blame(uid, f"it hung for {self._hang_seconds:g} s")
                process.waiting.clear()
        if process is not None and process.ended.is_set():
            asked = process.waiting[0][1] if process.waiting else None
            how = await process.end()
            self._process = None
            if asked is not None:
                self._blame(asked, f"its process ended while it ran ({how})")
            elif not self._is_blamed(now):
                self._blame(_OF_ALL, f"its process ended ({how})")
            self._good = {}
            listener.note_running({})

    def _plan(self, now: float) -> dict[str, ModelFile]:
        """The models to run now: each as it is wanted, or as it ran before while it can't."""
        for key in [key for key, one in self._trouble.items() if one.until + CALM_SECONDS <= now]:
            del self._trouble[key]
        if self._wanted and self._find_missing():
            return {}
        found = {}
        for uid, file in self._wanted.items():
            key = uid, file.version
            is_barred = key in self._refused or key in self._crowded or self._is_left_out(*key, now)
            chosen = self._good.get(uid) if is_barred or not file.path else file
            if chosen is not None:
                found[uid] = chosen
        everything = self._trouble.get((_OF_ALL, ""))
        return {} if everything is not None and everything.until > now else found

    def _is_left_out(self, uid: str, version: str, now: float) -> bool:
        one = self._trouble.get((uid, version))
        return one is not None and one.until > now

    def _is_blamed(self, now: float) -> bool:
        return any(one.until > now for one in self._trouble.values())

    def _blame(self, uid: str, words: str) -> None:
        file = self._good.get(uid) or self._wanted.get(uid)
        trouble = self._trouble.setdefault((uid, file.version if file is not None else ""), _Trouble())
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(trouble.times, 10))
        trouble.times += 1
        trouble.until = self._clock.elapsed() + pause
        trouble.words = f"{words}; it starts again after {pause:g} s"
        log.warning("model %s: %s", uid or "(unknown)", trouble.words)

    async def _replace(self, wanted: dict[str, ModelFile], listener: AnswerListener) -> None:
        """Start a process with ``wanted``; when it is ready, it takes over."""
        if not wanted:
            self._retire(listener)
            self._good = {}
            listener.note_running({})
            return
        fresh = RunnerProcess(self._clock, listener.note_answer, self._changed.set)
        self.starts += 1
        try:
            await fresh.start(wanted, self._make_command)
            while await fresh.is_loading(self._load_seconds, REFRESH_SECONDS):
                await self._watch(listener)  # the one before goes on meanwhile
                if self._is_held_up(fresh, wanted):
                    log.warning("model %s takes long to load: the others come first", fresh.loading)
                    self._slow.add((fresh.loading, wanted[fresh.loading].version))
                    await fresh.end()
                    self._changed.set()
                    return
        except Unavailable as problem:
            self._blame(_OF_ALL, problem.message)
            return
        except asyncio.CancelledError:
            await fresh.end()
            raise
        for uid, why in fresh.refused.items():
            if uid not in fresh.crowded:
                self._refused[uid, wanted[uid].version] = why
            elif self._wanted.get(uid) == wanted[uid]:
                self._crowded[uid, wanted[uid].version] = why
            log.warning("model %s can't be loaded: %s", uid, why)
        if self._good.keys() & fresh.refused.keys():  # the versions that run go on in place of these
            await fresh.end()
            self._changed.set()
            return
        if not fresh.is_ready:
            is_hung, loading = not fresh.ended.is_set(), fresh.loading
            how = await fresh.end()
            words = "it hangs as it is loaded" if is_hung else f"its process ended as it was loaded ({how})"
            self._blame_loading(loading, wanted, words)
            return
        self._retire(listener)
        self._process = fresh
        self._good = {uid: wanted[uid] for uid in fresh.versions}
        known = {(uid, one.version) for uid, one in self._wanted.items()}
        self._refused = {key: why for key, why in self._refused.items() if key in known}
        listener.note_running(fresh.versions)

    def _is_held_up(self, fresh: RunnerProcess, wanted: Mapping[str, ModelFile]) -> bool:
        """Whether others, of which none runs, wait for one that takes long."""
        if self._process is not None or fresh.loading not in wanted or len(wanted) == 1:
            return False
        is_known = (fresh.loading, wanted[fresh.loading].version) in self._slow
        return not is_known and self._clock.elapsed() - fresh.progress_at >= self._slow_seconds

    def _blame_loading(self, uid: str, wanted: Mapping[str, ModelFile], words: str) -> None:
        good = self._good
        self._good = {**good, **({uid: wanted[uid]} if uid in wanted else {})}  # blame that version
        self._blame(uid if uid in wanted else _OF_ALL, words)
        self._good = good

    def _retire(self, listener: AnswerListener) -> None:
        process, self._process = self._process, None
        if process is not None:
            task = asyncio.create_task(self._let_finish(process, listener))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _let_finish(self, process: RunnerProcess, listener: AnswerListener) -> None:
        try:
            end = self._clock.elapsed() + LATE_SECONDS
            while process.waiting and not process.ended.is_set() and self._clock.elapsed() < end:
                await self._clock.sleep(0.01)
        finally:
            await process.end()
            listener.note_lost([number for number, _, _ in process.waiting])

    def _list_problems(self) -> dict[str, str]:
        missing = self._find_missing() if self._wanted else ""
        everything = self._trouble.get((_OF_ALL, ""))
        found = {}
        for uid, file in self._wanted.items():
            trouble = self._trouble.get((uid, file.version))
            if missing:
                found[uid] = missing
            elif why := self._refused.get((uid, file.version)) or self._crowded.get((uid, file.version)):
                found[uid] = why
            elif trouble is not None and self._good.get(uid) != file:
                found[uid] = trouble.words
            elif everything is not None and self._process is None:
                found[uid] = everything.words
        return found
