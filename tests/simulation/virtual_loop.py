"""An event loop whose time stands still while anything has something to do, and jumps when nothing has.

Everything that runs belongs to a ``Part`` (a process of the fabric), which may be killed between any two steps: nothing of
it ever runs again, not even a ``finally``, as after ``kill -9``. Blocking code runs in threads that pass one baton round, so
that only one of them, or the loop, ever moves: the same seed gives the same steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import random
import threading
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

_part: contextvars.ContextVar[Part | None] = contextvars.ContextVar("part", default=None)
_strand: contextvars.ContextVar[Strand | None] = contextvars.ContextVar("strand", default=None)
MOST_STEPS = 3_000_000  # of a run: twenty times those of one with 300 faults
_NOTHING: Any = lambda *_: None  # noqa: E731


class Part:
    """A process: what runs in its ``context``. ``died`` is done once it was killed."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name, self.alive = name, True
        self.died: asyncio.Future[None] = loop.create_future()
        self.loop = loop
        self.context = contextvars.copy_context()
        self.context.run(_part.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.loop.create_task(work, context=self.context.copy())

    def kill(self) -> None:
        """It is gone, in the middle of whatever it did."""
        self.alive = False
        self.loop.drop_dead()
        if not self.died.done():
            self.died.set_result(None)


def part_here() -> Part | None:
    return _part.get()


class _Task(asyncio.Task):  # type: ignore[type-arg]
    """A task with a hash that doesn't depend on where it lies in memory: sets of tasks are walked in the same order."""

    def __init__(self, *args: Any, number: int, **more: Any) -> None:
        self._number = number
        super().__init__(*args, **more)

    def __hash__(self) -> int:
        return self._number


class _Selector:
    """Waits for nothing but time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits, and for nothing")
        self.now += max(0.0, timeout)
        return []

    def close(self) -> None: ...


class VirtualLoop(asyncio.BaseEventLoop):
    """``worn_out`` is done once it has gone round ``MOST_STEPS`` times: something turns in circles."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._selector = _Selector()
        self._clock_resolution = 1e-9
        self._numbers = itertools.count(1)
        self._draw = random.Random(f"threads {seed}")
        self._strands: list[Strand] = []
        self.tasks: list[_Task] = []  # kept until the end: what is collected would run its finally clauses
        self.steps = 0
        self.worn_out: asyncio.Future[None] = self.create_future()
        self._steps_left = 0
        self._stepped: asyncio.Future[None] | None = None
        self.problems: list[str] = []
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda _, context: self.problems.append(str(context.get("exception") or context)))

    def time(self) -> float:
        return self._selector.now

    async def pass_steps(self, count: int) -> None:
        """Return once the loop has gone round ``count`` times: in the middle of what others do, between two awaits."""
        self._steps_left, self._stepped = count, self.create_future()
        await self._stepped

    def _run_once(self) -> None:
        self.steps += 1
        if self.steps == MOST_STEPS:
            self.worn_out.set_result(None)
        if self._stepped is not None:
            self._steps_left -= 1
            if self._steps_left < 0:
                self._stepped.set_result(None)
                self._stepped = None
        super()._run_once()  # type: ignore[misc]

    def _process_events(self, events: Any) -> None: ...

    def _write_to_self(self) -> None: ...

    def _make_task(self, loop: Any, work: Any, context: Any = None) -> _Task:
        task = _Task(work, loop=self, context=context, number=next(self._numbers))
        self.tasks.append(task)
        if len(self.tasks) > 20_000:
            self.tasks = [task for task in self.tasks if not task.done()]
        return task

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        part = _part.get() if context is None else context.get(_part)
        if part is not None and not part.alive:
            handle = asyncio.Handle(_NOTHING, (), self, context)
            handle.cancel()
            return handle
        return super().call_soon(callback, *args, context=context)

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def drop_dead(self) -> None:
        """Forget what was about to run in parts that are dead."""
        for handle in [*self._ready, *self._scheduled]:
            part = handle._context.get(_part) if handle._context is not None else None
            if part is not None and not part.alive:
                handle.cancel()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """With an executor of its own ``func`` may block on the network; else it is done at once, and noticed later."""
        future = self.create_future()
        context = contextvars.copy_context()
        if executor is not None:
            Strand(self, lambda: func(*args), context, future)
            return future
        try:
            result, problem = func(*args), None
        except Exception as error:
            result, problem = None, error
        self.call_later(self._draw.random() * 0.004, _deliver, future, result, problem)
        return future

    def add_strand(self, strand: Strand) -> None:
        self._strands = [old for old in self._strands if not old.over]
        self._strands.append(strand)

    def end(self) -> None:
        """Let go of everything that never ended."""
        for strand in self._strands:
            if not strand.over:
                strand.end()
        with warnings.catch_warnings():
            # A process that is gone runs no finally clause. Here one does, and what it would await is never awaited.
            warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
            for task in self.tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    with contextlib.suppress(BaseException):
                        task.get_coro().close()  # type: ignore[union-attr]
            self.tasks.clear()
        self.close()


def _deliver(future: asyncio.Future[Any], result: Any, problem: Exception | None) -> None:
    if future.done():
        return
    if problem is not None:
        future.set_exception(problem)
    else:
        future.set_result(result)


class Strand:
    """One thread in lockstep with the loop: exactly one of the two moves at a time."""

    def __init__(
        self,
        loop: VirtualLoop,
        work: Callable[[], Any],
        context: contextvars.Context,
        future: asyncio.Future[Any] | None = None,
    ) -> None:
        self.over = False
        self._loop, self._work, self._context, self._future = loop, work, context.copy(), future
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._killed = False
        self._pending: Coroutine[Any, Any, Any] | None = None
        self._outcome: asyncio.Task[Any] | None = None
        self._result: tuple[Any, Exception | None] = (None, None)
        self._context.run(_strand.set, self)
        self._outside = context
        loop.add_strand(self)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        loop.call_soon(self._resume, context=context)

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._killed:
                self._result = self._context.run(self._work), None
        except Exception as problem:
            self._result = None, problem
        except SystemExit:
            pass
        finally:
            self.over = True
            self._back.release()

    def _resume(self, *_: Any) -> None:
        self._go.release()
        self._back.acquire()
        if self.over:
            if self._future is not None:
                _deliver(self._future, *self._result)
        elif self._pending is not None:
            work, self._pending = self._pending, None
            self._outcome = self._loop.create_task(work, context=self._outside.copy())
            self._outcome.add_done_callback(self._resume, context=self._outside)

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """In the thread: the result of ``work``, which the loop carries out meanwhile."""
        self._pending = work
        self._back.release()
        self._go.acquire()
        if self._killed or self._outcome is None:
            raise SystemExit
        return self._outcome.result()

    def end(self) -> None:
        self._killed = True
        self._go.release()
        self._back.acquire()


def block_on(work: Coroutine[Any, Any, Any]) -> Any:
    """Called in a strand: the result of ``work``."""
    strand = _strand.get()
    assert strand is not None, "only a strand may block"
    return strand.wait(work)


class Event:
    """``threading.Event`` for strands."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            assert timeout is not None
            block_on(asyncio.sleep(timeout))
        return self._set


class Thread:
    """``threading.Thread`` as a strand."""

    def __init__(self, target: Callable[[], Any], name: str = "", daemon: bool = True) -> None:
        self._target = target

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        Strand(loop, self._target, contextvars.copy_context())


class Clock:
    """One machine's clock: ``jump_seconds`` is how wrong its wall clock is; the other clock never jumps."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.jump_seconds = 0.0

    def now(self) -> float:
        return 1_700_000_000.0 + self._loop.time() + self.jump_seconds

    def elapsed(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
