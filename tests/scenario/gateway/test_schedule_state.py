"""Two gateways over one store, a real etcd among them: one fires schedules, and the other takes over what it left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conformance.store.etcd_server import PROGRAM, EtcdServer

from weft.contracts.clock import SystemClock
from weft.contracts.store import PreconditionFailed, Store
from weft.gateway.function_events.file import EventFile
from weft.gateway.function_events.queue import Event
from weft.gateway.function_events.schedule_state import ScheduleState
from weft.protocol.function_counts import LEASE_PREFIX
from weft.protocol.server.presence import SCHEDULES
from weft.store.etcd import EtcdStore
from weft.store.memory import MemoryStore

KEY = ("uid", "entry")


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    server = None
    opened: Store = MemoryStore(SystemClock())
    if request.param == "etcd":
        if PROGRAM is None:
            pytest.skip("etcd is not installed (apt-get install etcd-server)")
        server = EtcdServer(tmp_path / "etcd")
        server.start()
        opened = EtcdStore([server.endpoint])
    await opened.open()
    yield opened
    await opened.close()
    if server is not None:
        server.end()


async def test_a_gateway_takes_over_what_a_dead_one_fired(store: Store, tmp_path: Path) -> None:
    file = EventFile(tmp_path / "events.db")
    await file.open()
    first, second = ScheduleState(store, file, "g1"), ScheduleState(store, file, "g2")
    await store.grant(LEASE_PREFIX + "g1", "g1", 60)
    assert await first.lead() > 0 and await second.lead() == 0
    with pytest.raises(PreconditionFailed):
        await second.begin(KEY, 1.0)
    event = Event(
        id="e", project="default", name="tick", payload=b'{"n": 1}', origin="schedule", accepted_at=60.0, due_at=60.0
    )
    fired = await first.fire(event, KEY, 60.0, await first.begin(KEY, 1.0))
    assert [lease.holder for lease in await store.leases(SCHEDULES)] == ["g1"]
    await first.give_back()
    assert await second.lead() > 0
    assert await second.known() == {KEY: fired}
    assert await second.take_over() == [] and await first.has("e")  # it lives, and has it
    with pytest.raises(PreconditionFailed):
        await first.fire(event, KEY, 120.0, fired)  # it doesn't know yet that another one leads
    await store.release(LEASE_PREFIX + "g1", "g1")
    assert await second.take_over() == [event]
    assert (await first.has("e"), await second.has("e")) == (False, True)
    await second.done("e")
    assert not await second.has("e") and await second.take_over() == []
    await second.forget([KEY])
    assert await second.known() == {}
    await file.close()
