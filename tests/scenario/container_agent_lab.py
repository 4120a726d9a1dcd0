"""Containers without processes and images without bytes, for scenarios of an agent: both outlive it, as real ones do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from typing import Any

from msgspec.structs import replace

from weft.contracts.driver.container import ContainerPlan, LogLine, LogPiece, User
from weft.contracts.driver.image import OciConfig, OciImage, PullProgress, RegistryCredentials
from weft.contracts.driver.runtime import ExecChunk, ExecRequest, GuestFacts, GuestShape, RuntimeProbe, SessionMark
from weft.objects.errors import NotFound, WeftError

WEB = OciConfig(entrypoint=["/bin/serve"], user="www")


class World:
    """What is on the node: containers by id; images by reference, and which of them have been pulled."""

    def __init__(self) -> None:
        self.plans: dict[str, ContainerPlan] = {}
        self.facts: dict[str, GuestFacts] = {}
        self.starts: list[str] = []
        self.registry = {"registry.example.org/web:1": "sha256:one"}
        self.kept: dict[str, str] = {}  # by digest
        self.pulls: list[tuple[str, str]] = []
        self.trouble: list[WeftError] = []  # of the registry, once each
        self.used: set[str] = set()
        self.news = asyncio.Event()
        self.answers: dict[str, int] = {}  # of commands in a container, by its id: their exit codes
        self.asked = 0
        self.opened: list[tuple[str, str]] = []  # what credentials came with the first pull

    def end(self, id_: str, state: Any, reason: str, exit_code: int, message: str = "") -> None:
        self.facts[id_] = replace(
            self.facts[id_], state=state, reason=reason, exit_code=exit_code, message=message or None, shape=None
        )
        self.news.set()


class Containers:
    """A RuntimeDriver[ContainerPlan] that can adjust, and has a log."""

    name = "fake-containers"

    def __init__(self, world: World) -> None:
        self.world = world

    async def probe(self) -> RuntimeProbe:
        isolations = ("container",)
        return RuntimeProbe(self.name, True, "1", "", [], [], [], kinds=("container",), isolations=isolations)

    async def start(self, plan: ContainerPlan) -> GuestFacts:
        world = self.world
        if plan.id not in world.facts or world.facts[plan.id].state != "running":
            world.starts.append(plan.id)
            self._put(plan)
        return world.facts[plan.id]

    def _put(self, plan: ContainerPlan) -> None:
        shape = GuestShape(plan.cpu, plan.memory_bytes, {}, [], 4, 1 << 32)
        self.world.plans[plan.id] = plan
        self.world.facts[plan.id] = GuestFacts(
            plan.id, plan.uid, plan.name, plan.incarnation, "running", shape=shape, started_at=float(len(self.world.starts))
        )  # fmt: skip
        self.world.news.set()

    async def adjust(self, plan: ContainerPlan) -> GuestFacts:
        before = self.world.plans[plan.id]
        assert replace(plan, cpu=before.cpu, memory_bytes=before.memory_bytes) == before, "only its share may change"
        self._put(plan)
        return self.world.facts[plan.id]

    async def exec(self, guest_id: str, request: ExecRequest, mark: SessionMark | None = None) -> Command:
        self.world.asked += 1
        return Command(self.world.answers.get(guest_id, 0))

    async def stop(self, guest_id: str, *, grace_seconds: float) -> None:
        if guest_id in self.world.facts and self.world.facts[guest_id].state == "running":
            self.world.end(guest_id, "stopped", "stopRequested", 143)

    async def inspect(self, guest_id: str) -> GuestFacts:
        return self.world.facts.get(guest_id) or GuestFacts(guest_id, "", "", 0, "absent")

    async def recover(self) -> list[GuestFacts]:
        return list(self.world.facts.values())

    async def remove(self, guest_id: str) -> None:
        self.world.facts.pop(guest_id, None)
        self.world.plans.pop(guest_id, None)

    async def changed(self) -> None:
        await self.world.news.wait()
        self.world.news.clear()

    async def close(self) -> None:
        pass

    async def read_log(self, guest_id: str, *, tail: int = -1, follow: bool = False) -> AsyncGenerator[LogLine, None]:
        if guest_id not in self.world.facts:
            raise NotFound("no such container")
        yield LogLine(1.0, "stdout", b"out\n")
        yield LogLine(2.0, "stderr", b"err\n")
        while follow and self.world.facts[guest_id].state == "running":
            await asyncio.sleep(0.01)
        yield LogLine(3.0, "stdout", b"end\n")

    def read_log_after(self, guest_id: str, position: str) -> LogPiece:
        if guest_id not in self.world.facts:
            raise NotFound("no such container")
        return LogPiece([] if position else [LogLine(1.0, "stdout", b"out\n")], "1")


class Command:
    """An ExecSession that ends at once."""

    def __init__(self, code: int) -> None:
        self.code = code

    async def write(self, data: bytes) -> None:
        pass

    async def close_stdin(self) -> None:
        pass

    async def output(self) -> AsyncIterator[ExecChunk]:
        yield ExecChunk("stdout", b"so it is\n")
        yield ExecChunk("exit", code=self.code)

    async def close(self) -> None:
        pass


class Store:
    """An OciStore."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def pull(
        self,
        reference: str,
        digest: str = "",
        *,
        credentials: RegistryCredentials | None = None,
        progress: PullProgress | None = None,
        own_file: bool = False,
    ) -> OciImage:
        world = self.world
        world.pulls.append((reference, digest))
        if credentials is not None and not world.opened:
            world.opened.append((credentials.username, credentials.password))
        if digest not in world.kept:
            if world.trouble:
                raise world.trouble.pop(0)
            digest = digest or world.registry[reference]
            if digest not in world.kept:
                for here in (0, 50, 100):
                    await asyncio.sleep(0)
                    if progress is not None:
                        progress(here, 100)
                world.kept[digest] = reference
        return OciImage(reference, digest, WEB, [f"layer-of-{digest}"], 100)

    async def find(self, digest: str) -> OciImage | None:
        return OciImage(self.world.kept[digest], digest, WEB, [], 100) if digest in self.world.kept else None

    def root(self, image: OciImage) -> list[str]:
        return [f"/layers/{layer}" for layer in image.layers]

    async def find_user(self, image: OciImage, user: str) -> User:
        return User(33, 33, home="/www") if user == "www" else User()

    async def list(self) -> list[OciImage]:
        return []

    async def forget(self, used: Collection[str]) -> int:
        self.world.used = set(used)
        for digest in [digest for digest in self.world.kept if digest not in used]:
            del self.world.kept[digest]
        return 0
