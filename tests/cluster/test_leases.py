"""Leases on real machines: one that was promised an hour runs from then to its end, and never before."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster, until

pytestmark = pytest.mark.host
Gone = Callable[[str], str]
SMALL = ("--image", "tiny", "--memory", "128M", "--cpu", "0.5", "--grace", "1s")


def lease_of(cluster: Cluster, name: str) -> dict[str, object]:
    return dict(cluster.vm(name)["status"].get("lease") or {"state": ""})


def test_a_reserved_vm_is_ready_at_its_start_with_its_clock_right_and_ends_by_itself(
    cluster: Cluster, gone: Gone
) -> None:
    name = gone("lecture")
    cluster.ok("vm", "create", name, *SMALL, "--start", "12s", "--duration", "6s", "--detach")
    until(lambda: lease_of(cluster, name)["state"] == "Preparing")  # less than a minute ahead: it boots now
    (item,) = [one for one in cluster.json("lease", "list")["items"] if one["name"] == name]
    assert item["spec"]["duration"] == 6.0 and item["spec"]["start"]
    (entry,) = [one for one in cluster.json("calendar")["entries"] if one["workload"] == f"vm/{name}"]
    assert entry["kind"] == "reservation" and entry["start"] == item["spec"]["start"] and entry["project"] == "default"
    start = float(str(cluster.vm(name)["spec"]["lease"]["start"]))
    until(lambda: lease_of(cluster, name)["state"] == "Active", 60)
    assert time.time() >= start
    asked = time.time()
    there = float(cluster.ok("vm", "exec", name, "--", "date", "+%s"))
    assert asked - 3 < there < time.time() + 3  # it stood still for most of the time until then
    until(lambda: lease_of(cluster, name)["state"] == "Done", 60)
    assert cluster.vm(name)["status"]["reason"] == "leaseEnded"
    assert "is over" in cluster.fails(5, "vm", "start", name)
    assert f"vm/{name}" not in cluster.ok("lease", "list") and f"vm/{name}" in cluster.ok("lease", "list", "--all")


def test_leases_are_extended_cancelled_and_refused_by_the_command_line(cluster: Cluster, gone: Gone) -> None:
    name, other = gone("bench"), gone("too-large")
    cluster.ok("vm", "create", name, *SMALL, "--lease", "immediate", "--duration", "10m")
    before = lease_of(cluster, name)
    cluster.ok("lease", "extend", f"vm/{name}", "--by", "5m")
    assert float(str(lease_of(cluster, name)["end"])) == float(str(before["end"])) + 300
    refused = cluster.fails(
        6, "vm", "create", other, "--image", "tiny", "--memory", "999G", "--lease", "immediate", "--duration", "1h"
    )
    assert "leaseConflict" in refused and "weft calendar" in refused
    states = {
        one["name"]: one["status"]["state"]
        for one in json.loads(cluster.ok("lease", "list", "-a", "-o", "json"))["items"]
    }
    assert states[other] == "Rejected"
    picture = cluster.folder / "calendar.svg"
    cluster.ok("calendar", "--plot", str(picture))
    assert picture.read_text().startswith("<svg") and f"vm/{name}" in picture.read_text()
    cluster.ok("lease", "cancel", f"vm/{name}")
    until(lambda: cluster.vm(name)["status"]["phase"] == "Stopped")
    assert lease_of(cluster, name)["state"] == "Cancelled"
    assert "cancelled" in cluster.fails(5, "lease", "extend", f"vm/{name}", "--by", "5m")
    wrong = cluster.fails(2, "vm", "create", gone("past"), *SMALL, "--start", "2020-01-01T00:00", "--duration", "1h")
    assert "is in the past" in wrong
