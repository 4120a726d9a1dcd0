"""Objects that another weft stored: older ones are brought up step by step, newer ones are left as they are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from weft.api.upgrade import upgrade_objects
from weft.contracts.store import Put
from weft.kinds.delegation import DELEGATION, DelegationSpec, check_delegation, mark_workload
from weft.kinds.parts.schema_upgrade import refuse_newer, upgrade
from weft.kinds.record import Kind
from weft.kinds.volume import VOLUME
from weft.objects.envelope import decode_envelope
from weft.objects.errors import IllegalTransition
from weft.store.memory import MemoryStore


def into_2(stored: dict[str, Any]) -> dict[str, Any]:
    """``size`` in GiB became ``bytes``."""
    spec = {**stored["spec"], "bytes": stored["spec"]["size"] * 2**30}
    return {**stored, "spec": {name: value for name, value in spec.items() if name != "size"}}


def into_3(stored: dict[str, Any]) -> dict[str, Any]:
    """The status says where it lies in a list."""
    status = {**stored["status"], "nodes": [stored["status"]["node"]]}
    return {**stored, "status": {name: value for name, value in status.items() if name != "node"}}


KIND: Kind = msgspec.structs.replace(VOLUME, schema=3, upgrades=(into_2, into_3))


def stored(name: str, schema: int, **spec: Any) -> dict[str, Any]:
    return {
        "kind": "volume", "name": name, "uid": name, "project": "default", "schema": schema, "of_tomorrow": [name],
        "spec": {"kept": {"deep": 1}, **spec}, "status": {"node": "n1", "also": "kept"},
    }  # fmt: skip


def test_each_step_is_taken_once_and_nothing_else_changes() -> None:
    fresh = upgrade(KIND, stored("a", 1, size=2))
    assert fresh == {
        **stored("a", 3),
        "spec": {"kept": {"deep": 1}, "bytes": 2**31},
        "status": {"nodes": ["n1"], "also": "kept"},
    }
    half = upgrade(KIND, stored("a", 2, bytes=5))
    assert half is not None and (half["schema"], half["spec"]["bytes"], half["status"]["nodes"]) == (3, 5, ["n1"])
    assert upgrade(KIND, stored("a", 3)) is None
    assert upgrade(KIND, stored("a", 4)) is None


async def test_a_store_of_an_older_weft_is_brought_up_once_and_newer_objects_are_not_touched() -> None:
    store = MemoryStore()
    old = [stored(f"v{n:04}", 1 + n % 4, size=1, bytes=1) for n in range(1_100)]
    for first in range(0, len(old), 100):
        await store.commit(
            [Put(f"/volume/default/{o['name']}", msgspec.json.encode(o)) for o in old[first : first + 100]]
        )
    assert await upgrade_objects(store, [KIND]) == 550  # of schema 1 and 2
    for entry, before in zip((await store.list("/volume/")).entries, old, strict=True):
        after = msgspec.json.decode(entry.value)
        assert after["schema"] == max(3, before["schema"])
        assert after["of_tomorrow"] == before["of_tomorrow"] and after["spec"]["kept"] == {"deep": 1}
        if before["schema"] > 2:
            assert after == before
    cursor = (await store.list("/")).cursor
    assert await upgrade_objects(store, [KIND]) == 0
    assert (await store.list("/")).cursor == cursor


@pytest.mark.parametrize(
    ("workload", "template"),
    [
        ("vm", {"image": "tiny", "restart_generation": 2, "fenced": "r", "guard": "", "restore": {"generation": 1}}),
        ("container", {"image": "tiny", "pulls": 1, "restart_generation": 2}),
        ("job", {"deadline": 60.0, "task": {"image": "tiny", "command": ["true"], "restart_generation": 0}}),
    ],
)
def test_an_older_delegation_stays_changeable_and_counts_as_sent(workload: str, template: dict[str, Any]) -> None:
    labels, spec = {"a": "b"}, {"cluster": "west", "workload": workload, "template": template}
    status = {"sent": mark_workload(labels, template), "refused": mark_workload(labels, template) + "+adopt"}
    fresh = upgrade(DELEGATION, {**stored("d", 1), "labels": labels, "spec": spec, "status": status})
    assert fresh is not None
    check_delegation(msgspec.convert(fresh["spec"], DelegationSpec))
    now = mark_workload(labels, fresh["spec"]["template"])
    assert fresh["status"] == {"sent": now, "refused": now + "+adopt"}


def test_a_newer_object_is_not_to_be_changed_here() -> None:
    envelope = decode_envelope(msgspec.json.encode(stored("a", 4)))
    with pytest.raises(IllegalTransition, match="newer weft"):
        refuse_newer(KIND, envelope)
    envelope.schema = 3
    refuse_newer(KIND, envelope)
