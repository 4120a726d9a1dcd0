"""Serves the gateways' requests for functions: keeps each answer until it is acknowledged, and output until it is written down, and
reports the state of the instances.

Woken by messages, by instances, and by allocations that need capacity. Every invocation begins at most once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from weft.agent.function.artifacts import Artifacts
from weft.agent.function.instances import Instances
from weft.agent.function.local.functions import LocalFunctions
from weft.agent.function.pool import FreeCapacity
from weft.agent.function.served_gateway import Send, ServedGateway
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
    Prepared,
    Printed,
    ServeLocally,
    ToAgent,
    Written,
)

STANDING_SECONDS = 0.05
AWAY_SECONDS = 60.0  # then a gateway counts as gone, if another one is there
_NOBODY = ""  # has what no gateway asked for, until one connects

Measure = Callable[[], FreeCapacity]


class Functions:
    """``measure`` returns the free capacity now."""

    def __init__(
        self, drivers: Mapping[Isolation, InstanceDriver], parts: Artifacts, measure: Measure, clock: Clock
    ) -> None:
        self._parts, self._measure = parts, measure
        self.instances = Instances(drivers, parts, measure(), clock, self._on_message, self._schedule_state)
        self.isolations = self.instances.isolations
        self._gateways = {_NOBODY: ServedGateway(clock)}  # by the place where each is
        self.traces: ServedTraces | None = None
        self.local: LocalFunctions | None = None  # those that this node serves at an address of its own
        self._here: dict[
            str, asyncio.Future[InvocationAnswer | InvocationRefused]
        ] = {}  # by pending invocation that came that way
        self._clock = clock
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

    def connect(self, send: Send, place: str) -> None:
        """Send to the gateway at ``place`` through ``send`` from now on, what it asked for, and what those did that are away."""
        gateway = self._gateways.setdefault(place, ServedGateway(self._clock))
        for other in self._gateways.values():
            if other.send is None and other is not gateway:
                gateway.take_over(other)
        gateway.begin(send)
        self._drop_gone()
        self._send_state()
        if self.local is not None:
            self.local.report_usage()

    def disconnect(self, send: Send) -> None:
        for gateway in self._gateways.values():
            if gateway.send is send:
                gateway.send, gateway.away_since = None, self._clock.elapsed()
                for other in self._gateways.values():
                    if other.send is not None:
                        other.take_over(gateway)
                asyncio.get_running_loop().call_later(AWAY_SECONDS, self._drop_gone)

    def take(self, message: ToAgent, place: str) -> None:
        """Act on one message of the gateway there, which is connected; never waits."""
        gateway = self._gateways.setdefault(place, ServedGateway(self._clock))
        if isinstance(message, Invoke):
            self._invoke(gateway, message)
        elif isinstance(message, Acknowledge):
            gateway.forget(message.id)
        elif isinstance(message, Written):
            gateway.output.let_go(message.serial)
        elif isinstance(message, Define):
            gateway.defined.add(message.recipe.digest)
            self.instances.learn(message.recipe)
        elif isinstance(message, ServeLocally):
            if self.local is not None:
                self.local.take(message)
        elif isinstance(message, Prepare):
            if (problem := self._refuse(message)) is not None:
                gateway.put(problem)
            else:
                gateway.preparing.add(message.id)
                self.instances.prepare(message.id, self.instances.recipes[message.digest])
        elif isinstance(message, Keep):
            gateway.keeps[message.digest] = message
            self._keep([message.digest])
        elif isinstance(message, Drop):
            gateway.defined.discard(message.digest)
            gateway.keeps.pop(message.digest, None)
            self._drop(message.digest)

    # --- LocalInstances --------------------------------------------------------------------------------------------------

    def learn_local(self, recipe: Recipe) -> None:
        self.instances.learn(recipe)

    def drop_local(self, digest: str) -> None:
        self._drop(digest)

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

    def _invoke(self, gateway: ServedGateway, call: Invoke) -> None:
        begun = self._find_askers(call.id)
        answer = next((one.answers[call.id] for one in begun if call.id in one.answers), None)
        if answer is not None:
            gateway.answers[call.id] = answer
            gateway.put(answer)
        elif begun:  # it is pending, perhaps through another gateway
            gateway.underway[call.id] = call.digest
        elif (problem := self._refuse(call)) is not None:
            gateway.put(problem)
        else:
            gateway.underway[call.id] = call.digest
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
        if isinstance(message, Printed):
            gateway = self._choose_gateway(message.id)
            gateway.put(gateway.output.add(message))
            return
        assert isinstance(message, (InvocationAnswer, InvocationRefused, Prepared))
        for gateway in self._find_askers(message.id) or [self._choose_gateway()]:
            if isinstance(message, InvocationAnswer):
                gateway.answers[message.id] = message
            else:
                gateway.underway.pop(message.id, None)
            if not isinstance(message, Prepared) or message.done:
                gateway.preparing.discard(message.id)
            gateway.put(message)

    def _find_askers(self, id: str) -> list[ServedGateway]:
        """The gateways that asked for an invocation or a preparation, and those that took it over."""
        known = self._gateways.values()
        return [one for one in known if id in one.underway or id in one.answers or id in one.preparing]

    def _choose_gateway(self, invocation: str = "") -> ServedGateway:
        """The gateway that gets the output of an invocation, or of none: one that is connected, if one is to choose."""
        known = list(self._gateways.values())
        asked = (one for one in known if invocation and invocation in one.underway)
        return next(asked, None) or next((one for one in known if one.send is not None), known[0])

    def _drop(self, digest: str) -> None:
        """Drop the instances of a recipe that neither a gateway nor this node needs any more."""
        if any(digest in gateway.defined for gateway in self._gateways.values()):
            self._keep([digest])
        elif self.local is None or digest not in self.local.digests:
            self.instances.drop(digest)

    def _keep(self, digests: Iterable[str]) -> None:
        """Keep of each recipe as many instances as the gateway that wants most of them, and as long."""
        for digest in digests:
            asked = [one.keeps[digest] for one in self._gateways.values() if digest in one.keeps]
            if asked:
                idle_seconds, ready = max(one.idle_seconds for one in asked), max(one.ready for one in asked)
                self.instances.keep(digest, idle_seconds, ready)

    def _drop_gone(self) -> None:
        """Give what gateways left that don't come back to one that is connected."""
        heir = next((one for one in self._gateways.values() if one.send is not None), None)
        now = self._clock.elapsed()
        for place, gateway in list(self._gateways.items()):
            is_gone = gateway.send is None and now - gateway.away_since >= AWAY_SECONDS
            if heir is not None and (is_gone or (place == _NOBODY and gateway.send is None)):
                heir.absorb(gateway)
                gone = self._gateways.pop(place)
                self._keep(gone.keeps)

    def _schedule_state(self) -> None:
        is_connected = any(gateway.send is not None for gateway in self._gateways.values())
        if self._state_due is None and is_connected and not self.instances.closing:
            self._state_due = asyncio.get_running_loop().call_later(STANDING_SECONDS, self._send_state)

    def _send_state(self) -> None:
        if self._state_due is not None:
            self._state_due.cancel()
            self._state_due = None
        state = self._read_state()
        for gateway in self._gateways.values():
            if gateway.send is not None:
                gateway.put_state(state)

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
