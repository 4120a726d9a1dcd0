"""Samples of what goes wrong: kills for memory, migrations that take long, leases at risk, failed backups, clocks that are off."""

from __future__ import annotations

from typing import Any

import msgspec

from weft.contracts.store import Lease
from weft.controllers.metrics.samples import list_samples
from weft.controllers.metrics.troubles import Kills, list_certificates, list_troubles
from weft.informer.view import Changed, Item, View, make_view
from weft.kinds.allocation import AllocationSpec, Resources, allocation_name
from weft.objects.envelope import Condition, Envelope, encode_envelope
from weft.objects.identity import Ref
from weft.protocol.heartbeat import CERTIFICATE_END, CLOCK, LEASE_SECONDS, Digest, write_digest
from weft.telemetry.metrics.sample import Sample

NOW = 1_795_471_245.0
AT = int(NOW * 1000)


def put(view: View, kind: str, name: str, project: str | None = "shop", **parts: Any) -> Item:
    conditions = parts.pop("conditions", [])
    made = Envelope(kind=kind, name=name, uid=name, project=project, created_at=parts.pop("created_at", 1.0))
    made.conditions = conditions
    for part, value in parts.items():
        setattr(made, part, msgspec.Raw(msgspec.json.encode(value)))
    assert view.put(made.key, encode_envelope(made), 1) is not None
    item = view.get(made.key)
    assert item is not None
    return item


def allocation(view: View, **report: Any) -> Item:
    spec = AllocationSpec(
        node="n1",
        node_uid="node1",
        workload=Ref(kind="vm", project="shop", name="web", uid="vm1"),
        workload_generation=1,
        incarnation=1,
        resources=Resources(cpu=2.0, memory=2**30),
    )
    return put(view, "allocation", allocation_name("node1", "al1"), None, spec=spec, report=report)


def values(samples: list[Sample], name: str) -> list[tuple[dict[str, str], float]]:
    return [(dict(one.labels), one.value) for one in samples if one.name == name]


def test_each_kill_for_lack_of_memory_counts_once() -> None:
    view, kills = make_view(), Kills()
    states = [
        allocation(view, state="running"),
        allocation(view, state="starting", reason="restarting", message="it ended (outOfMemory: …) and is restarting"),
        allocation(
            view, state="starting", reason="restarting", message="it ended (outOfMemory: …) and is restarting, 1"
        ),
        allocation(view, state="running", restarts=1),
        allocation(view, state="failed", restarts=1, reason="outOfMemory", message="it exceeded its memory"),
        allocation(view, state="failed", restarts=1, reason="exited", message="outOfMemory, says a guest"),
    ]
    for old, new in zip([None, *states], states, strict=False):
        kills.notice([Changed(new.key, old, new)])
    assert values(list(kills.list_samples(view, AT)), "weft_guest_memory_kills_total") == [
        ({"project": "shop", "kind": "vm", "name": "web", "node": "n1"}, 2.0)
    ]


def test_a_workload_that_was_never_killed_counts_from_zero() -> None:
    view = make_view()
    allocation(view, state="running")
    assert [one.value for one in Kills().list_samples(view, AT)] == [0.0]


def test_migrations_leases_and_backups_in_trouble_have_samples() -> None:
    view = make_view()
    put(view, "migration", "m1", spec={"workload": "vm/web"}, status={"phase": "Migrating", "started_at": NOW - 60})
    put(view, "migration", "m2", spec={"workload": "vm/db"}, status={"phase": "Succeeded", "started_at": NOW - 60})
    risk = Condition("Placed", "True", "leaseAtRisk", "its node is lost", 1.0, 1)
    put(view, "vm", "web", spec={"image": "tiny"}, conditions=[risk])
    put(view, "vm", "db", spec={"image": "tiny"})
    made = [("vm/web", "Failed", 0.0), ("vm/web", "Ready", 1.0), ("vm/db", "Failed", 2.0)]
    made += [
        ("vm/web", "Failed", NOW + 60),
        ("vm/gone", "Failed", 3.0),
    ]  # the clock was ahead; nobody makes a better one
    for number, (of, phase, at) in enumerate(made):
        spec = {"of": of, "to": "safe"}
        put(view, "backup", f"b{number}", spec=spec, status={"phase": phase}, created_at=at)
    samples = list(list_troubles(view, AT))
    assert values(samples, "weft_migration_running_seconds") == [
        ({"project": "shop", "kind": "vm", "name": "web", "migration": "m1"}, 60.0)
    ]
    assert values(samples, "weft_lease_at_risk") == [({"project": "shop", "kind": "vm", "name": "web"}, 1.0)]
    assert sorted((labels["name"], value) for labels, value in values(samples, "weft_backup_failed")) == [
        ("db", 1.0),
        ("web", 0.0),
    ]


def test_a_nodes_clock_is_compared_with_the_moment_that_its_heartbeat_came() -> None:
    view = make_view()
    put(view, "node", "n1", None, report={}, status={"phase": "Ready"})
    for clock, expected in ((NOW - 4 + 7.5, [7.5]), (1e300, []), (float("nan"), [])):
        digest = write_digest(Digest(node={CLOCK: clock, CERTIFICATE_END: NOW + 60}, measured=False))
        lease = Lease(name="node/n1", holder="n1", fence=1, remaining_seconds=LEASE_SECONDS - 4, digest=digest)
        samples = list(list_samples(view, [lease], {}, NOW))
        assert [value for _, value in values(samples, "weft_node_clock_offset_seconds")] == expected
    assert values(samples, "weft_certificate_expiry_timestamp_seconds") == [
        ({"node": "n1", "certificate": "node"}, NOW + 60)
    ]
    assert [one.labels for one in list_certificates({"ca": NOW}, AT)] == [(("certificate", "ca"),)]
