"""A node is given up while deciders and controllers go on: no place is left behind on a node that isn't there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from unittest import mock

import msgspec

from weft.api.node.force_delete import give_up
from weft.contracts.clock import SystemClock
from weft.contracts.store import Delete, Precondition, Put, Write
from weft.kinds.allocation import AllocatedImage, AllocationSpec, Resources
from weft.kinds.node import NODE, NodeStatus
from weft.objects.envelope import Envelope, encode_envelope
from weft.objects.identity import Ref
from weft.store.memory import MemoryStore

SPEC = AllocationSpec(
    node="n1",
    node_uid="node-1",
    workload=Ref("vm", "web", "vm-1", "default"),
    workload_generation=1,
    incarnation=1,
    resources=Resources(cpu=1, memory=1 << 28),
    image=AllocatedImage(name="tiny", uid="i", sha256="0" * 64, size=1, url="file:///tiny"),
)


def place(uid: str) -> Put:
    name, spec = f"node-1.{uid}", msgspec.Raw(msgspec.json.encode(SPEC))
    envelope = Envelope(kind="allocation", name=name, uid=uid, spec=spec)
    return Put(envelope.key, encode_envelope(envelope))


class Busy(MemoryStore):
    """A store in which somebody takes up a guest on the node at the last moment before that is gone."""

    async def commit(self, writes: Sequence[Write], preconditions: Sequence[Precondition] = (), **more: Any) -> int:
        if any(isinstance(write, Delete) and write.key.startswith("/node/") for write in writes):
            await super().commit([place("late")])
        return await super().commit(writes, preconditions, **more)


def test_a_place_that_is_made_while_its_node_is_given_up_goes_too() -> None:
    async def run() -> list[str]:
        store = Busy(SystemClock())
        status = msgspec.Raw(msgspec.json.encode(NodeStatus(phase="NotReady")))
        node = Envelope(kind="node", name="n1", uid="node-1", status=status)
        await store.commit([Put(node.key, encode_envelope(node)), place("early")])
        entry = await store.get(node.key)
        assert entry is not None
        node.revision = entry.revision
        doors: Any = mock.Mock(store=store, clock=SystemClock())
        await give_up(doors, mock.Mock(), NODE, node)
        page = await store.list("/")
        return [entry.key for entry in page.entries if not entry.key.startswith("/enrolment/")]

    assert asyncio.run(run()) == []
