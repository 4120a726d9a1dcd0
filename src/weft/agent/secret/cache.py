"""The secrets of this node's containers: fetched before each start, and kept in memory. Those marked ``offline`` are sealed on disk
too, for starts while the server can't be reached.

A changed secret takes effect at the next start. While the server can't be reached, the values that were fetched last are used. What
is sealed follows the server's secrets every REFRESH_SECONDS, and after each silence of the server.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from weft.agent.secret.sealed import SealedSecrets
from weft.agent.server.client import Server
from weft.agent.state.allocation import LocalAllocation
from weft.contracts.clock import Clock
from weft.contracts.driver.image import RegistryCredentials
from weft.contracts.wakeup import Wake
from weft.kinds.allocation import list_secrets
from weft.objects.errors import InvalidInput, NotFound, Unavailable, WeftError
from weft.objects.image.reference import parse_reference
from weft.protocol.report import OpenedSecrets

log = logging.getLogger("weft.agent")
REFRESH_SECONDS = 900.0
READERS = 4


class Opened:
    """Opened secrets, without a repr that could print values."""

    def __init__(self, env: dict[str, str], credentials: RegistryCredentials | None) -> None:
        self.env, self.credentials = env, credentials  # ``env`` by variable


class Secrets:
    """``sealed`` keeps those that are marked for it."""

    def __init__(self, server: Server, node: str, sealed: SealedSecrets, clock: Clock) -> None:
        self._server, self._node, self._sealed = server, node, sealed
        self._last: dict[str, OpenedSecrets] = {}
        self._wake = Wake(clock)
        self._threads = ThreadPoolExecutor(READERS, "weft-secrets")  # a server that is silent holds up nothing else
        # By allocation's uid: what is sealed for it changes by one reader at a time, and not after it is gone.
        self._reading = defaultdict[str, asyncio.Lock](asyncio.Lock)

    async def open(self, local: LocalAllocation) -> Opened:
        """Raises NotFound (``secretNotFound``), Unavailable, InvalidInput for a secret of another registry than its image's."""
        container = local.spec.container
        if container is None or not list_secrets(local.spec):
            return Opened({}, None)
        try:
            opened = self._last[local.uid] = await self._read(local)
        except Unavailable:
            kept = self._last.get(local.uid) or await asyncio.to_thread(self._sealed.get, local.uid)
            if kept is None:
                raise
            opened = self._last[local.uid] = kept
        places = {name: place.partition("/") for name, place in container.env_secrets.items()}
        env = {name: opened.secrets[secret][key] for name, (secret, _, key) in places.items()}
        return Opened(env, choose_credentials(local.what, container.image, container.registry_secret, opened))

    def drop(self, uid: str) -> None:
        """The allocation is gone from this node."""
        self._last.pop(uid, None)
        self._reading.pop(uid, None)
        self._sealed.drop(uid)

    def wake(self) -> None:
        """The server may have other secrets than those that are sealed."""
        self._wake.ring()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def keep(self, find: Callable[[], Iterable[LocalAllocation]]) -> None:
        """Keep what is sealed as the server has it, for the allocations that ``find`` finds, and nothing of others."""
        while True:
            kept = await asyncio.to_thread(self._sealed.list_kept)
            present = {local.uid for local in find()}  # after the list: what was sealed since is of one that is here
            for uid in kept:
                if uid not in present:
                    self._sealed.drop(uid)
            await self._wake.wait(REFRESH_SECONDS)
            for local in find():
                if list_secrets(local.spec):
                    try:
                        await self._read(local)
                    except Unavailable:
                        break
                    except WeftError as problem:
                        log.info("the secrets of %s can't be read: %s", local.what, problem.message)

    async def _read(self, local: LocalAllocation) -> OpenedSecrets:
        """Read the secrets that the server has, sealed if all of them are marked for that: without a part of it no start is
        possible."""
        reading = self._reading[local.uid]
        async with reading:
            try:
                opened = await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._server.read_secrets, self._node, local.name
                )
            except NotFound:  # a secret was deleted, or the allocation
                self._sealed.drop(local.uid)
                raise
            if opened.secrets.keys() <= set(opened.offline):
                kept = OpenedSecrets(opened.secrets, opened.registries, offline=opened.offline)
                await asyncio.to_thread(self._sealed.put, local.uid, kept)
            else:
                self._sealed.drop(local.uid)
            if self._reading.get(local.uid) is not reading:  # it is gone meanwhile
                self._sealed.drop(local.uid)
            return opened


def choose_credentials(what: str, image: str, name: str, opened: OpenedSecrets) -> RegistryCredentials | None:
    """Pure. The credentials in the secret ``name`` that pull ``image`` of ``what``; None without a name. Raises InvalidInput
    (``wrongSecret``)."""
    if not name:
        return None
    opens, needed = opened.registries.get(name, ""), parse_reference(image).registry
    if opens != needed:  # no other registry may see them
        raise InvalidInput(
            f"{what}: secret {name} is for {opens or 'no registry'}, but its image is in {needed}",
            reason="wrongSecret",
            field="spec.registry_secret",
            hint="name a secret of that registry",
        )
    values = opened.secrets[name]
    return RegistryCredentials(values.get("username", ""), values.get("password", ""), values.get("token", ""))
