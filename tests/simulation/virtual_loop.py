"""An event loop whose time stands still while anything has something to do, and jumps when nothing has.

Everything that runs belongs to a ``Part`` (a process of the fabric), which may be killed between any two steps: nothing of
it ever runs again, not even a ``finally``, as after ``kill -9``. Blocking code runs in strands, of which only one, or the loop,
ever moves: the same seed gives the same steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import heapq
import itertools
import random
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from greenlet import greenlet

_part: contextvars.ContextVar[Part | None] = contextvars.ContextVar("part", default=None)
_strand: contextvars.ContextVar[Strand | None] = contextvars.ContextVar("strand", default=None)
MOST_STEPS = 3_000_000  # of a run: twenty times those of one with 300 faults


class Part:
    """A process: what runs in its ``context``. ``died`` is done once it was killed; while it is frozen nothing of it runs."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name, self.alive = name, True
        self.died: asyncio.Future[None] = loop.create_future()
        self.loop = loop
        self._held: list[_Handle] = []
        self.context = contextvars.copy_context()
        self.context.run(_part.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.loop.create_task(work, context=self.context.copy())

    @property
    def frozen(self) -> bool:
        return self in self.loop.frozen

    def freeze(self) -> None:
        self.loop.frozen.add(self)

    def thaw(self) -> None:
        """Go on, with all that came meanwhile."""
        if self.frozen:
            self.loop.frozen.remove(self)
            self.loop.take_back(self._held)
            self._held = []

    def hold(self, handle: _Handle) -> None:
        self._held.append(handle)

    def kill(self) -> None:
        """It is gone, in the middle of whatever it did."""
        self.alive = False
        self.loop.frozen.discard(self)
        self._held.clear()
        self.loop.drop_dead()
        if not self.died.done():
            self.died.set_result(None)


def part_here() -> Part | None:
    return _part.get()


class _Task(asyncio.Task):  # type: ignore[type-arg]
    """A task with a hash that doesn't depend on where it lies in memory: sets of tasks are walked in the same order."""

    number: int

    def __hash__(self) -> int:
        return self.number


class _Handle(asyncio.TimerHandle):
    """What is to run, now or at ``_when``. A run makes 300,000 of these: they know nothing of debugging."""

    __slots__ = ()

    def __init__(self, when: float, callback: Any, args: tuple[Any, ...], loop: VirtualLoop, context: Any) -> None:
        self._when, self._callback, self._args, self._loop, self._context = when, callback, args, loop, context
        self._cancelled = self._scheduled = False
        self._source_traceback = self._repr = None

    def cancel(self) -> None:
        if not self._cancelled:
            if self._scheduled:
                self._loop.cancelled += 1
            self._cancelled = True
            self._callback = self._args = None


class VirtualLoop(asyncio.BaseEventLoop):
    """``worn_out`` is done once it has gone round ``MOST_STEPS`` times: something turns in circles.

    A quarter of what a run cost was asyncio's own loop. This one does the same steps in the same order, without debugging
    and without files."""

    get_debug = staticmethod(bool)  # never

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.now = 1000.0
        self.create_future = functools.partial(asyncio.Future, loop=self)
        self._numbers = itertools.count(1)
        self._draw = random.Random(f"threads {seed}")
        self._ready: deque[_Handle] = deque()
        self._scheduled: list[tuple[float, _Handle]] = []  # a heap
        self.cancelled = 0  # of them
        self._strands: list[Strand] = []
        self.frozen: set[Part] = set()
        self.tasks: list[_Task] = []  # kept until the end: what is collected would run its finally clauses
        self._most_tasks = 1_000
        self.steps = 0
        self.worn_out: asyncio.Future[None] = self.create_future()
        self._steps_left = 0
        self._stepped: asyncio.Future[None] | None = None
        self.problems: list[str] = []
        self.set_exception_handler(lambda _, context: self.problems.append(str(context.get("exception") or context)))

    def time(self) -> float:
        return self.now

    async def pass_steps(self, count: int) -> None:
        """Return once the loop has gone round ``count`` times: in the middle of what others do, between two awaits."""
        self._steps_left, self._stepped = count, self.create_future()
        await self._stepped

    def _run_once(self) -> None:
        """Go round until it is stopped: run what is ready, or let time jump to what is next."""
        ready, scheduled = self._ready, self._scheduled
        while not self._stopping:
            self.steps += 1
            if self.steps == MOST_STEPS:
                self.worn_out.set_result(None)
            if self._stepped is not None:
                self._steps_left -= 1
                if self._steps_left < 0:
                    self._stepped.set_result(None)
                    self._stepped = None
            if len(scheduled) > 100 and self.cancelled * 2 > len(scheduled):
                scheduled[:] = [timer for timer in scheduled if not timer[1]._cancelled]
                heapq.heapify(scheduled)
                self.cancelled = 0
            while scheduled and scheduled[0][1]._cancelled:
                heapq.heappop(scheduled)
                self.cancelled -= 1
            if not ready:
                if not scheduled:
                    raise RuntimeError("everything waits, and for nothing")
                self.now += max(0.0, scheduled[0][0] - self.now)
            soon = self.now + 1e-9
            while scheduled and scheduled[0][0] < soon:
                handle = heapq.heappop(scheduled)[1]
                handle._scheduled = False
                ready.append(handle)
            for _ in range(len(ready)):
                handle = ready.popleft()
                if self.frozen and (part := handle._context.get(_part)) in self.frozen:
                    part.hold(handle)
                elif not handle._cancelled:
                    try:
                        handle._context.run(handle._callback, *handle._args)
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as problem:
                        self.call_exception_handler({"message": "a callback failed", "exception": problem})

    def take_back(self, handles: Iterable[_Handle]) -> None:
        """Run what was held."""
        self._ready.extend(handles)

    def _write_to_self(self) -> None: ...

    def create_task(self, work: Any, *, name: str | None = None, context: Any = None) -> _Task:
        task = _Task.__new__(_Task)
        task.number = next(self._numbers)
        task.__init__(work, loop=self, name=name or "a task", context=context)  # type: ignore[misc]
        self.tasks.append(task)
        if len(self.tasks) > self._most_tasks:
            self.tasks = [task for task in self.tasks if not task.done()]
            self._most_tasks = 2 * len(self.tasks) + 1_000
        return task

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> _Handle:
        if context is None:
            context = contextvars.copy_context()
        handle = _Handle(0.0, callback, args, self, context)
        part = context.get(_part)
        if part is None or part.alive:
            self._ready.append(handle)
        else:
            handle.cancel()
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> _Handle:
        handle = _Handle(when, callback, args, self, contextvars.copy_context() if context is None else context)
        heapq.heappush(self._scheduled, (when, handle))
        handle._scheduled = True
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> _Handle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def drop_dead(self) -> None:
        """Forget what was about to run in parts that are dead."""
        for handle in [*self._ready, *(handle for _, handle in self._scheduled)]:
            part = handle._context.get(_part)
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


async def either(one: asyncio.Future[Any], other: asyncio.Future[Any]) -> None:
    """Return once one of the two is done: ``asyncio.wait`` in fewer words, as often as that is asked for here."""
    waiter = asyncio.get_running_loop().create_future()

    def wake(_: asyncio.Future[Any]) -> None:
        if not waiter.done():
            waiter.set_result(None)

    one.add_done_callback(wake)
    other.add_done_callback(wake)
    try:
        await waiter
    finally:
        one.remove_done_callback(wake)
        other.remove_done_callback(wake)


def _deliver(future: asyncio.Future[Any], result: Any, problem: Exception | None) -> None:
    if future.done():
        return
    if problem is not None:
        future.set_exception(problem)
    else:
        future.set_result(result)


class Strand:
    """What would be a thread, in lockstep with the loop: exactly one of the two moves at a time. A greenlet: to pass the word
    between two threads costs a hundred times as much."""

    def __init__(
        self,
        loop: VirtualLoop,
        work: Callable[[], Any],
        context: contextvars.Context,
        future: asyncio.Future[Any] | None = None,
    ) -> None:
        self.over = False
        self._loop, self._work, self._context, self._future = loop, work, context.copy(), future
        self._killed = False
        self._pending: Coroutine[Any, Any, Any] | None = None
        self._outcome: asyncio.Task[Any] | None = None
        self._result: tuple[Any, Exception | None] = (None, None)
        self._context.run(_strand.set, self)
        self._outside = context
        loop.add_strand(self)
        self._fiber = greenlet(self._run)
        loop.call_soon(self._resume, context=context)

    def _run(self) -> None:
        try:
            if not self._killed:
                self._result = self._context.run(self._work), None
        except Exception as problem:
            self._result = None, problem
        except SystemExit:
            pass
        self.over = True

    def _move(self) -> None:
        """Let it go on until it waits, or is done."""
        self._fiber.switch()

    def _resume(self, *_: Any) -> None:
        self._move()
        if self.over:
            if self._future is not None:
                _deliver(self._future, *self._result)
        elif self._pending is not None:
            work, self._pending = self._pending, None
            self._outcome = self._loop.create_task(work, context=self._outside.copy())
            self._outcome.add_done_callback(self._resume, context=self._outside)

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """In the strand: the result of ``work``, which the loop carries out meanwhile."""
        self._pending = work
        self._fiber.parent.switch()
        if self._killed or self._outcome is None:
            raise SystemExit
        return self._outcome.result()

    def end(self) -> None:
        self._killed = True
        self._move()


def block_on(work: Coroutine[Any, Any, Any]) -> Any:
    """Called in a strand: the result of ``work``."""
    strand = _strand.get()
    assert strand is not None, "only a strand may block"
    return strand.wait(work)


class Event:
    """``threading.Event`` for strands."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[asyncio.Future[None]] = []

    def set(self) -> None:
        self._set = True
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            assert timeout is not None
            block_on(self._wait(timeout))
        return self._set

    async def _wait(self, timeout: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await asyncio.wait((future,), timeout=timeout)


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
        return 1_700_000_000.0 + self._loop.now + self.jump_seconds

    def elapsed(self) -> float:
        return self._loop.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
