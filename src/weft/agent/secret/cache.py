"""The secrets of this node's containers: fetched before each start, and kept in memory only.

A changed secret takes effect at the next start. While the server can't be reached, the values that this agent fetched last are
used.
"""

from __future__ import annotations

import asyncio

from weft.agent.server.client import Server
from weft.agent.state.allocation import LocalAllocation
from weft.contracts.driver.image import RegistryCredentials
from weft.kinds.allocation import list_secrets
from weft.objects.errors import InvalidInput, Unavailable
from weft.objects.image.reference import parse_reference
from weft.protocol.report import OpenedSecrets


class Opened:
    """Without a repr that could print values."""

    def __init__(self, env: dict[str, str], credentials: RegistryCredentials | None) -> None:
        self.env, self.credentials = env, credentials  # ``env`` by variable


class Secrets:
    def __init__(self, server: Server, node: str) -> None:
        self._server, self._node = server, node
        self._last: dict[str, OpenedSecrets] = {}

    async def open(self, local: LocalAllocation) -> Opened:
        """Raises NotFound (``secretNotFound``), Unavailable, InvalidInput for a secret of another registry than its image's."""
        container = local.spec.container
        if container is None or not list_secrets(local.spec):
            return Opened({}, None)
        try:
            opened = self._last[local.uid] = await asyncio.to_thread(self._server.read_secrets, self._node, local.name)
        except Unavailable:
            if local.uid not in self._last:
                raise
            opened = self._last[local.uid]
        places = {name: place.partition("/") for name, place in container.env_secrets.items()}
        env = {name: opened.secrets[secret][key] for name, (secret, _, key) in places.items()}
        return Opened(env, choose_credentials(local.what, container.image, container.registry_secret, opened))

    def drop(self, uid: str) -> None:
        """The allocation is gone from this node."""
        self._last.pop(uid, None)


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
