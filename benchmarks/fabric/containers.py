"""Containers without processes, and images without bytes: what the agents of a benchmark run beside fake machines."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from weft.contracts.driver.container import ContainerPlan, User
from weft.contracts.driver.image import OciConfig, OciImage, PullProgress, RegistryCredentials
from weft.contracts.driver.runtime import GuestFacts, GuestShape, RuntimeProbe

DIGEST = "sha256:" + "0" * 64
IMAGE = OciImage("registry.example.org/none:1", DIGEST, OciConfig(entrypoint=["/bin/serve"]), [DIGEST], 100)


class NoContainers:
    """A RuntimeDriver[ContainerPlan]: whatever is started runs at once, until it is stopped."""

    def __init__(self, isolation: str) -> None:
        self.name, self._isolation = f"none-{isolation}", isolation
        self._facts: dict[str, GuestFacts] = {}
        self._news = asyncio.Event()

    async def probe(self) -> RuntimeProbe:
        return RuntimeProbe(self.name, True, "1", "", [], [], [], kinds=("container",), isolations=(self._isolation,))

    async def start(self, plan: ContainerPlan) -> GuestFacts:
        shape = GuestShape(plan.cpu, plan.memory_bytes, {}, [], 4, 1 << 32)
        self._facts[plan.id] = GuestFacts(plan.id, plan.uid, plan.name, plan.incarnation, "running", shape=shape)
        self._news.set()
        return self._facts[plan.id]

    async def stop(self, guest_id: str, *, grace_seconds: float) -> None:
        await self.remove(guest_id)

    async def inspect(self, guest_id: str) -> GuestFacts:
        return self._facts.get(guest_id) or GuestFacts(guest_id, "", "", 0, "absent")

    async def recover(self) -> list[GuestFacts]:
        return list(self._facts.values())

    async def remove(self, guest_id: str) -> None:
        if self._facts.pop(guest_id, None) is not None:
            self._news.set()

    async def changed(self) -> None:
        await self._news.wait()
        self._news.clear()

    async def close(self) -> None:
        pass


class OneImage:
    """An OciStore in which every reference is the same image."""

    async def pull(
        self,
        reference: str,
        digest: str = "",
        *,
        credentials: RegistryCredentials | None = None,
        progress: PullProgress | None = None,
        own_file: bool = False,
    ) -> OciImage:
        return IMAGE

    async def find(self, digest: str) -> OciImage | None:
        return IMAGE

    def root(self, image: OciImage) -> list[str]:
        return ["/nowhere"]

    async def find_user(self, image: OciImage, user: str) -> User:
        return User()

    async def list(self) -> list[OciImage]:
        return [IMAGE]

    async def forget(self, used: Collection[str]) -> int:
        return 0
