"""What people may request of a lease, and its verbs."""

from __future__ import annotations

from typing import Any

import pytest

from weft.kinds.fields.lease import LeaseRequest, LeaseStatus, check_extension, check_lease, check_new_lease
from weft.kinds.parts.lease_verbs import LEASE_VERBS, ExtendLeaseInput
from weft.objects.errors import IllegalTransition, InvalidInput

NOW = 1_800_000_000.0
EXTEND, CANCEL = LEASE_VERBS


@pytest.mark.parametrize(
    ("given", "mode", "preemptible"),
    [
        ({"duration": 60.0}, "best-effort", True),
        ({"start": NOW, "duration": 60.0}, "reservation", False),
        ({"deadline_at": NOW + 99, "duration": 60.0}, "deadline", False),
        ({"mode": "immediate"}, "immediate", False),
        ({"mode": "best-effort", "preemptible": False}, "best-effort", False),
    ],
)
def test_the_mode_follows_from_what_is_given(given: dict[str, Any], mode: str, preemptible: bool) -> None:
    lease = LeaseRequest(**given)
    check_lease(lease)
    check_lease(lease)  # once more changes nothing
    assert (lease.mode, lease.preemptible) == (mode, preemptible)


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"start": NOW}, "spec.lease.duration", "is missing"),
        ({"mode": "reservation", "duration": 60.0}, "spec.lease.start", "is missing"),
        ({"mode": "deadline", "duration": 60.0}, "spec.lease.deadline_at", "is missing"),
        ({"mode": "immediate", "start": NOW}, "spec.lease.start", "goes with spec.lease.mode reservation"),
        (
            {"start": NOW, "deadline_at": NOW, "duration": 5.0},
            "spec.lease.deadline_at",
            "goes with spec.lease.mode deadline",
        ),
        ({"duration": 0.0}, "spec.lease.duration", "not between a second and a year"),
        ({"duration": 400 * 86400.0}, "spec.lease.duration", "not between a second and a year"),
    ],
)
def test_contradictions_name_their_field(given: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        check_lease(LeaseRequest(**given))
    assert refused.value.field == field and refused.value.hint


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"start": NOW - 60, "duration": 60.0}, "spec.lease.start"),
        ({"start": NOW + 800 * 86400.0, "duration": 60.0}, "spec.lease.start"),
        ({"deadline_at": NOW - 60, "duration": 60.0}, "spec.lease.deadline_at"),
        ({"deadline_at": NOW + 50, "duration": 60.0}, "spec.lease.deadline_at"),
    ],
)
def test_times_that_have_passed_or_lie_too_far_ahead_are_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_new_lease(LeaseRequest(**given), NOW)
    assert refused.value.field == field
    check_new_lease(LeaseRequest(start=NOW + 1, duration=1.0), NOW)


def vm(lease: dict[str, Any] | None, state: str = "Active") -> dict[str, Any]:
    return {"kind": "vm", "name": "web", "spec": {"lease": lease}, "status": {"lease": {"state": state}}}


@pytest.mark.parametrize(
    ("longer", "status", "words"),
    [
        (30.0, LeaseStatus(start=NOW - 50, end=NOW + 70), None),
        (31.0, LeaseStatus(start=NOW - 50, end=NOW + 70), "extend it by 30s at most"),
        (31.0, LeaseStatus(start=NOW + 20, end=NOW + 80), None),
        (41.0, None, "extend it by 40s at most"),
        (1.0, LeaseStatus(start=NOW - 50, end=NOW + 100), "create another workload with a later deadline"),
    ],
)
def test_no_lease_is_extended_past_its_deadline(longer: float, status: LeaseStatus | None, words: str | None) -> None:
    old, new = (LeaseRequest(deadline_at=NOW + 100, duration=60.0 + more) for more in (0.0, longer))
    check_extension(old, new, status, NOW)  # shorter
    if words is None:
        return check_extension(new, old, status, NOW)
    with pytest.raises(InvalidInput, match=r"end .* after spec\.lease\.deadline_at, 2027-01-15T08:01:40Z") as refused:
        check_extension(new, old, status, NOW)
    assert refused.value.field == "spec.lease.duration" and words in (refused.value.hint or "")


def test_verbs_change_only_a_lease_that_isn_t_over() -> None:
    assert EXTEND.change is not None and CANCEL.change is not None
    lease = {"mode": "immediate", "duration": 60.0}
    assert EXTEND.change(vm(lease), ExtendLeaseInput(by=30.0))["lease"]["duration"] == 90.0
    assert CANCEL.change(vm(lease), None)["lease"]["cancelled"] is True
    for state in ("Done", "Rejected", "Cancelled"):
        for verb, given in ((EXTEND, ExtendLeaseInput(by=30.0)), (CANCEL, None)):
            with pytest.raises(IllegalTransition, match=state.lower()):
                verb.change(vm(lease, state), given)  # type: ignore[misc]
    with pytest.raises(IllegalTransition, match="cancelled"):
        EXTEND.change(vm({**lease, "cancelled": True}), ExtendLeaseInput(by=30.0))
    with pytest.raises(IllegalTransition, match="no lease"):
        CANCEL.change(vm(None), None)
    with pytest.raises(IllegalTransition, match="no end"):
        EXTEND.change(vm({"mode": "immediate"}), ExtendLeaseInput(by=30.0))
    for by, says in (
        (0.0, "by: 0s is less than a second"),
        (0.9, "less than a second"),
        (366 * 86400.0, "would make it"),
    ):
        with pytest.raises(InvalidInput, match=says):
            EXTEND.change(vm(lease), ExtendLeaseInput(by=by))
