"""What a row says of its object: phase, health, note and what to do about it, from the Kind record alone."""

from __future__ import annotations

from typing import Any

import pytest

from weft.api.dashboard.row import Row, make_row
from weft.kinds.registry import BY_NAME


def row(kind: str = "vm", **parts: Any) -> Row:
    obj = {
        "kind": kind,
        "name": "web",
        "project": "red",
        "uid": "u",
        "created_at": 5.0,
        "spec": {"image": "i"},
        **parts,
    }
    return make_row(BY_NAME[kind], {"status": {"phase": "Running"}, **obj}, 7)


def test_a_running_guest_that_is_not_healthy_or_not_as_asked_is_degraded() -> None:
    assert row().health == "running" and row().hint == ""
    for type_ in ("Healthy", "Current"):
        condition = {"type": type_, "status": "False", "reason": "r", "message": "it answers 500", "since": 9.0}
        found = row(conditions=[condition])
        assert (found.health, found.note, found.since) == ("degraded", "it answers 500", 9.0)


def test_what_is_being_deleted_changes_whatever_its_phase() -> None:
    found = row(deleting_since=8.0)
    assert (found.phase, found.health, found.since) == ("Deleting", "changing", 8.0)
    assert found.operation is not None and found.operation.act == "delete"


def test_what_waits_is_explained_and_what_failed_is_described() -> None:
    waits = row(status={"phase": "Pending"})
    assert waits.health == "waiting" and waits.hint == "weft explain vm/web -p red"
    failed = row(status={"phase": "Failed", "reason": "driverFailed", "message": "no disk"})
    assert failed.health == "failed" and failed.hint.startswith("weft describe vm/web") and "no disk" in failed.note


@pytest.mark.parametrize(
    ("actions", "phase", "health"),
    [({}, "Ready", "running"), ({"cordoned": True}, "Cordoned", "degraded"), ({"drain": True}, "Draining", "changing")],
)
def test_a_node_s_phase_is_what_its_table_says(actions: dict[str, Any], phase: str, health: str) -> None:
    found = row("node", actions=actions, status={"phase": "Ready"})
    assert (found.phase, found.health) == (phase, health)
    assert found.node is not None and found.node.cpu.capacity == 0


def test_a_problem_says_its_own_reason_and_since_when() -> None:
    alert = {"labels": {"node": "n1"}, "value": 3.0, "since": 50.0, "state": "firing"}
    spec = {"expr": "x", "severity": "critical", "summary": "{{ $labels.node }} is silent"}
    fires = row("alertrule", spec=spec, status={"state": "firing", "firing": 3, "since": 40.0, "alerts": [alert]})
    assert (fires.health, fires.note, fires.since) == ("failed", "n1 is silent (and 2 more)", 40.0)
    status = {"phase": "RolledBack", "revision": 2, "verdict": "4 of 9 requests failed", "ended_at": 60.0}
    back = row("deployment", spec={"replicas": 2, "template": {}}, status=status)
    assert (back.health, back.note, back.since) == ("degraded", "4 of 9 requests failed", 60.0)


def test_cells_have_no_bars_of_terminals() -> None:
    spec, status = {}, {"phase": "Ready", "allocated_memory": 2**30, "promised_memory": 2**31}
    found = row("node", spec=spec, status=status, report={"cpu": 8, "memory": 2**34, "disk": 2**40})
    assert "1.0/16.0 GiB" in found.cells
    assert found.node is not None and found.node.memory.promised == 2**31


def test_what_has_ended_is_over_and_what_has_no_phase_is_as_it_should_be() -> None:
    assert row("container", spec={"image": "i", "once": True}, status={"phase": "Stopped"}).over
    assert not row("container", spec={"image": "i"}, status={"phase": "Stopped"}).over
    secret = row("secret", spec={}, status={})
    assert (secret.phase, secret.health) == ("", "running")


def test_a_phase_that_this_version_does_not_know_is_unknown() -> None:
    assert row(status={"phase": "Teleporting"}).health == "unknown"
