"""Where a workload is, as the gateway reads it in the store when a stream's node is lost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.store import Put
from weft.gateway.stream.reconnect import WorkloadLocation
from weft.gateway.stream.workload_location import WorkloadLocator
from weft.objects.envelope import Envelope, encode_envelope
from weft.objects.errors import IllegalTransition
from weft.objects.identity import Ref, short_id
from weft.store.memory import MemoryStore

WEB = Ref("vm", "web", "uid-web", "default")
CLAIMS = {"workload": {"kind": "vm", "name": "web", "uid": "uid-web", "project": "default"}}


def stored(kind: str, name: str, uid: str, **parts: Any) -> Put:
    envelope = Envelope(kind=kind, name=name, uid=uid, project=WEB.project if kind == "vm" else None)
    for part, value in parts.items():
        setattr(envelope, part, msgspec.Raw(msgspec.json.encode(value)))
    return Put(envelope.key, encode_envelope(envelope))


def allocation(node_uid: str, uid: str, workload: str, role: str) -> Put:
    spec = {
        "workload": {"kind": "vm", "name": "web", "uid": workload, "project": "default"},
        "node_uid": node_uid,
        "role": role,
    }
    return stored("allocation", f"{node_uid}.{uid}", uid, spec=spec)


async def test_a_workload_is_where_its_active_or_source_allocation_is() -> None:
    store = MemoryStore(SystemClock())
    await store.open()
    find = WorkloadLocator(store).find
    assert await find({}) is None and await find({"workload": {"kind": "vm"}}) is None
    assert await find(CLAIMS) is None
    await store.commit([stored("vm", "web", WEB.uid, status={"phase": "Pending"})])
    assert await find(CLAIMS) is None
    await store.commit(
        [
            stored("vm", "web", WEB.uid, status={"phase": "Running", "node": "n2"}),
            stored("node", "n2", "uid-n2"),
            allocation("uid-n2", "a1", "uid-other", "active"),
            allocation("uid-n2", "a2", WEB.uid, "target"),
        ]
    )
    assert await find(CLAIMS) is None
    await store.commit([allocation("uid-n2", "a3", WEB.uid, "source")])
    assert await find(CLAIMS) == WorkloadLocation("uid-n2", "uid-n2.a3", short_id("a3"), "n2")
    await store.close()
    assert await find(CLAIMS) is None


async def test_one_that_another_cluster_has_is_refused_with_its_name_there() -> None:
    store = MemoryStore(SystemClock())
    await store.open()
    await store.commit([stored("vm", "web", WEB.uid, marks={"departed": "west/lab/web"}, status={"phase": "Stopped"})])
    with pytest.raises(IllegalTransition, match="vm/web migrated to cluster west, where it is lab/web"):
        await WorkloadLocator(store).find(CLAIMS)
