"""Files of models come beside everything else: nothing waits for them, and what fails is tried again after pauses that grow."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.onnx_files import digest

from weft.client.answer import ClientAnswer
from weft.contracts.clock import SystemClock
from weft.edge.device.store import TwinStore
from weft.edge.gateway import DeviceGateway
from weft.edge.server.fetching import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, FileFetcher
from weft.edge.server.files import ModelFiles
from weft.edge.server.link import ServerLink
from weft.objects.errors import Unavailable


class _Clock(SystemClock):
    now_elapsed = 0.0

    def elapsed(self) -> float:
        return self.now_elapsed


async def test_pauses_between_tries_grow_to_a_bound_and_the_others_are_fetched_all_the_same(tmp_path: Path) -> None:
    content, clock, asked = b"good", _Clock(), list[str]()

    def request(method: str, path: str, **_: Any) -> ClientAnswer:
        asked.append(path.removeprefix("/v1/blobs/"))
        if not path.endswith(digest(content)):
            raise Unavailable("cut")
        return ClientAnswer(206, {}, content)

    async def change() -> None:
        pass

    client: Any = SimpleNamespace(http=SimpleNamespace(request=request))
    files = ModelFiles(tmp_path)
    fetcher = FileFetcher(files, client, clock, change, list)
    bad = "0" * 64
    fetcher.want([bad, digest(content)])
    pauses = []
    for _ in range(12):
        await fetcher._fetch_due()
        await fetcher._forget()
        pauses.append(fetcher._find_pause() or 0.0)
        await fetcher._fetch_due()  # another list comes meanwhile
        clock.now_elapsed += pauses[-1]
    assert pauses[:3] == [FIRST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2, FIRST_PAUSE_SECONDS * 4]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    assert (asked.count(bad), asked.count(digest(content))) == (12, 1)
    assert files.find(digest(content)) and "cut" in fetcher.problems[bad]
    fetcher.want([])
    await fetcher._forget()
    assert (list(tmp_path.iterdir()), fetcher.problems, fetcher._find_pause()) == ([], {}, None)


async def test_while_a_file_is_fetched_another_list_of_objects_is_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.edge.server.link.LIST_SECONDS", 0.05)
    clock, store = SystemClock(), TwinStore(tmp_path / "twins")
    gateway = DeviceGateway({}, store, clock)
    is_fetching, may_go_on = threading.Event(), threading.Event()

    def request(method: str, path: str, *_: Any, **__: Any) -> ClientAnswer:
        is_fetching.set()
        may_go_on.wait(60)
        raise Unavailable("cut")

    def list_objects(kind: str, **_: Any) -> Any:
        return SimpleNamespace(raws=[])

    client: Any = SimpleNamespace(http=SimpleNamespace(request=request), list=list_objects)
    link = ServerLink(client, "n1", gateway, {}, store, clock, files=ModelFiles(tmp_path / "models"))
    applied = 0
    apply = link._apply

    async def count() -> None:
        nonlocal applied
        await apply()
        link._fetcher.want(["0" * 64])  # type: ignore[union-attr]
        applied += is_fetching.is_set()

    monkeypatch.setattr(link, "_apply", count)
    link._synced = True
    tasks = [asyncio.create_task(one) for one in (link._keep_objects(), link._fetcher.keep())]  # type: ignore[union-attr]
    try:
        async with asyncio.timeout(60):
            while applied < 3:
                await asyncio.sleep(0.01)
        assert not may_go_on.is_set()
    finally:
        may_go_on.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        store.close()
