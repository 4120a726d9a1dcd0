"""The keys of encrypted volumes on a node: fetched for an allocation, kept in memory, and gone with it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from weft.agent.secret.volume_keys import VolumeKeys
from weft.agent.state.allocation import LocalAllocation
from weft.kinds.allocation import AllocatedVolume, AllocationSpec, Resources
from weft.objects.errors import Unavailable
from weft.objects.identity import Ref
from weft.protocol.report import OpenedSecrets


class Server:
    """Answers with ``keys``; None: it can't be reached."""

    def __init__(self, **keys: str) -> None:
        self.keys: dict[str, str] | None = keys

    def read_secrets(self, node: str, allocation: str) -> OpenedSecrets:
        if self.keys is None:
            raise Unavailable("the server can't be reached")
        return OpenedSecrets(volumes=self.keys)


def make_local(*uids: str) -> LocalAllocation:
    spec = AllocationSpec(
        node="n1",
        node_uid="u1",
        workload=Ref(kind="vm", name="web", uid="w", project="default"),
        workload_generation=1,
        incarnation=1,
        resources=Resources(cpu=1, memory=1),
        volumes=[AllocatedVolume(name=uid, uid=uid, size=1, encrypted=True) for uid in uids],
    )
    return LocalAllocation("u1.a", "a", spec)


@pytest.fixture
def server() -> Any:
    return Server(v1="one", v2="two")


async def test_each_key_has_a_path_until_its_allocation_is_gone(server: Any) -> None:
    keys, local = VolumeKeys(server, "n1"), make_local("v1", "v2")
    paths = await keys.open(local)
    assert [Path(paths[uid]).read_text() for uid in ("v1", "v2")] == ["one", "two"]
    assert await keys.open(local) == paths, "a start that is under way reads it by the same path"
    assert await keys.open(make_local()) == {}
    keys.drop(local.uid)
    assert not any(Path(path).exists() and "volume-key" in str(Path(path).readlink()) for path in paths.values())


async def test_without_the_server_the_keys_that_were_fetched_last_serve(server: Any) -> None:
    keys = VolumeKeys(server, "n1")
    paths = await keys.open(make_local("v1"))
    server.keys = None
    assert await keys.open(make_local("v1")) == paths
    with pytest.raises(Unavailable):
        await keys.open(make_local("v1", "v2"))


async def test_what_fills_the_agents_own_threads_holds_up_no_key(server: Any) -> None:
    keys, held = VolumeKeys(server, "n1"), threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    waiting = asyncio.ensure_future(asyncio.to_thread(held.wait))
    try:
        async with asyncio.timeout(60):
            paths = await keys.open(make_local("v1"))
        assert Path(paths["v1"]).read_text() == "one"
    finally:
        held.set()
        await waiting
        keys.close()
