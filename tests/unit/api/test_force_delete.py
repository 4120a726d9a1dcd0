"""A node is given up while controllers and controllers go on: no place is left behind on a node that isn't there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from unittest import mock

import msgspec
import pytest

from weft.api.node.force_delete import describe_next, give_up
from weft.contracts.clock import SystemClock
from weft.contracts.store import Delete, Precondition, Put, Write
from weft.kinds.allocation import AllocatedImage, AllocatedVolume, AllocationSpec, Resources
from weft.kinds.node import NODE, NodeStatus
from weft.objects.envelope import Envelope, decode_envelope, encode_envelope
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
        api: Any = mock.Mock(store=store, clock=SystemClock())
        await give_up(api, mock.Mock(), NODE, node)
        page = await store.list("/")
        return [entry.key for entry in page.entries if not entry.key.startswith("/enrolment/")]

    assert asyncio.run(run()) == []


@pytest.mark.parametrize(
    ("report", "run"),
    [
        ({"ended": True, "restart_generation": 2}, "stop"),
        ({"ended": True, "restart_generation": 1}, "run"),  # somebody has started it since
        ({"ended": False, "restart_generation": 2}, "run"),
    ],
)
def test_what_had_ended_on_a_node_that_is_given_up_does_not_run_again(report: dict[str, Any], run: str) -> None:
    async def give() -> Envelope:
        store = MemoryStore(SystemClock())
        node = Envelope(
            kind="node", name="n1", uid="node-1", status=msgspec.Raw(msgspec.json.encode(NodeStatus(phase="NotReady")))
        )
        spec, asked = {"image": "tiny", "run": "run"}, {"restart_generation": 2}
        vm = Envelope(
            kind="vm",
            name="web",
            uid="vm-1",
            project="default",
            generation=1,
            spec=msgspec.Raw(msgspec.json.encode(spec)),
            actions=msgspec.Raw(msgspec.json.encode(asked)),
        )
        there = decode_envelope(place("early").value)
        there.report = msgspec.Raw(msgspec.json.encode(report))
        await store.commit([Put(one.key, encode_envelope(one)) for one in (node, vm, there)])
        entry = await store.get(node.key)
        assert entry is not None
        node.revision = entry.revision
        await give_up(mock.Mock(store=store, clock=SystemClock()), mock.Mock(), NODE, node)
        after = await store.get(vm.key)
        assert after is not None
        return decode_envelope(after.value)

    after = asyncio.run(give())
    assert msgspec.json.decode(after.spec)["run"] == run and after.generation == (2 if run == "stop" else 1)


@pytest.mark.parametrize(
    ("spec", "pool", "says"),
    [
        ({}, None, "it gets a new one from its image"),
        ({"node": "n2", "run": "run"}, "shared", "it gets a new one from its image"),
        ({"run": "stop"}, None, "it gets a new one from its image at its next start"),
        ({}, "local", "it waits for that node, which has volume data, too"),
        ({"node": "n1"}, "local", "it waits for that node, which its spec names"),
    ],
)
def test_what_becomes_of_a_vm_whose_disk_is_lost_follows_from_its_spec(spec: Any, pool: str | None, says: str) -> None:
    volumes = [AllocatedVolume(name="data", uid="v", size=1, pool=pool)] if pool is not None else []
    vm = Envelope(kind="vm", name="web", uid="vm-1", spec=msgspec.Raw(msgspec.json.encode(spec)))
    assert describe_next(vm, msgspec.structs.replace(SPEC, volumes=volumes), "n1") == says
