"""Functions on one node: takes what the gateway asks, gives each invocation to an instance, tells how it ended.

Woken by messages, instances, time, and by allocations that need room. Every decision over instances is the pool's; every
invocation is begun at most once, and each answer kept until the gateway has heard it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec

from weft.agent.functions.parts import Parts
from weft.agent.functions.pool import Lack, Need, Pool, Room
from weft.agent.functions.running import EXITED, RECLAIMED, Failure, Running, fail
from weft.client.invocations import (
    Answer,
    Count,
    Drop,
    FromAgent,
    Heard,
    Invoke,
    Keep,
    Prepare,
    Prepared,
    Printed,
    Refused,
    Standing,
    Tell,
    ToAgent,
    Underway,
)
from weft.contracts.clock import Clock
from weft.contracts.function import HasTemplates, InstanceDriver, Isolation, Recipe
from weft.objects.errors import WeftError

log = logging.getLogger("weft.agent")
INIT_SECONDS = 30.0  # from an instance's start to its first call
STANDING_SECONDS = 0.05
MOST_READY = 16
PROGRESS_SECONDS = 1.0

Send = Callable[[FromAgent], None]
Measure = Callable[[], Room]


class Functions:
    """``measure`` tells what room there is now. One gateway at a time is listened to: the one that was connected last."""

    def __init__(
        self, drivers: Mapping[Isolation, InstanceDriver], parts: Parts, measure: Measure, clock: Clock
    ) -> None:
        self._drivers, self._parts, self._measure, self._clock = dict(drivers), parts, measure, clock
        self.isolations: dict[str, str] = {}
        self._pool = Pool(measure())
        self._recipes: dict[str, Recipe] = {}
        self._dropped: set[str] = set()
        self._prepared: set[str] = set()
        self._running: dict[str, Running] = {}
        self._waiting: dict[str, Invoke] = {}  # by instance: for whom it is coming up
        self._digest_of: dict[str, str] = {}  # by invocation under way
        self._answers: dict[str, Answer] = {}
        self._preparing: dict[str, list[str]] = {}  # by instance: the requests that wait for it
        self._send: Send | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._standing: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._closing = False
        self._progress_at = 0.0

    async def start(self) -> None:
        """Find out what this node can do, and end what an agent before this one left behind."""
        for isolation, driver in self._drivers.items():
            try:
                left = await driver.recover()
                self.isolations[isolation] = await driver.probe()
            except WeftError as problem:
                self.isolations[isolation] = problem.message
                continue
            except Exception as problem:  # a defect of one isolation keeps no guest of this node from its care
                log.exception("functions with isolation %s", isolation)
                self.isolations[isolation] = f"the node failed: {problem}"
                continue
            if left:
                log.warning("functions: %d instances of an agent before this one were ended", left)
            if self.isolations[isolation]:
                log.warning("functions with isolation %s: %s", isolation, self.isolations[isolation])
        self._tell_standing()

    async def close(self) -> None:
        """No invocation is taken any more; those under way are ended, and so is every instance."""
        self._closing = True
        for timer in (self._standing, self._looking):
            if timer is not None:
                timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(running.stop() for running in self._running.values()), return_exceptions=True)
        self._parts.close()
        for driver in self._drivers.values():
            await driver.close()

    def used(self) -> set[str]:
        """Digests of code and bases that recipes here need."""
        blobs = [blob for recipe in self._recipes.values() for blob in (recipe.base, recipe.code) if blob is not None]
        return {blob.sha256 for blob in blobs}

    def report(self) -> dict[str, str]:
        """For the node's report: in which isolations it runs instances, or why not."""
        return {isolation: why or "yes" for isolation, why in self.isolations.items()}

    def used_images(self) -> set[str]:
        """Digests of container images that recipes here need."""
        return self._parts.images_of(self._recipes)

    # --- the gateway's side ------------------------------------------------------------------------------------------

    def connect(self, send: Send) -> None:
        """From here on it is told; first what is still here of what was begun before."""
        self._send = send
        underway = {**self._digest_of, **{id: "" for id in self._answers if id not in self._digest_of}}
        send(Underway(list(underway), list(underway.values())))
        for answer in self._answers.values():
            send(answer)
        self._send_standing()

    def disconnect(self, send: Send) -> None:
        if self._send is send:
            self._send = None

    def take(self, message: ToAgent) -> None:
        """Act on one message; never waits."""
        if isinstance(message, Invoke):
            self._invoke(message)
        elif isinstance(message, Heard):
            self._answers.pop(message.id, None)
            self._digest_of.pop(message.id, None)
        elif isinstance(message, Tell):
            self._recipes[message.recipe.digest] = message.recipe
            self._dropped.discard(message.recipe.digest)
        elif isinstance(message, Prepare):
            self._spawn(self._prepare(message))
        elif isinstance(message, Keep):
            self._keep(message)
        elif isinstance(message, Drop):
            self._drop(message.digest)

    def on_room(self) -> None:
        """Allocations may take more room now, or less."""
        for id in self._pool.shrink(self._measure()):
            self._end(id, fail(RECLAIMED, "the node needed the room for a reserved workload"))
        self._tell_standing()

    def _invoke(self, call: Invoke) -> None:
        if call.id in self._answers:
            self._tell(self._answers[call.id])
            return
        if call.id in self._digest_of:
            return  # it is under way
        recipe = self._recipes.get(call.digest)
        if recipe is None:
            self._tell(Refused(call.id, "unknownRecipe", f"this node hasn't been told of {call.digest[:12]}"))
        elif self._closing:
            self._tell(Refused(call.id, "closing", "this node's agent is ending"))
        elif why := self._missing(recipe.isolation):
            self._tell(Refused(call.id, "notServed", why))
        else:
            self._place(call, recipe)

    def _place(self, call: Invoke, recipe: Recipe) -> None:
        member = self._pool.take(recipe.digest, self._clock.elapsed())
        if member is None:
            lack = self._begin(recipe, call)
            if lack is not None:
                self._tell(Refused(call.id, "insufficientResources", lack.message))
                return
            self._digest_of[call.id] = call.digest
        elif member.id in self._running and self._running[member.id].up:
            self._digest_of[call.id] = call.digest
            running = self._running[member.id]
            if member.paused:
                member.paused = False
                self._spawn(self._wake(running, call))
            else:
                running.give(call)
        else:
            self._digest_of[call.id] = call.digest
            self._waiting[member.id] = call
        self._tell_standing()

    async def _wake(self, running: Running, call: Invoke) -> None:
        self._waiting[running.id] = call
        try:
            await running.instance.resume()
        except (WeftError, OSError) as problem:
            self.on_over(running, fail("Runtime.ExitError", f"its instance can't go on: {problem}"))
            return
        if self._waiting.pop(running.id, None) is not None and not running.over:
            running.give(call)

    def _begin(self, recipe: Recipe, call: Invoke | None, prepares: str = "") -> Lack | None:
        """Start an instance, for ``call`` if there is one; why not, if there is no room."""
        id, now = secrets.token_hex(5), self._clock.elapsed()
        gone = self._pool.begin(id, recipe.digest, Need(recipe.cpu, recipe.memory), now, spoken_for=call is not None)
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
        began = self._clock.elapsed()
        try:
            roots = await self._parts.ensure(recipe, lambda word: self._tell_step(id, word))
            self._tell_step(id, "starting")
            instance = await self._drivers[recipe.isolation].start(id, recipe, roots)
        except WeftError as problem:
            self._pool.forget(id)
            self._fail_start(id, problem)
            return
        except Exception as problem:  # a defect is told to whoever waits, and no other instance notices
            log.exception("an instance of %s", recipe.what)
            self._pool.forget(id)
            self._fail_start(id, WeftError(f"the node failed: {problem}"))
            return
        running = Running(id, recipe, instance, self, self._clock, began)
        self._running[id] = running
        if id not in self._pool.members:  # its room was taken meanwhile
            self._end(id, fail(RECLAIMED, "the node needed the room for a reserved workload"))
            return
        try:
            await running.begin(INIT_SECONDS)
        except OSError as problem:
            self.on_over(running, fail("Runtime.ExitError", f"its Runtime API can't be served: {problem}"))

    async def _prepare(self, message: Prepare) -> None:
        recipe = self._recipes.get(message.digest)
        if recipe is None:
            self._tell(Refused(message.id, "unknownRecipe", f"this node hasn't been told of {message.digest[:12]}"))
            return
        if why := self._missing(recipe.isolation):
            self._tell(Refused(message.id, "notServed", why))
            return
        driver, began = self._drivers[recipe.isolation], self._clock.elapsed()
        if isinstance(driver, HasTemplates):
            try:
                roots = await self._parts.ensure(recipe, lambda word: self._tell_progress(message.id, word))
                self._tell(Prepared(message.id, False, message="template"))
                await driver.capture(recipe, roots)
            except WeftError as problem:
                told = read_message(fail_with(problem)) if "." in problem.token else problem.message
                self._tell(Prepared(message.id, True, problem.token, told, self._clock.elapsed() - began))
                return
            self._prepared.add(recipe.digest)
            self._tell(Prepared(message.id, True, seconds=self._clock.elapsed() - began))
            self._tell_standing()
            return
        lack = self._begin(recipe, None, message.id)
        if lack is not None:
            self._tell(Refused(message.id, "insufficientResources", lack.message))

    def _keep(self, message: Keep) -> None:
        self._pool.keep(message.digest, message.idle_seconds, min(message.ready, MOST_READY))
        recipe = self._recipes.get(message.digest)
        if recipe is None or self._missing(recipe.isolation):
            return
        driver = self._drivers[recipe.isolation]
        if isinstance(driver, HasTemplates):
            self._spawn(self._keep_ready(driver, recipe, min(message.ready, MOST_READY)))
        else:
            for _ in range(self._pool.lacking_ready(message.digest)):
                if self._begin(recipe, None) is not None:
                    break
        self._look()

    async def _keep_ready(self, driver: HasTemplates, recipe: Recipe, count: int) -> None:
        try:
            roots = await self._parts.ensure(recipe, lambda word: None)
            await driver.keep_ready(recipe, roots, count)
        except WeftError as problem:
            log.warning("%s: no instances ahead of demand: %s", recipe.what, problem.message)

    def _drop(self, digest: str) -> None:
        self._prepared.discard(digest)
        self._dropped.add(digest)
        for id in self._pool.drop(digest):
            self._end(id, None)
        self._forget_dropped(digest)
        self._tell_standing()

    def _forget_dropped(self, digest: str) -> None:
        """What instances of it shared goes with the last of them."""
        if digest in self._dropped and not any(one.digest == digest for one in self._pool.members.values()):
            self._dropped.discard(digest)
            recipe = self._recipes.pop(digest, None)
            if recipe is not None and recipe.isolation in self._drivers:
                self._spawn(self._drivers[recipe.isolation].forget(digest))

    # --- the instances' side -----------------------------------------------------------------------------------------

    def on_up(self, running: Running) -> None:
        now, id = self._clock.elapsed(), running.id
        self._prepared.add(running.recipe.digest)
        for request in self._preparing.pop(id, ()):
            self._tell(Prepared(request, True, seconds=running.init_seconds))
        call = self._waiting.pop(id, None)
        if call is not None:
            self._pool.serve(id, now)
            running.give(call)
        else:
            running.set_used()
            self._pool.free(id, now)
            self._look()
        self._tell_standing()

    def on_answer(self, running: Running, answer: Answer) -> None:
        if not running.over:  # it asks for the next in a moment, and may be given it before
            self._pool.free(running.id, self._clock.elapsed())
        if answer.start == "warm" or running.over:
            self._deliver(answer)
        else:
            self._spawn(self._deliver_measured(running, answer))

    async def _deliver_measured(self, running: Running, answer: Answer) -> None:
        await running.measure()
        fields = {name: getattr(answer, name) for name in answer.__struct_fields__}
        self._deliver(Answer(**{**fields, "most_memory": running.most_memory}))

    def _deliver(self, answer: Answer) -> None:
        self._answers[answer.id] = answer
        self._tell(answer)

    def on_free(self, running: Running) -> None:
        if self._closing or running.id in self._waiting:
            return
        self._pool.free(running.id, self._clock.elapsed())
        self._look()
        self._tell_standing()

    def on_over(self, running: Running, why: Failure) -> None:
        self._pool.forget(running.id)
        again = running.call if running.call is not None and not running.begun and why.error_type == EXITED else None
        if again is not None:  # the code has never seen it
            running.call = None
            self._digest_of.pop(again.id, None)
        self._end(running.id, why)
        if again is not None:
            self._place(again, running.recipe)
        self._tell_standing()

    def on_printed(self, running: Running, text: bytes, invocation: str) -> None:
        self._tell(Printed(running.recipe.digest, running.id, text, invocation))

    def _end(self, id: str, why: Failure | None) -> None:
        """Take one that the pool counts no more out of service; ``why`` is told to whoever waits for it."""
        running = self._running.get(id)
        failure = why or fail(RECLAIMED, "its instance was ended")
        self._fail_waiting(id, failure)
        if running is None:
            return  # still on its way: it is ended when it has come
        running.over = True
        if running.call is not None:
            running.end_call(failure)
        self._spawn(self._stop(running))

    async def _stop(self, running: Running) -> None:
        try:
            await running.stop()
        except (WeftError, OSError) as problem:
            log.warning("%s: instance %s is hard to end: %s", running.recipe.what, running.id, problem)
        self._running.pop(running.id, None)
        self._forget_dropped(running.recipe.digest)

    def _fail_start(self, id: str, problem: WeftError) -> None:
        """None came to be: by the code's own fault if the reason has a dot, else this node's, and another may do better."""
        if "." in problem.token:
            self._fail_waiting(id, fail_with(problem))
            return
        call = self._waiting.pop(id, None)
        if call is not None:
            self._digest_of.pop(call.id, None)
            self._tell(Refused(call.id, problem.token, problem.message))
        for request in self._preparing.pop(id, ()):
            self._tell(Prepared(request, True, problem.token, problem.message))
        self._tell_standing()

    def _fail_waiting(self, id: str, failure: Failure) -> None:
        call = self._waiting.pop(id, None)
        if call is not None:
            self._deliver(
                Answer(call.id, failure.payload, error="Unhandled", error_type=failure.error_type, start="cold")
            )
        for request in self._preparing.pop(id, ()):
            self._tell(Prepared(request, True, failure.error_type, read_message(failure)))
        self._tell_standing()

    # --- time, telling -----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Let go of what has been idle for too long, let the rest sleep, and look again when that may change."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._closing:
            return
        now = self._clock.elapsed()
        for id in self._pool.expire(now):
            self._end(id, None)
            self._tell_standing()
        for id in self._pool.pause(now):
            if (running := self._running.get(id)) is not None:
                self._spawn(self._sleep(running))
        if (seconds := self._pool.next_look(now)) is not None:
            self._looking = asyncio.get_running_loop().call_later(seconds + 0.001, self._look)

    async def _sleep(self, running: Running) -> None:
        await running.measure()
        member = self._pool.members.get(running.id)
        if member is not None and member.paused:
            await running.instance.pause()
            if not member.paused:  # it was wanted meanwhile
                await running.instance.resume()

    def _missing(self, isolation: str) -> str:
        """Why instances of that isolation can't run here; "" if they can."""
        return self.isolations.get(isolation, f"this node runs no functions with isolation {isolation}")

    def _tell(self, message: FromAgent) -> None:
        if self._send is not None:
            self._send(message)

    def _tell_step(self, id: str, word: str) -> None:
        for request in self._preparing.get(id, ()):
            self._tell_progress(request, word)

    def _tell_progress(self, request: str, word: str) -> None:
        """At most one a second for all: each becomes a write in the store."""
        now = self._clock.elapsed()
        if now - self._progress_at >= PROGRESS_SECONDS:
            self._progress_at = now
            self._tell(Prepared(request, False, message=word))

    def _tell_standing(self) -> None:
        if self._standing is None and self._send is not None and not self._closing:
            self._standing = asyncio.get_running_loop().call_later(STANDING_SECONDS, self._send_standing)

    def _send_standing(self) -> None:
        if self._standing is not None:
            self._standing.cancel()
            self._standing = None
        counts = {digest: Count(*numbers) for digest, numbers in self._pool.counts().items()}
        self._tell(
            Standing(
                counts, self._pool.free_cpu(), self._pool.free_memory(), dict(self.isolations), sorted(self._prepared)
            )
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("functions: %r", problem, exc_info=problem)


def fail_with(problem: WeftError) -> Failure:
    """What a driver or a fetch said, as a caller is told it; a runtime's own words as they are."""
    said = problem.details.get("error")
    if isinstance(said, dict):
        return Failure(problem.token, msgspec.json.encode(said))
    if isinstance(said, str) and said:
        return Failure(problem.token, said.encode())
    return fail(problem.token, problem.message)


def read_message(failure: Failure) -> str:
    """The words in a failure's JSON."""
    return failure.payload.decode(errors="replace")
