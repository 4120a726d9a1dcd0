"""Serves the gateway's requests for functions: keeps each answer until it is acknowledged, and output until it is written down, and
reports the state of the instances.

Woken by messages, by instances, and by allocations that need capacity. Every invocation begins at most once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from weft.agent.function.artifacts import Artifacts
from weft.agent.function.instances import Instances
from weft.agent.function.local.functions import LocalFunctions
from weft.agent.function.pending_output import PendingOutput
from weft.agent.function.pool import FreeCapacity
from weft.agent.function.prewarm import Send
from weft.agent.trace.invocations import ServedTraces
from weft.contracts.clock import Clock
from weft.contracts.driver.function import InstanceDriver, Isolation, Recipe
from weft.protocol.heartbeat import Instances as InstancesCounted
from weft.protocol.invocations import (
    Acknowledge,
    Count,
    Define,
    Drop,
    FromAgent,
    InstanceState,
    InvocationAnswer,
    InvocationRefused,
    Invoke,
    Keep,
    Prepare,
    Printed,
    ServeLocally,
    ToAgent,
    Underway,
    Written,
    diff_state,
)

STANDING_SECONDS = 0.05

Measure = Callable[[], FreeCapacity]


class Functions:
    """``measure`` returns the free capacity now. The gateway that connected last is served."""

    def __init__(
        self, drivers: Mapping[Isolation, InstanceDriver], parts: Artifacts, measure: Measure, clock: Clock
    ) -> None:
        self._parts, self._measure = parts, measure
        self.instances = Instances(drivers, parts, measure(), clock, self._on_message, self._schedule_state)
        self.isolations = self.instances.isolations
        self._digest_of: dict[str, str] = {}  # by pending invocation
        self._answers: dict[str, InvocationAnswer] = {}
        self._unwritten = PendingOutput(clock)
        self.traces: ServedTraces | None = None
        self.local: LocalFunctions | None = None  # those that this node serves at an address of its own
        self._here: dict[
            str, asyncio.Future[InvocationAnswer | InvocationRefused]
        ] = {}  # by pending invocation that came that way
        self._defined: set[str] = set()  # recipes that the gateway may invoke
        self._send: Send | None = None
        self._sent: InstanceState | None = None  # on this connection
        self._state_due: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Probe the drivers, and stop the instances of an earlier agent."""
        await self.instances.start()
        if self.local is not None:
            await self.local.start()
        self._schedule_state()

    async def close(self) -> None:
        """Take no more invocations; end the pending ones and every instance."""
        if self._state_due is not None:
            self._state_due.cancel()
        if self.local is not None:
            await self.local.close()
        await self.instances.close()
        for waiting in self._here.values():
            waiting.cancel()

    def used(self) -> set[str]:
        """Digests of code and bases that recipes here need."""
        recipes = self.instances.recipes.values()
        return {blob.sha256 for recipe in recipes for blob in (recipe.base, recipe.code) if blob is not None}

    def used_images(self) -> set[str]:
        """Digests of container images that recipes here need."""
        kept = self.local.digests if self.local is not None else set[str]()
        named = {
            self.instances.recipes[digest].image.partition("@")[2]
            for digest in kept
            if digest in self.instances.recipes
        }
        return self._parts.images_of(self.instances.recipes) | (named - {""})

    def report(self) -> dict[str, str]:
        """Report by isolation, for the node's report: "yes", or why instances can't run here."""
        return {isolation: why or "yes" for isolation, why in self.isolations.items()}

    def count(self) -> InstancesCounted:
        """Count the instances for the heartbeat."""
        pool, paused = self.instances.pool, self.instances.ahead.count_ready().values()
        busy, idle, ready = (sum(counts) for counts in zip((0, 0, 0), *pool.counts().values(), strict=True))
        memory = sum(one.need.memory for one in pool.members.values()) + sum(copies.memory for copies in paused)
        return InstancesCounted(busy, idle, ready + sum(copies.count for copies in paused), memory)

    def on_capacity(self) -> None:
        """Allocations may take more capacity now, or less."""
        self.instances.shrink(self._measure())

    def connect(self, send: Send) -> None:
        """Send everything through ``send`` from now on: first the pending invocations, then output, then answers."""
        self._send, self._sent = send, None
        underway = {**self._digest_of, **{id: "" for id in self._answers if id not in self._digest_of}}
        send(Underway(list(underway), list(underway.values())))
        for printed in self._unwritten.list():
            send(printed)
        for answer in self._answers.values():
            send(answer)
        self._send_state()
        if self.local is not None:
            self.local.report_usage()

    def disconnect(self, send: Send) -> None:
        if self._send is send:
            self._send = None

    def take(self, message: ToAgent) -> None:
        """Act on one message; never waits."""
        if isinstance(message, Invoke):
            self._invoke(message)
        elif isinstance(message, Acknowledge):
            self._answers.pop(message.id, None)
            self._digest_of.pop(message.id, None)
        elif isinstance(message, Written):
            self._unwritten.let_go(message.serial)
        elif isinstance(message, Define):
            self._defined.add(message.recipe.digest)
            self.instances.learn(message.recipe)
        elif isinstance(message, ServeLocally):
            if self.local is not None:
                self.local.take(message)
        elif isinstance(message, Prepare):
            if (problem := self._refuse(message)) is not None:
                self._send_message(problem)
            else:
                self.instances.prepare(message.id, self.instances.recipes[message.digest])
        elif isinstance(message, Keep):
            self.instances.keep(message.digest, message.idle_seconds, message.ready)
        elif isinstance(message, Drop):
            self._defined.discard(message.digest)
            if self.local is None or message.digest not in self.local.digests:
                self.instances.drop(message.digest)

    # --- LocalInstances --------------------------------------------------------------------------------------------------

    def learn_local(self, recipe: Recipe) -> None:
        self.instances.learn(recipe)

    def drop_local(self, digest: str) -> None:
        if digest not in self._defined:
            self.instances.drop(digest)

    def find_missing(self, isolation: str) -> str:
        return self.instances.missing(isolation)

    def run_here(self, call: Invoke) -> asyncio.Future[InvocationAnswer | InvocationRefused]:
        waiting: asyncio.Future[InvocationAnswer | InvocationRefused] = asyncio.get_running_loop().create_future()
        if (problem := self._refuse(call)) is not None:
            waiting.set_result(problem)
            return waiting
        self._here[call.id] = waiting
        self.instances.serve(call, self.instances.recipes[call.digest])
        return waiting

    def give_up(self, call: str) -> bool:
        if not self.instances.give_up(call):
            return False
        self._here.pop(call, None)
        return True

    def _invoke(self, call: Invoke) -> None:
        if call.id in self._answers:
            self._send_message(self._answers[call.id])
        elif call.id in self._digest_of:
            return  # it is pending
        elif (problem := self._refuse(call)) is not None:
            self._send_message(problem)
        else:
            self._digest_of[call.id] = call.digest
            if call.traceparent and self.traces is not None:
                call = self.traces.begin(call)
            self.instances.serve(call, self.instances.recipes[call.digest])

    def _refuse(self, message: Invoke | Prepare) -> InvocationRefused | None:
        """Why this node refuses it at once, if it does."""
        recipe = self.instances.recipes.get(message.digest)
        if recipe is None:
            return InvocationRefused(
                message.id, "unknownRecipe", f"this node doesn't know function code {message.digest[:12]}"
            )
        if self.instances.closing:
            return InvocationRefused(message.id, "closing", "this node's agent is shutting down")
        if why := self.instances.missing(recipe.isolation):
            return InvocationRefused(message.id, "notServed", why)
        return None

    def _on_message(self, message: FromAgent) -> None:
        """Pass on a message of the instances; answers and output are kept, and a refused invocation is no longer pending."""
        if (
            isinstance(message, (InvocationAnswer, InvocationRefused))
            and (waiting := self._here.pop(message.id, None)) is not None
        ):
            if not waiting.done():
                waiting.set_result(message)
            return
        if self.traces is not None and isinstance(message, (InvocationAnswer, InvocationRefused)):
            self.traces.end(message)
        if isinstance(message, InvocationAnswer):
            self._answers[message.id] = message
        elif isinstance(message, InvocationRefused):
            self._digest_of.pop(message.id, None)
        elif isinstance(message, Printed):
            message = self._unwritten.add(message)
        self._send_message(message)

    def _send_message(self, message: FromAgent) -> None:
        if self._send is not None:
            self._send(message)

    def _schedule_state(self) -> None:
        if self._state_due is None and self._send is not None and not self.instances.closing:
            self._state_due = asyncio.get_running_loop().call_later(STANDING_SECONDS, self._send_state)

    def _send_state(self) -> None:
        if self._state_due is not None:
            self._state_due.cancel()
            self._state_due = None
        before, self._sent = self._sent, self._read_state()
        self._send_message(self._sent if before is None else diff_state(before, self._sent))

    def _read_state(self) -> InstanceState:
        pool, ready = self.instances.pool, self.instances.ahead.count_ready()
        counts = {digest: Count(*numbers) for digest, numbers in pool.counts().items()}
        for digest, paused in ready.items():
            count = counts.get(digest, Count())
            counts[digest] = Count(count.busy, count.idle, count.ready + paused.count)
        return InstanceState(
            counts=counts,
            free_cpu=pool.free_cpu(),
            free_memory=pool.free_memory(),
            isolations=dict(self.isolations),
            # Whose new instances start at once: one has come up here, or there is a template.
            recipes=sorted(self.instances.came_up | self.instances.ahead.templates()),
            ready_memory=sum(paused.memory for paused in ready.values()),
        )
