"""A node's instances of functions: starts them, gives them invocations, pauses and ends them.

Woken by invocations, instances, and time. The pool makes every decision about instances; the result of each invocation is sent
once, as a message to the gateway.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from weft.agent.function.artifacts import Artifacts
from weft.agent.function.failures import EXITED, RECLAIMED, Failure, fail, fail_with, is_own_fault
from weft.agent.function.pool import FreeCapacity, Lack, Need, Pool, measure_left
from weft.agent.function.prewarm import Prewarmer, Send
from weft.contracts.clock import Clock
from weft.contracts.driver.function import HasTemplates, InstanceDriver, Isolation, Recipe
from weft.objects.errors import WeftError
from weft.protocol.invocations import InvocationAnswer, InvocationRefused, Invoke, Prepared, Printed

if TYPE_CHECKING:  # loaded once an instance runs
    from weft.agent.function.instance import RunningInstance

log = logging.getLogger("weft.agent")
INIT_SECONDS = 30.0  # from an instance's start to its first call
MOST_READY = 16


class Instances:
    """``send`` sends messages to the gateway; ``changed`` is called when counts, capacity or prepared recipes have changed."""

    def __init__(
        self,
        drivers: Mapping[Isolation, InstanceDriver],
        parts: Artifacts,
        capacity: FreeCapacity,
        clock: Clock,
        send: Send,
        changed: Callable[[], None],
    ) -> None:
        self._drivers, self._parts, self._clock = dict(drivers), parts, clock
        self._send, self._on_changed = send, changed
        self.isolations: dict[str, str] = {}  # why instances can't run here; "" if they can
        self.pool = Pool(capacity)
        self.recipes: dict[str, Recipe] = {}
        self.ahead = Prewarmer(self._drivers.values(), parts, clock, send, changed)
        self.came_up: set[str] = set()  # recipes of which an instance came up
        self.running: dict[str, RunningInstance] = {}
        self.closing = False
        self._dropped: set[str] = set()
        self._waiting: dict[str, Invoke] = {}  # by instance: the invocation that it starts for
        self._preparing: dict[str, list[str]] = {}  # by instance: the requests that wait for it
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reviewing: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        for isolation, driver in self._drivers.items():
            try:
                left = await driver.recover()
                self.isolations[isolation] = await driver.probe()
            except WeftError as problem:
                self.isolations[isolation] = problem.message
                continue
            except Exception as problem:  # a defect of one isolation must not end the agent
                log.exception("functions with isolation %s", isolation)
                self.isolations[isolation] = f"the node failed: {problem}"
                continue
            if left:
                log.warning("functions: stopped %d instances of an earlier agent", left)
            if self.isolations[isolation]:
                log.warning("functions with isolation %s: %s", isolation, self.isolations[isolation])

    async def close(self) -> None:
        self.closing = True
        if self._reviewing is not None:
            self._reviewing.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(running.stop() for running in self.running.values()), return_exceptions=True)
        self._parts.close()
        for driver in self._drivers.values():
            await driver.close()

    def missing(self, isolation: str) -> str:
        """Why instances of that isolation can't run here; "" if they can."""
        return self.isolations.get(isolation, f"this node runs no functions with isolation {isolation}")

    # --- requests ----------------------------------------------------------------------------------------------------

    def learn(self, recipe: Recipe) -> None:
        self.recipes[recipe.digest] = recipe
        self._dropped.discard(recipe.digest)

    def serve(self, call: Invoke, recipe: Recipe) -> None:
        """Serve it by an instance that is idle or coming up, else by a new one; refuse it without capacity."""
        member = self.pool.take(recipe.digest, self._clock.elapsed())
        if member is None:
            lack = self._begin(recipe, call)
            if lack is not None:
                self._send(InvocationRefused(call.id, "insufficientResources", lack.message))
                return
        elif member.id in self.running and self.running[member.id].up:
            running = self.running[member.id]
            if member.paused:
                member.paused = False
                self._spawn(self._wake(running, call))
            else:
                running.give(call)
        else:
            self._waiting[member.id] = call
        self._changed()

    def give_up(self, call: str) -> bool:
        """Whether that invocation waited for an instance to come up: it doesn't any more, and the instance will be idle."""
        for id, waiting in self._waiting.items():
            if waiting.id == call and not (id in self.running and self.running[id].up):
                del self._waiting[id]
                return True
        return False

    def prepare(self, request: str, recipe: Recipe) -> None:
        """Check that an instance comes up, or could; resolve an image without a digest. Answered by ``Prepared``."""
        driver = self._drivers[recipe.isolation]
        if recipe.is_open:
            self._spawn(self.ahead.resolve(request, recipe))
        elif isinstance(driver, HasTemplates):
            self._spawn(self.ahead.prepare(driver, request, recipe))
        elif (lack := self._begin(recipe, None, request)) is not None:
            self._send(InvocationRefused(request, "insufficientResources", lack.message))

    def keep(self, digest: str, idle_seconds: float, ready: int) -> None:
        """Set how long idle instances stay, and how many stand ready."""
        ready = min(ready, MOST_READY)
        self.pool.keep(digest, idle_seconds, ready)
        recipe = self.recipes.get(digest)
        if recipe is None or self.missing(recipe.isolation):
            return
        driver = self._drivers[recipe.isolation]
        if isinstance(driver, HasTemplates):
            self._spawn(self.ahead.keep_ready(driver, recipe, ready))
        else:
            for _ in range(self.pool.lacking_ready(digest)):
                if self._begin(recipe, None) is not None:
                    break
        self._review()

    def drop(self, digest: str) -> None:
        """End the recipe's instances: idle ones now, the others after their invocation."""
        self.came_up.discard(digest)
        self._dropped.add(digest)
        for id in self.pool.drop(digest):
            self._end(id, None)
        self._forget_dropped(digest)
        self._changed()

    def shrink(self, capacity: FreeCapacity) -> None:
        """Set the capacity; instances that exceed it are ended."""
        for id in self.pool.shrink(capacity):
            self._end(id, fail(RECLAIMED, "the node needed the capacity for a reserved workload"))
        self._changed()

    # --- coming up ---------------------------------------------------------------------------------------------------

    def _begin(self, recipe: Recipe, call: Invoke | None, prepares: str = "") -> Lack | None:
        """Start an instance, for ``call`` if there is one; the lack, if there is no capacity."""
        id, now = secrets.token_hex(5), self._clock.elapsed()
        gone = self.pool.begin(id, recipe.digest, Need(recipe.cpu, recipe.memory), now, spoken_for=call is not None)
        if isinstance(gone, Lack):
            return gone
        for other in gone:
            self._end(other, None)
        if call is not None:
            self._waiting[id] = call
        if prepares:
            self._preparing[id] = [prepares]
        self._spawn(self._bring_up(id, recipe))
        return None

    async def _bring_up(self, id: str, recipe: Recipe) -> None:
        late = importlib.import_module("weft.agent.function.instance")  # see above
        began = self._clock.elapsed()
        try:
            roots = await self._parts.ensure(recipe, lambda word: self._report_step(id, word))
            self._report_step(id, "starting")
            instance = await self._drivers[recipe.isolation].start(id, recipe, roots)
        except WeftError as problem:
            self.pool.forget(id)
            self._fail_start(id, problem)
            return
        except Exception as problem:  # a defect is reported to its callers, and affects no other instance
            log.exception("an instance of %s", recipe.what)
            self.pool.forget(id)
            self._fail_start(id, WeftError(f"the node failed: {problem}"))
            return
        running = late.RunningInstance(id, recipe, instance, self, self._clock, began)
        self.running[id] = running
        if id not in self.pool.members:  # its capacity was taken meanwhile
            self._end(id, fail(RECLAIMED, "the node needed the capacity for a reserved workload"))
            return
        try:
            await running.begin(INIT_SECONDS)
        except OSError as problem:
            self.on_over(running, fail(EXITED, f"the node can't serve its Runtime API: {problem}"))

    async def _wake(self, running: RunningInstance, call: Invoke) -> None:
        self._waiting[running.id] = call
        try:
            await running.instance.resume()
        except (WeftError, OSError) as problem:
            self.on_over(running, fail(EXITED, f"the node can't resume its instance: {problem}"))
            return
        if self._waiting.pop(running.id, None) is not None and not running.over:
            running.give(call)

    # --- events of instances -------------------------------------------------------------------------------------------

    def on_up(self, running: RunningInstance) -> None:
        now, id = self._clock.elapsed(), running.id
        if not isinstance(self._drivers[running.recipe.isolation], HasTemplates):
            self.came_up.add(running.recipe.digest)
        for request in self._preparing.pop(id, ()):
            self._send(Prepared(request, True, seconds=running.init_seconds))
        call = self._waiting.pop(id, None)
        if call is not None:
            self.pool.serve(id, now)
            running.give(call)
        else:
            running.set_used()
            self.pool.free(id, now)
            self._review()
        self._changed()

    def on_answer(self, running: RunningInstance, answer: InvocationAnswer) -> None:
        if not running.over:  # it will ask for the next in a moment
            self.pool.free(running.id, self._clock.elapsed())
        if answer.start == "warm" or running.over:
            self._send(answer)
        else:
            self._spawn(self._send_measured(running, answer))

    async def _send_measured(self, running: RunningInstance, answer: InvocationAnswer) -> None:
        await running.measure()
        self._send(msgspec.structs.replace(answer, most_memory=running.most_memory))

    def on_free(self, running: RunningInstance) -> None:
        if self.closing or running.id in self._waiting:
            return
        self.pool.free(running.id, self._clock.elapsed())
        self._review()
        self._changed()

    def on_over(self, running: RunningInstance, why: Failure) -> None:
        self.pool.forget(running.id)
        again = running.call if running.call is not None and not running.begun and why.error_type == EXITED else None
        if again is not None:  # the code has never seen it
            running.call = None
        self._end(running.id, why)
        if again is not None:
            self.serve(again, running.recipe)
        self._changed()

    def on_printed(self, running: RunningInstance, text: bytes, invocation: str) -> None:
        self._send(Printed(running.recipe.digest, running.id, text, invocation))

    # --- the end -----------------------------------------------------------------------------------------------------

    def _end(self, id: str, why: Failure | None) -> None:
        """Stop an instance that has left the pool; ``why`` is reported to its callers."""
        running = self.running.get(id)
        failure = why or fail(RECLAIMED, "its instance was stopped")
        self._fail_waiting(id, failure)
        if running is None:
            return  # still starting: it is stopped when it is up
        running.over = True
        if running.call is not None:
            running.end_call(failure)
        self._spawn(self._stop(running))

    async def _stop(self, running: RunningInstance) -> None:
        try:
            await running.stop()
        except (WeftError, OSError) as problem:
            log.warning("%s: can't stop instance %s cleanly: %s", running.recipe.what, running.id, problem)
        self.running.pop(running.id, None)
        self._forget_dropped(running.recipe.digest)

    def _forget_dropped(self, digest: str) -> None:
        """Remove what a dropped recipe's instances shared, after the last of them."""
        if digest in self._dropped and not any(one.digest == digest for one in self.pool.members.values()):
            self._dropped.discard(digest)
            recipe = self.recipes.pop(digest, None)
            self._parts.drop(digest)
            for (
                isolation,
                driver,
            ) in self._drivers.items():  # any may have files of a recipe that only an earlier agent knew
                if recipe is None or recipe.isolation == isolation:
                    self._spawn(driver.forget(digest))
            if recipe is not None and recipe.network:
                self._spawn(self._parts.let_go(self._networks))

    def _networks(self) -> set[str]:
        """Uids of the networks that recipes here name."""
        return {recipe.network for recipe in self.recipes.values() if recipe.network}

    def _fail_start(self, id: str, problem: WeftError) -> None:
        """The start failed: by the code's own fault, or by this node's, and then another node may succeed."""
        if is_own_fault(problem):
            self._fail_waiting(id, fail_with(problem))
            return
        call = self._waiting.pop(id, None)
        if call is not None:
            self._send(InvocationRefused(call.id, problem.token, problem.message))
        for request in self._preparing.pop(id, ()):
            self._send(Prepared(request, True, problem.token, problem.message))
        self._changed()

    def _fail_waiting(self, id: str, failure: Failure) -> None:
        call = self._waiting.pop(id, None)
        if call is not None:
            self._send(
                InvocationAnswer(
                    call.id, failure.payload, error="Unhandled", error_type=failure.error_type, start="cold"
                )
            )
        for request in self._preparing.pop(id, ()):
            self._send(Prepared(request, True, failure.error_type, failure.message))
        self._changed()

    # --- time --------------------------------------------------------------------------------------------------------

    def _review(self) -> None:
        """End instances that were idle for too long, pause the other idle ones, and schedule the next review."""
        if self._reviewing is not None:
            self._reviewing.cancel()
            self._reviewing = None
        if self.closing:
            return
        now = self._clock.elapsed()
        for id in self.pool.expire(now):
            self._end(id, None)
            self._changed()
        for id in self.pool.pause(now):
            if (running := self.running.get(id)) is not None:
                self._spawn(self._sleep(running))
        if (seconds := self.pool.next_review(now)) is not None:
            self._reviewing = asyncio.get_running_loop().call_later(seconds + 0.001, self._review)

    async def _sleep(self, running: RunningInstance) -> None:
        await running.measure()
        member = self.pool.members.get(running.id)
        if member is not None and member.paused:
            await running.instance.freeze()
            if not member.paused:  # it was needed meanwhile
                await running.instance.resume()

    def _report_step(self, id: str, word: str) -> None:
        for request in self._preparing.get(id, ()):
            self.ahead.record_progress(request, word)

    def _changed(self) -> None:
        self.ahead.bound(measure_left(self.pool))
        self._on_changed()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("functions: %r", problem, exc_info=problem)
