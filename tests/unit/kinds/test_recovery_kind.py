"""What people write in a recovery plan, and which runs it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from weft.kinds.fields.recovery.check import read_check
from weft.kinds.fields.recovery.run import find_result
from weft.kinds.recovery_plan import (
    RECOVERY_PLAN,
    FailoverInput,
    RecoveryPlanSpec,
    check_recovery_plan,
    read_groups,
)
from weft.kinds.replica import ReplicaSpec
from weft.kinds.replication import ReplicationSpec
from weft.objects.errors import IllegalTransition, InvalidInput
from weft.objects.schema import read_strict


def test_checks_are_asked_as_a_service_asks_its_endpoints() -> None:
    tcp, http = read_check("web=tcp:80", "c").readiness, read_check("web=http:8080/healthz?a=1", "c").readiness
    command = read_check("db=command:pg_isready -q, now", "c").readiness
    assert (tcp.type, tcp.port) == ("tcp", 80)
    assert (http.type, http.port, http.path) == ("http", 8080, "/healthz?a=1")
    assert (command.type, command.command) == ("command", ["sh", "-c", "pg_isready -q, now"])


BAD_CHECKS = (
    *("web", "web=80", "=tcp:80", "web=udp:80", "web=tcp:0", "web=tcp:65536", "web=tcp:80/x"),
    *("web=http:/x", "web=http:80/a b", "web=command:"),
)


@pytest.mark.parametrize("written", BAD_CHECKS)
def test_a_check_that_is_none_names_its_field(written: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_check(written, "spec.checks[0]")
    assert str(refused.value.field).startswith("spec.checks[0]")


def test_groups_are_read_in_order() -> None:
    assert read_groups(RecoveryPlanSpec(groups=["db", "web, app"])) == [["db"], ["web", "app"]]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (RecoveryPlanSpec(), "spec.groups"),
        (RecoveryPlanSpec(groups=["db", "web,db"]), "spec.groups"),
        (RecoveryPlanSpec(groups=["db,"]), "spec.groups[0]"),
        (RecoveryPlanSpec(groups=[f"r{n}" for n in range(21)]), "spec.groups"),
        (RecoveryPlanSpec(groups=["db"], checks=["web=tcp:80"]), "spec.checks[0]"),
        (RecoveryPlanSpec(all=True, checks=[f"web=tcp:{n}" for n in range(1, 18)]), "spec.checks"),
        (RecoveryPlanSpec(all=True, deadline=1.0), "spec.deadline"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: RecoveryPlanSpec, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_recovery_plan(spec)
    assert refused.value.field == field


def act(verb: str, status: dict[str, Any], **asked: Any) -> dict[str, Any]:
    found = RECOVERY_PLAN.verb(verb)
    assert found is not None and found.act is not None
    return found.act({"name": "shop", "actions": {"run_generation": 1, **asked}, "status": status}, FailoverInput())


def test_one_run_goes_on_at_a_time_but_a_failover_ends_a_rehearsal() -> None:
    rehearsing = {"run": {"mode": "rehearse"}, "ended_generation": 0}
    with pytest.raises(IllegalTransition, match="being rehearsed"):
        act("rehearse", rehearsing)
    with pytest.raises(IllegalTransition, match="failing over"):
        act("failover", {"ended_generation": 0}, run_mode="failover")
    assert act("failover", rehearsing)["run_mode"] == "failover"
    after = act("rehearse", {"ended_generation": 1})
    assert (after["run_generation"], after["run_mode"], after["force"]) == (2, "rehearse", False)


def test_a_result_counts_once_nothing_is_left_of_its_run() -> None:
    plan = {
        "actions": {"run_generation": 2},
        "status": {"ended_generation": 1, "rehearsal": {"generation": 2, "phase": "Passed"}},
    }
    assert find_result(plan) is None
    assert find_result({**plan, "status": {**plan["status"], "ended_generation": 2}}) == {
        "generation": 2,
        "phase": "Passed",
    }


def test_rights_for_a_run_are_those_for_what_it_does() -> None:
    rights = RECOVERY_PLAN.access.further_rights_in_project
    assert rights is not None
    plain, command = RecoveryPlanSpec(groups=["db"]), RecoveryPlanSpec(groups=["db"], checks=["db=command:true"])
    assert list(rights(None, plain)) == [] and [one for one, _ in rights(None, command)] == ["vm:exec"]
    found = RECOVERY_PLAN.verb("failover")
    assert found is not None and found.rights is not None
    assert [one for one, _ in found.rights({}, FailoverInput())] == ["vm:create", "replica:promote"]


@pytest.mark.parametrize(
    ("spec", "name"), [(RecoveryPlanSpec, "deadline"), (ReplicationSpec, "rpo"), (ReplicaSpec, "rpo")]
)
def test_how_long_a_disaster_may_last_names_its_unit_and_programs_give_seconds(spec: type, name: str) -> None:
    whole = {"of": "vm/web", **{word: "west" for word in ("cluster", "origin") if word in spec.__annotations__}}
    whole = whole if spec is not RecoveryPlanSpec else {}
    for given in ("10", " 90 "):
        with pytest.raises(InvalidInput, match=f"{name}: {given.strip()} has no unit") as refused:
            read_strict({**whole, name: given}, spec)
        assert f"{given.strip()}s, {given.strip()}m" in str(refused.value.hint)
    for seconds in ("10m", 600, 600.0):
        assert getattr(read_strict({**whole, name: seconds}, spec), name) == 600.0
