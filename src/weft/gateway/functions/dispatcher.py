"""Runs invocations: finds the function, holds to its concurrency, has placement order the nodes, and asks them over their channels.

The hot path reads no store, decodes no payload and ranks only when something changed. What is decided stands in ``desk.py``;
woken by callers, by agents' messages, and by the clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from weft.client.invocations import (
    MAX_PAYLOAD_BYTES,
    Answer,
    FromAgent,
    Heard,
    Invoke,
    Keep,
    Moved,
    Prepared,
    Printed,
    Refused,
    Standing,
    Tell,
    ToAgent,
    move,
)
from weft.contracts.clock import Clock
from weft.contracts.placing import Placing, Ranking, Wanted
from weft.gateway.functions.bygone import Bygone
from weft.gateway.functions.call import Call, Outcome
from weft.gateway.functions.catalogue import Catalogue, Function, Version
from weft.gateway.functions.channel import Channel
from weft.gateway.functions.desk import GRACE_SECONDS, Ask, Desk, Done, Flight, Hear, Instruction, Late, Lost, Nowhere
from weft.gateway.functions.fleet import Fleet
from weft.gateway.functions.metrics import There, find_instances
from weft.gateway.functions.recipe import data_at, data_of, with_tickets
from weft.gateway.shares import Shares
from weft.objects.errors import InUse, Throttled, TooLarge, Unavailable, Unplaceable, WeftError
from weft.trust.tickets import BLOB_LIFETIME_SECONDS

log = logging.getLogger("weft.gateway.functions")
LOOK_SECONDS = 0.25  # how often what is overdue is looked for
TELL_AGAIN_SECONDS = BLOB_LIFETIME_SECONDS / 2
RANKINGS_KEPT = 4096
BEGIN_SECONDS = 5.0
GATHER_SECONDS = 15.0  # for nodes to say what they have of a gateway before this one
MOST_HELD_BYTES = 512 * 1024 * 1024  # of payloads, a quarter of them of one project


class Witness(Protocol):
    """Who hears of what becomes of invocations."""

    def arrived(self, function: Function, version: Version) -> None: ...
    def throttled(self, function: Function) -> None: ...
    def refused(self, function: Function, reason: str, digest: str) -> None: ...
    def ended(self, function: Function, outcome: Outcome, digest: str, seconds: float) -> None: ...
    def lost(self, function: Function, digest: str) -> None: ...
    def printed(self, node: str, printed: Printed) -> None: ...


class _Caller(msgspec.Struct, frozen=True):
    """Who waits for an invocation that began at ``began``."""

    function: Function
    began: float
    future: asyncio.Future[Outcome]


class _Ranked(msgspec.Struct):
    """A ranking, as of ``epoch``."""

    epoch: int
    ranking: Ranking
    places: dict[str, int]


class Dispatcher:
    """``name_of`` gives a node's name by uid; ``keep_of`` how instances of a recipe are kept; ``hear`` gets what agents say of
    preparations."""

    def __init__(
        self,
        catalogue: Catalogue,
        placing: Placing,
        witness: Witness,
        clock: Clock,
        ticket_key: bytes,
        name_of: Callable[[str], str],
    ) -> None:
        self._catalogue, self._placing, self._witness = catalogue, placing, witness
        self._clock, self._ticket_key, self.name_of = clock, ticket_key, name_of
        self.fleet = Fleet()
        self.channels: dict[str, Channel] = {}
        self.keep_of: Callable[[str], Keep | None] = lambda digest: None
        self.hear: Callable[[str, Prepared | Refused], None] = lambda node, message: None
        self.left: Callable[[str], None] = lambda node: None
        self._desk = Desk(self.fleet, self._function_of)
        self._waiting: dict[str, _Caller] = {}
        self._held = Shares(MOST_HELD_BYTES, MOST_HELD_BYTES // 4)  # bytes of payloads under way, by project
        self._begun = False
        self._bygone = Bygone(clock)
        self._gathered_by = clock.elapsed() + GATHER_SECONDS
        self.find_expected: Callable[[], set[str]] = set  # the nodes (uids) that serve functions, as far as is known
        self.is_read: Callable[[], bool] = lambda: True  # whether the catalogue is there
        self._ranked: dict[tuple[str, str], _Ranked] = {}  # by digest and caller

    async def invoke(self, call: Call) -> Outcome:
        """See ``Dispatches``."""
        if not self._begun:
            await self._begin()
        function = self._catalogue.find(call.project, call.name)
        version = self._catalogue.resolve(function, call.qualifier)
        if call.again and (known := await self._recall(function, version, call.id)) is not None:
            return known
        if len(call.payload) > MAX_PAYLOAD_BYTES:
            raise TooLarge(
                f"{function.what}: a payload of {len(call.payload)} bytes; at most {MAX_PAYLOAD_BYTES}",
                hint="put it where the function can fetch it",
            )
        running = self._desk.running(function.uid)
        if running >= function.spec.max_concurrent:
            self._witness.throttled(function)
            raise Throttled(
                f"{function.what}: {running} invocations are under way, and max_concurrent is {function.spec.max_concurrent}",
                hint="try again in a moment, or raise it: weft function update NAME --max-concurrent N",
                retry_after_seconds=1.0,
            )
        if not self._held.has_room(call.project, len(call.payload)):
            self._witness.throttled(function)
            raise Throttled(
                "the gateway holds as much of other invocations' payloads as it can, or as it does for one project",
                hint="try again in a moment",
                retry_after_seconds=1.0,
            )
        if call.id in self._desk:
            raise InUse(f"an invocation with the id {call.id[:80]} is under way", hint="draw another id")
        self._witness.arrived(function, version)
        ranked = self._rank(version, call.node)
        if not ranked.places:
            self._witness.refused(function, ranked.ranking.reason, version.recipe.digest)
            raise _refuse(function, ranked.ranking.reason, ranked.ranking.message, ranked.ranking.nearest)
        began = self._clock.elapsed()
        flight = self._make_flight(function, version, call, ranked.places, began)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting[call.id] = _Caller(function, began, future)
        self._held.take(call.project, len(call.payload))
        self._perform(self._desk.begin(flight))
        return await future  # cancelled, it goes on all the same, and counts

    async def _begin(self) -> None:
        """Just begun, this gateway knows no functions and no node yet: it waits a moment for them. Raises Unavailable."""
        until = self._clock.elapsed() + BEGIN_SECONDS
        while not self.is_read() or not any(serving.open for serving in self.fleet.nodes.values()):
            if self._clock.elapsed() >= until:
                if not self.is_read():
                    raise Unavailable(
                        "the gateway hasn't read the functions yet", reason="functionNotReady", retry_after_seconds=1.0
                    )
                break
            await self._clock.sleep(LOOK_SECONDS / 5)
        self._begun = True

    async def _recall(self, function: Function, version: Version, id: str) -> Outcome | None:
        """What an invocation comes to that was begun under this id; None if none was. Raises Unavailable (invocationLost) if that
        can't be told any more."""
        step = LOOK_SECONDS / 5
        while (missing := self._find_missing()) and self._clock.elapsed() < self._gathered_by:
            await self._clock.sleep(step)
        is_known = False
        while self._desk.is_stray(id):
            is_known = True
            await self._clock.sleep(step)
        found = self._bygone.take(id)
        if found is not None:
            return _tell_outcome(found[1], version.recipe.version, self.name_of(found[0]))
        if not is_known and not (missing and self._clock.elapsed() < self._gathered_by + GATHER_SECONDS):
            return None
        what = "its node has nothing of it any more" if is_known else f"{self.name_of(min(missing))} isn't back yet"
        raise Unavailable(
            f"{function.what}: invocation {id} was begun, perhaps, through a gateway before this one, and {what}; it may have run",
            reason="invocationLost",
            hint="weft does not run it again: that is the caller's to decide",
        )

    def _find_missing(self) -> set[str]:
        """The nodes that haven't said yet what they have under way."""
        return {uid for uid in self.find_expected() if (there := self.fleet.nodes.get(uid)) is None or not there.open}

    def running(self, function_uid: str) -> int:
        """How many invocations of it are under way, or may be."""
        return self._desk.running(function_uid)

    def find_instances(self, function_uid: str) -> list[There]:
        """Where it has instances, or would have one soon."""

        def is_its(digest: str) -> bool:
            known = self._function_of(digest)
            return known is not None and known[0] == function_uid

        return find_instances(self.fleet, is_its, self.name_of)

    async def watch(self) -> None:
        """Look for what is overdue, for ever."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            for node, channel in self.channels.items():
                self.fleet.nodes[node].congested = channel.is_congested
            self._perform(self._desk.expire(self._clock.elapsed()))

    async def serve(self, channel: Channel) -> None:
        """Carry messages of one agent's connection until it is lost."""
        node = channel.node
        self._desk.connect(node)
        self.channels[node] = channel
        try:
            while (message := await channel.receive()) is not None:
                self._hear(node, message)
        except WeftError as problem:
            log.warning("node %s: %s", self.name_of(node), problem.message)
        finally:
            if self.channels.get(node) is channel:
                del self.channels[node]
                self._desk.disconnect(node, self._clock.elapsed())
                self._placing.use(node, 0.0)
                self.left(node)
            channel.close()

    def send(self, node: str, digest: str, message: ToAgent) -> bool:
        """Say something of a recipe to a node, which is told of it first if need be; False if it isn't connected."""
        channel, recipe = self.channels.get(node), self._catalogue.recipe(digest)
        if channel is None or recipe is None:
            return False
        now = self._clock.elapsed()
        if now - channel.told.get(digest, -TELL_AGAIN_SECONDS) >= TELL_AGAIN_SECONDS:
            is_new = digest not in channel.told
            channel.told[digest] = now
            channel.send(Tell(with_tickets(recipe, self._ticket_key, node, self._clock.now())))
            keep = self.keep_of(digest) if is_new else None
            if keep is not None:
                channel.send(keep)
        channel.send(message)
        return True

    def keep(self, digest: str, keep: Keep, node: str | None) -> None:
        """Tell all nodes that know the recipe how its instances are kept; all but ``node`` to have none ready."""
        for uid, channel in self.channels.items():
            if uid == node:
                self.send(uid, digest, keep)
            elif digest in channel.told:
                channel.send(msgspec.structs.replace(keep, ready=0))

    def best_of(self, digest: str) -> str | None:
        """The node where instances of the recipe should stand ready: where it is asked for first."""
        version = self._catalogue.version_of(digest)
        return None if version is None else self.fleet.choose(version.recipe, self._rank(version, "").places, ())

    def rank(self, version: Version, caller: str = "") -> Ranking:
        """The nodes that may run it, best first."""
        return self._placing.rank(Wanted(version.recipe.project, version.code, data_of(version.recipe), caller))

    def forget(self, digest: str) -> None:
        """Nothing uses that recipe any more."""
        for key in [key for key in self._ranked if key[0] == digest]:
            del self._ranked[key]
        self._catalogue.forget(digest)

    def _rank(self, version: Version, caller: str) -> _Ranked:
        key, epoch = (version.recipe.digest, caller), self._placing.epoch
        ranked = self._ranked.get(key)
        if ranked is None or ranked.epoch != epoch:
            ranking = self.rank(version, caller)
            places = {node: place for place, node in enumerate(ranking.nodes)}
            if len(self._ranked) >= RANKINGS_KEPT:
                self._ranked.clear()
            ranked = self._ranked[key] = _Ranked(self._placing.epoch, ranking, places)
        return ranked

    def _make_flight(
        self, function: Function, version: Version, call: Call, places: Mapping[str, int], now: float
    ) -> Flight:
        recipe = version.recipe
        seconds = recipe.timeout if call.seconds is None else min(recipe.timeout, call.seconds)
        qualified = f":{call.qualifier}" if call.qualifier else ""
        invoke = Invoke(
            id=call.id,
            digest=recipe.digest,
            payload=call.payload,
            seconds=seconds,
            arn=f"arn:weft:lambda:weft:{recipe.project}:function:{recipe.name}{qualified}",
            client_context=call.client_context,
            tail=call.tail,
        )
        return Flight(recipe, invoke, places, now + seconds + GRACE_SECONDS)

    def _end(self, ended: Done | Nowhere | Lost) -> None:
        caller = self._waiting.pop(ended.flight.id, None)
        if caller is None:
            return
        self._held.give_back(ended.flight.recipe.project, len(ended.flight.invoke.payload))
        result = self._conclude(caller.function, ended, self._clock.elapsed() - caller.began)
        if caller.future.done():
            return
        if isinstance(result, Outcome):
            caller.future.set_result(result)
        else:
            caller.future.set_exception(result)

    def _conclude(self, function: Function, ended: Done | Nowhere | Lost, seconds: float) -> Outcome | WeftError:
        flight = ended.flight
        match ended:
            case Done(answer=answer):
                outcome = _tell_outcome(answer, flight.recipe.version, self.name_of(flight.node))
                self._witness.ended(function, outcome, flight.recipe.digest, seconds)
                return outcome
            case Nowhere():
                reason, message = self._explain(flight)
                self._witness.refused(function, reason, flight.recipe.digest)
                return _refuse(function, reason, message, self._nearest(flight))
            case Lost(why=why):
                self._witness.lost(function, flight.recipe.digest)
                return Unavailable(
                    f"{function.what}: invocation {flight.id} was lost on {self.name_of(flight.node)}: {why}; it may have run",
                    reason="invocationLost",
                    hint="weft does not run it again: that is the caller's to decide",
                )

    def _explain(self, flight: Flight) -> tuple[str, str]:
        """Why no node took it, as reason and sentence."""
        names = {node: self.name_of(node) for node in flight.ranking}
        if not flight.refusals:
            return "noAvailableAgents", self.fleet.why_not(flight.recipe, names, list(flight.ranking))
        told = [f"{names[node]}: {refused.message or refused.reason}" for node, refused in flight.refusals.items()]
        lacking = any(refused.reason == "insufficientResources" for refused in flight.refusals.values())
        more = f"; and {len(told) - 5} more" if len(told) > 5 else ""
        return ("insufficientResources" if lacking else "noAvailableAgents"), "; ".join(told[:5]) + more

    def _nearest(self, flight: Flight) -> str:
        """Of the nodes that were asked, the one with most room."""
        there = [(self.fleet.nodes[n].standing.free_memory, n) for n in flight.refusals if n in self.fleet.nodes]
        if not there:
            return ""
        memory, node = max(there)
        if memory >= flight.recipe.memory or memory <= 0:
            return ""
        return f"{self.name_of(node)}, if you ask for at most --memory {memory // 2**20}M"

    def _hear(self, node: str, message: FromAgent) -> None:
        match message:
            case Standing():
                self._stand(node, message)
            case Moved():
                self._stand(node, move(self.fleet.nodes[node].standing, message))
            case Printed():
                self._witness.printed(node, message)
            case Prepared():
                self.hear(node, message)
            case _:
                if isinstance(message, Refused) and message.id not in self._desk:
                    self.hear(node, message)
                self._perform(self._desk.hear(node, message, self._clock.elapsed()))

    def _stand(self, node: str, standing: Standing) -> None:
        before = self.fleet.nodes[node].standing.recipes
        moved = self.fleet.stand(node, standing)
        if before != standing.recipes:
            self._placing.hold(node, data_at(standing.recipes, self._catalogue.recipe))
        if moved:
            self._use(node)

    def _perform(self, instructions: list[Instruction]) -> None:
        queue = list(instructions)
        for instruction in queue:
            match instruction:
                case Ask(node=node, flight=flight):
                    if not self.send(node, flight.recipe.digest, flight.invoke):
                        refused = Refused(flight.id, "closing", "the connection to it is just being lost")
                        queue += self._desk.hear(node, refused, self._clock.elapsed())
                    elif flight.cold:
                        self._use(node)
                case Hear(node=node, id=id, bytes=weight):
                    channel = self.channels.get(node)
                    if channel is not None:
                        channel.send_later(Heard(id), weight)
                case Late(node=node, answer=answer):
                    self._bygone.keep(node, answer)
                case _:
                    self._end(instruction)

    def _use(self, node: str) -> None:
        self._placing.use(node, self.fleet.cpu(node, self._catalogue.recipe))

    def _function_of(self, digest: str) -> tuple[str, float] | None:
        return self._catalogue.function_of(digest)


def _tell_outcome(answer: Answer, version: str, node: str) -> Outcome:
    return Outcome(
        id=answer.id,
        payload=answer.payload,
        error=answer.error,
        error_type=answer.error_type,
        version=version,
        node=node,
        start=answer.start,
        seconds=answer.seconds,
        init_seconds=answer.init_seconds,
        most_memory=answer.most_memory,
        tail=answer.tail,
    )


def _refuse(function: Function, reason: str, message: str, nearest: str) -> WeftError:
    hint = f"nearest fit: {nearest}" if nearest else "weft node list shows what there is"
    return Unplaceable(f"{function.what} can't run now: {message}", reason=reason, hint=hint, retry_after_seconds=1.0)
