"""What a store is told of replications when it is restored: nothing that it begins with can start a second guest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from weft.cli.command.exit_codes import USAGE
from weft.contracts.clock import SystemClock
from weft.contracts.store import Put
from weft.controllers.failover.restored import hold_restored, list_unknown
from weft.kinds.allocation import ALLOCATION, AllocationSpec, Resources
from weft.kinds.cluster import CLUSTER, ClusterSpec
from weft.kinds.fields.cluster.link import ClusterWitness
from weft.kinds.parts.workload import WorkloadMarks
from weft.kinds.replica import REPLICA, ReplicaMarks, ReplicaSpec
from weft.kinds.replication import REPLICATION, ReplicationMarks, ReplicationSpec, ReplicationStatus
from weft.kinds.vm import VM, VmSpec
from weft.launch.server.main import main
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope
from weft.store.backup import write_backup
from weft.store.sqlite import SqliteStore

WITNESS = ClusterWitness(url="https://192.0.2.7:7443", peer="west")
NOW = 1_800_000_000.5


def make_place(witness: ClusterWitness | None = WITNESS, phase: str = "Replicating", **more: Any) -> list[Envelope]:
    """A cluster with a VM that is replicated to west, another one, and a replica of a VM there."""
    link = ClusterSpec(url="https://x", ca="", witness=witness)
    replication = ReplicationSpec(of="vm/web", cluster="west", automatic=more.pop("automatic", False))
    status = ReplicationStatus(phase=phase, workload_uid="w")
    replica, marks = ReplicaSpec(of="vm/shop", origin="o"), ReplicaMarks(automatic=True, arming=6, renewals=7)
    promoted = ReplicaMarks(role="primary")
    made = [
        CLUSTER.make("west", link, 1.0, uid="c"),
        REPLICATION.make(
            "web", replication, 1.0, uid="r", project="default", marks=ReplicationMarks(**more), status=status
        ),
        REPLICA.make("shop", replica, 1.0, uid="s", project="default", creator="cluster:west", marks=marks),
        REPLICA.make("old", ReplicaSpec(of="vm/old", origin="p"), 1.0, uid="q", project="default", marks=promoted),
    ]
    for name, uid in (("web", "w"), ("other", "x")):
        vm = VM.make(name, VmSpec(image="tiny"), 1.0, uid=uid, project="default")
        placed = AllocationSpec(
            node="n1",
            node_uid="n",
            workload=vm.ref,
            workload_generation=1,
            incarnation=1,
            resources=Resources(cpu=1.0, memory=1 << 27),
        )
        made += [vm, ALLOCATION.make(f"{name}-1", placed, 1.0, uid=f"a-{uid}", project="default")]
    return made


def restore(made: list[Envelope]) -> dict[str, Any]:
    """The specs after it, by key; of those that have any the marks."""

    def read() -> Iterator[tuple[str, bytes]]:
        yield from ((one.key, encode_envelope(one)) for one in made)

    after = {key: decode_envelope(value) for key, value in hold_restored(read, NOW)}
    assert list(after) == [one.key for one in made]
    return {
        key: msgspec.json.decode(one.spec if isinstance(one.marks, msgspec.UnsetType) else one.marks)
        for key, one in after.items()
    }


def guards(specs: dict[str, Any]) -> list[str]:
    keys = ("replication/default/web", "vm/default/web", "allocation/default/web-1")
    return [specs[f"/{key}"].get("guard", "") for key in keys]


def test_each_vm_that_could_have_been_taken_over_is_held() -> None:
    """Whether its replica took over automatically at that time or not: it may have been told since."""
    for spec in ({}, {"automatic": True}, {"guard": "release", "arming": 4}):
        after = restore(make_place(**spec))
        assert guards(after) == ["hold"] * 3
        assert after["/replication/default/web"]["arming"] == int(NOW)
        assert not after["/vm/default/other"].get("guard") and not after["/allocation/default/other-1"].get("guard")


def test_turns_go_on_also_if_the_clock_is_wrong() -> None:
    assert restore(make_place(arming=1 << 33))["/replication/default/web"]["arming"] == (1 << 33) + 1


@pytest.mark.parametrize(
    "change",
    [{"phase": "Stale"}, {"phase": "HandedOver"}, {"phase": "Failed"}],
    ids=["stale", "handed over", "failed"],
)
def test_what_nothing_could_take_over_and_what_was_left_stays_as_it_was(change: dict[str, Any]) -> None:
    assert guards(restore(make_place(**change))) == ["", "", ""]


def test_what_is_replicated_over_a_link_without_a_witness_is_held() -> None:
    """It may have got one since, and people may have promoted the replica."""
    for spec in ({}, {"guard": "release"}):
        assert guards(restore(make_place(witness=None, **spec))) == ["hold"] * 3


def test_a_vm_that_could_have_been_replicated_since_is_named() -> None:
    made = make_place()
    link = CLUSTER.make("west", ClusterSpec(url="https://x", ca="", projects={"default": "lab"}), 1.0, uid="c")
    stopped = VM.make("rest", VmSpec(image="tiny", run="stop"), 1.0, uid="y", project="default")
    elsewhere = VM.make("far", VmSpec(image="tiny"), 1.0, uid="z", project="lab")
    there = [*(one for one in made if one.key != link.key), link, stopped, elsewhere]
    assert list_unknown(lambda: [(one.key, encode_envelope(one)) for one in there]) == {"west": ["other"]}
    assert list_unknown(lambda: [(one.key, encode_envelope(one)) for one in made]) == {}


def test_no_replica_takes_over_nor_promises_anything_before_the_witness_was_asked() -> None:
    """Nor one of a backup that an older weft made, which has its marks in its spec; so has the replication, whose turns go on."""
    made = make_place(guard="release", arming=1 << 33)
    for backup in (made, [_write_as_before(one) if one.kind.startswith("repli") else one for one in made]):
        after = restore(backup)
        assert after["/replication/default/web"] == {"guard": "hold", "arming": (1 << 33) + 1}
        shop, old = after["/replica/default/shop"], after["/replica/default/old"]
        assert (shop["automatic"], shop["restored"], shop["arming"], shop["renewals"]) == (False, True, 6, 8)
        if backup is made:
            assert (old["role"], old.get("restored", False)) == ("primary", False)


def _write_as_before(one: Envelope) -> Envelope:
    marks = decode_part(one.marks, dict)
    spec = msgspec.Raw(msgspec.json.encode({**msgspec.json.decode(one.spec), **marks}))
    return msgspec.structs.replace(one, schema=1, spec=spec, actions=msgspec.UNSET, marks=msgspec.UNSET)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("/vm/default/web", b"{"),
        ("/volume/default/v", b'{"kind": 7}'),
        ("/replication/default/web", b"[]"),
        ("/replica/default/shop", b'{"schema": "x"}'),
        (
            "/replication/default/web",
            b'{"kind": "replication", "name": "web", "uid": "r", "project": "default", "spec": {}, "created_at": 1.0}',
        ),
        ("/vm/default/web", b'{"kind": "vm", "name": "web", "uid": "w", "spec": [], "created_at": 1.0}'),
        ("/cluster/west", b'{"kind": "cluster"}'),
    ],
)
def test_an_object_that_can_not_be_read_is_named_before_anything_changes(
    key: str, value: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def prepare() -> None:
        store = SqliteStore(tmp_path / "store.db", SystemClock())
        await store.open()
        await store.commit([Put(one.key, encode_envelope(one)) for one in make_place()])
        await store.commit([Put(key, value), Put("/zone/x", b"of no kind")])
        await write_backup(tmp_path / "backup", store, dict, weft="0", taken_at=1.0)
        await store.close()

    asyncio.run(prepare())
    state = tmp_path / "state"
    assert main(["restore", str(tmp_path / "backup"), "--state", str(state), "--store", "sqlite"]) == USAGE
    assert f"error: the object {key} in the backup can't be read: " in capsys.readouterr().err
    assert not state.exists()


def test_weft_server_restore_does_so(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()

    async def prepare() -> None:
        store = SqliteStore(tmp_path / "store.db", SystemClock())
        await store.open()
        await store.commit([Put(one.key, encode_envelope(one)) for one in make_place()])
        await write_backup(tmp_path / "backup", store, dict, weft="0", taken_at=1.0)
        await store.close()

    async def read() -> str:
        store = SqliteStore(state / "store.db", SystemClock())
        await store.open()
        page = await store.list("/vm/default/web", limit=5)
        await store.close()
        return decode_part(decode_envelope(page.entries[0].value).marks, WorkloadMarks).guard

    asyncio.run(prepare())
    assert main(["restore", str(tmp_path / "backup"), "--state", str(state), "--store", "sqlite"]) == 0
    assert asyncio.run(read()) == "hold"
