"""A gateway that serves functions over real TLS, a store in memory, and agents that only pretend to have instances."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
from tests.scenario.gateway_lab import KEY, GatewayLab

from weft.client.tls import make_tls
from weft.contracts.clock import Clock
from weft.contracts.driver.function import Recipe
from weft.contracts.store import AtRevision, Delete, Put
from weft.gateway.event_copies.other_gateways import OtherGateways
from weft.gateway.function.invocation.call import Call
from weft.gateway.function.record.metrics import FunctionMetrics, make_metrics
from weft.gateway.function.service import FunctionService, make_view
from weft.informer.accounts import KINDS as ACCOUNTS
from weft.informer.cache import Cache
from weft.kinds.function import FunctionSpec, FunctionStatus, check_function
from weft.kinds.function_version import FunctionVersionSpec
from weft.kinds.image import ImageStatus
from weft.kinds.node import NodeReport
from weft.kinds.parts.function_code import check_code
from weft.kinds.token import TOKENS_BY_KEY
from weft.launch.gateway.functions import GatewayFunctions
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope, merge_part
from weft.objects.identity import SERVER_NAME, new_uid, object_key
from weft.protocol.frames import FrameType, encode_frame, encode_hello, receive_frame
from weft.protocol.invocations import (
    Acknowledge,
    Count,
    Define,
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
    Underway,
    Written,
    decode_to_agent,
    encode,
    receive,
)
from weft.scheduler.function import placing
from weft.scheduler.function.placing import FunctionPlacing
from weft.store.memory import MemoryStore

MIB, GIB = 1024**2, 1024**3
CODE = "c0" * 32
Says = Callable[["PretendAgent", Invoke], FromAgent | None]


def answer(agent: PretendAgent, invoke: Invoke) -> FromAgent | None:
    return InvocationAnswer(invoke.id, invoke.payload, seconds=0.001)


class PretendAgent:
    """An agent: ``invoked`` is what it was asked to run, ``says`` what it answers (None: nothing, yet), ``begun`` what it has begun
    and not heard to have arrived."""

    def __init__(self, lab: FunctionsLab, name: str) -> None:
        self.lab, self.name, self.uid = lab, name, new_uid()
        self.says: Says = answer
        self.prepares: Callable[[Prepare], FromAgent] = lambda prepare: Prepared(prepare.id, seconds=0.1)
        self.invoked: list[Invoke] = []
        self.prepared: list[str] = []
        self.heard: list[str] = []
        self.kept: list[Keep] = []
        self.dropped: list[str] = []
        self.listed: list[ServeLocally] = []
        self.recipes: dict[str, Recipe] = {}
        self.begun: dict[str, str] = {}  # digests by id
        self.answers: dict[str, InvocationAnswer] = {}  # unheard
        self.printed: dict[int, Printed] = {}  # not written down, as far as it has heard
        self.standing = InstanceState(
            free_cpu=8, free_memory=8 * GIB, isolations={"process": "", "container": "no crun"}
        )
        self.channels = 0
        self._serials = itertools.count(1)
        self.away_seconds = 1.0  # how old what it tells again says to be
        self._writer: asyncio.StreamWriter | None = None
        self._control: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._tls = make_tls(lab.gateway_lab.node_context(self.uid))

    async def start(self) -> None:
        reader, self._control = await self._dial()
        self._control.write(encode_hello(role="agent", node_uid=self.uid, serves_functions=True))
        self._tasks = [asyncio.ensure_future(self._follow(reader))]

    async def stop(self) -> None:
        """Gone, as by kill -9."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in (self._writer, self._control):
            if writer is not None:
                writer.transport.abort()

    def lose(self) -> None:
        """Lose the connection for invocations, and nothing else."""
        assert self._writer is not None
        self._writer.transport.abort()

    def say(self, message: FromAgent) -> None:
        if isinstance(message, InvocationAnswer):
            self.answers[message.id] = message
        elif isinstance(message, Printed):
            message = msgspec.structs.replace(message, serial=next(self._serials))
            self.printed[message.serial] = message
        if self._writer is not None:
            self._writer.write(encode(message))

    def stand(self, **counts: Count) -> None:
        self.standing = msgspec.structs.replace(self.standing, counts=dict(counts))
        self.say(self.standing)

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        while (frame := await receive_frame(reader)) is not None:
            assert self._control is not None
            if frame.type == FrameType.PING:
                self._control.write(encode_frame(FrameType.PING))
            elif frame.type == FrameType.HELLO:
                self._tasks.append(asyncio.ensure_future(self._serve(frame.json())))

    async def _serve(self, order: dict[str, Any]) -> None:
        assert order["claims"]["verb"] == "invocations" and order["claims"]["node_uid"] == self.uid
        reader, writer = await self._dial()
        writer.write(encode_hello(role="stream", stream=order["open"]))
        self._writer = writer
        self.channels += 1
        self.recipes.clear()
        ids = [*self.begun]
        writer.write(encode(Underway(ids, [self.begun[id] for id in ids])))
        writer.write(encode(self.standing))
        for printed in self.printed.values():
            writer.write(encode(msgspec.structs.replace(printed, age=self.away_seconds)))
        for one in self.answers.values():
            writer.write(encode(one))
        while (body := await receive(reader)) is not None:
            self._obey(decode_to_agent(body))

    def _obey(self, message: ToAgent) -> None:
        match message:
            case Define(recipe=recipe):
                self.recipes[recipe.digest] = recipe
            case Prepare():
                assert message.digest in self.recipes
                self.prepared.append(message.digest)
                said_of_it = self.prepares(message)
                if isinstance(said_of_it, Prepared) and said_of_it.done and not said_of_it.error_type:
                    recipes = [*self.standing.recipes, message.digest]
                    self.standing = msgspec.structs.replace(self.standing, recipes=recipes)
                    self.say(self.standing)
                self.say(said_of_it)
            case Invoke():
                assert message.digest in self.recipes
                self.invoked.append(message)
                self.begun[message.id] = message.digest
                said = self.says(self, message)
                if isinstance(said, InvocationRefused):
                    del self.begun[message.id]
                if said is not None:
                    self.say(said)
            case Acknowledge(id=id):
                self.heard.append(id)
                self.begun.pop(id, None)
                self.answers.pop(id, None)
            case Written(serial=serial):
                self.printed = {number: one for number, one in self.printed.items() if number > serial}
            case Keep():
                self.kept.append(message)
            case ServeLocally():
                self.listed.append(message)
            case _:
                self.dropped.append(message.digest)
                recipes = [digest for digest in self.standing.recipes if digest != message.digest]
                self.standing = msgspec.structs.replace(self.standing, recipes=recipes)
                self.say(self.standing)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        port = self.lab.gateway_lab.port
        return await asyncio.open_connection("127.0.0.1", port, ssl=self._tls, server_hostname=SERVER_NAME)


class FunctionsLab:
    """The gateway's functions, begun anew by ``restart``; those go by ``their_clock`` from then on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gateway_lab = GatewayLab(folder)
        self.clock = self.gateway_lab.clock
        self.their_clock: Clock = self.clock
        self.store = MemoryStore(self.clock)
        self.agents: dict[str, PretendAgent] = {}
        self.parts: GatewayFunctions
        self.others: OtherGateways | None = None
        self._running: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """The gateway's functions, in a gateway of their own that listens."""
        clock = self.their_clock
        cache = Cache(self.store, make_view(*placing.KINDS, *ACCOUNTS, "token", indexes=(TOKENS_BY_KEY,)), clock)
        places = FunctionPlacing(cache.view)
        cache.subscribe(places.notice, placing.KINDS)
        name, folder = self.others.name if self.others else "gateway", self.folder / "gw"
        service = FunctionService(self.store, cache, places, clock, ticket_key=KEY, folder=folder, name=name)
        self.parts = GatewayFunctions(service, self.folder / "gateway", self.clock, self.others)
        await self.gateway_lab.restart(self.parts.streams)
        gateway = self.gateway_lab.gateway
        self._running = asyncio.ensure_future(self.functions.run(gateway.dial, lambda uid: uid in gateway.nodes))

    @property
    def functions(self) -> FunctionService:
        return self.parts.service

    async def end(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def restart(self) -> None:
        """As by kill -9 of the gateway, and its keeper."""
        await self.end()
        await self.begin()

    async def agent(self, name: str, *, cpu: float = 8, memory: int = 16 * GIB, **labels: str) -> PretendAgent:
        agent = self.agents[name] = PretendAgent(self, name)
        report = NodeReport(version="0", address="10.0.0.1", cpu=cpu, memory=memory, disk=100 * GIB)
        report.functions = {"process": "yes"}
        envelope = Envelope(kind="node", name=name, uid=agent.uid, labels=labels)
        envelope.report = merge_part(envelope.report, report)
        envelope.status = merge_part(envelope.status, {"phase": "Ready"})
        await self.put(envelope)
        await agent.start()
        await self.until(lambda: self.serves(agent))
        return agent

    def serves(self, agent: PretendAgent) -> bool:
        serving = self.functions.agents.fleet.nodes.get(agent.uid)
        return serving is not None and serving.open and bool(serving.standing.isolations)

    async def put(self, envelope: Envelope) -> int:
        return await self.store.commit([Put(envelope.key, encode_envelope(envelope))])

    async def base(self, phase: Literal["Pending", "Fetching", "Available", "Failed"] = "Available") -> None:
        await self.image("python3-11", phase=phase, sha256="ba" * 32, size=30 * MIB)

    async def image(self, name: str, *, project: str = "default", **status: Any) -> None:
        """One that is there, unless its ``status`` says otherwise."""
        envelope = Envelope(kind="image", name=name, uid=new_uid(), project=project)
        envelope.status = merge_part(envelope.status, ImageStatus(**{"phase": "Available", **status}))
        await self.put(envelope)

    async def function(self, name: str, *, wait: bool = True, **spec: Any) -> Envelope:
        given = {"code": CODE, "code_size": 1000, "handler": "app.handler", "isolation": "process", **spec}
        wish = FunctionSpec(**given)
        check_function(wish)
        envelope = Envelope(kind="function", name=name, uid=new_uid(), project="default")
        envelope.spec = merge_part(envelope.spec, wish)
        await self.put(envelope)
        if wait:
            await self.until_phase(name, "Ready")
        return envelope

    async def version(self, function: Envelope, number: int, **spec: Any) -> None:
        """As publishing does."""
        envelope = Envelope(kind="functionversion", name=f"{function.name}-{number}", uid=new_uid(), project="default")
        envelope.owner = function.ref
        wish = FunctionVersionSpec(function=function.name, number=number, **spec)
        check_code(wish)
        envelope.spec = merge_part(envelope.spec, wish)
        await self.put(envelope)

    async def change(self, name: str, **spec: Any) -> None:
        """As an update does."""
        entry = await self.store.get(object_key("function", "default", name))
        assert entry is not None
        envelope = decode_envelope(entry.value, entry.revision)
        wish = msgspec.structs.replace(decode_part(envelope.spec, FunctionSpec), **spec)
        check_function(wish)
        envelope.spec = merge_part(envelope.spec, wish)
        await self._write_next(envelope)

    async def ask(self, name: str, **actions: Any) -> None:
        """As a verb does."""
        entry = await self.store.get(object_key("function", "default", name))
        assert entry is not None
        envelope = decode_envelope(entry.value, entry.revision)
        envelope.actions = merge_part(envelope.actions, actions)
        await self._write_next(envelope)

    async def _write_next(self, envelope: Envelope) -> None:
        envelope.generation += 1
        await self.store.commit(
            [Put(envelope.key, encode_envelope(envelope))], [AtRevision(envelope.key, envelope.revision)]
        )

    async def delete(self, name: str) -> None:
        await self.store.commit([Delete(object_key("function", "default", name))])

    async def status(self, name: str) -> FunctionStatus:
        entry = await self.store.get(object_key("function", "default", name))
        assert entry is not None
        return decode_part(decode_envelope(entry.value).status, FunctionStatus)

    async def until_phase(self, name: str, phase: str) -> FunctionStatus:
        return await self._until_status(name, lambda status: status.phase == phase)

    async def until_moved(self, name: str, before: FunctionStatus) -> FunctionStatus:
        """Something else serves than ``before``."""
        return await self._until_status(name, lambda status: status.digest != before.digest)

    async def until_reason(self, name: str, reason: str) -> FunctionStatus:
        return await self._until_status(name, lambda status: status.reason == reason)

    async def _until_status(self, name: str, holds: Callable[[FunctionStatus], bool]) -> FunctionStatus:
        """A status that ``holds``, once the gateway has read it too."""
        key = object_key("function", "default", name)
        for _ in range(6000):
            status, known = await self.status(name), self.functions.cache.view.get(key)
            if holds(status) and known is not None and known.status(FunctionStatus) == status:
                return status
            await asyncio.sleep(0.01)
        raise AssertionError(f"{name} is still {await self.status(name)}")

    async def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(6000):
            if holds():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it never came")

    def call(self, name: str, payload: bytes = b"{}", **more: Any) -> Call:
        return Call(id=str(uuid.uuid4()), project="default", name=name, payload=payload, **more)

    def read_metrics(self, name: str) -> FunctionMetrics:
        """A function's metrics, as this gateway alone counts."""
        part = self.functions.record.read_part(self.functions.catalogue.find("default", name).uid)
        return make_metrics(part.counts, name, "default", part.concurrent, part.instances)

    async def invoke(self, name: str, payload: bytes = b"{}", **more: Any) -> Any:
        return await self.functions.dispatcher.invoke(self.call(name, payload, **more))


@asynccontextmanager
async def functions_lab(
    folder: Path, store: Any = None, others: OtherGateways | None = None
) -> AsyncIterator[FunctionsLab]:
    lab = FunctionsLab(folder)
    lab.store, lab.others = store or lab.store, others
    await lab.store.open()
    async with lab.gateway_lab.serving():
        await lab.begin()
        try:
            yield lab
        finally:
            await lab.end()
            for agent in lab.agents.values():
                with contextlib.suppress(OSError):
                    await agent.stop()
    await lab.store.close()
