"""Amounts, limits and what exceeds them, against an account in whole thousandths that never rounds."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.api.request.problem import problem_answer, status_of
from weft.kinds.container import CONTAINER, ContainerSpec
from weft.kinds.fields.lease import LEASE_ENDED
from weft.kinds.function import FUNCTION, FunctionSpec, FunctionStatus
from weft.kinds.parts.workload import WorkloadStatus
from weft.kinds.quota import (
    FIELDS,
    MOST_USERS,
    PROJECT,
    QUOTA,
    AccountLimits,
    Limits,
    QuotaSpec,
    add_up,
    add_up_accounts,
    busy,
    count_fitting,
    describe_excess,
    exceeded,
    find_excess,
    find_growth,
    find_over,
    quota_key,
    resolve,
)
from weft.kinds.record import Counted
from weft.kinds.registry import COUNTED, WORKLOADS
from weft.kinds.vm import VM, VmSpec
from weft.kinds.volume import VOLUME, VolumeSpec, VolumeStatus
from weft.objects.errors import InvalidInput

FRACTIONS = ("cpu", "gpus")
WHOLE = [name for name in FIELDS if name not in FRACTIONS]
MILLIS = st.integers(0, 5000)
AMOUNTS = st.fixed_dictionaries(
    {}, optional={name: MILLIS.map(lambda n: n / 1000) if name in FRACTIONS else st.integers(0, 50) for name in FIELDS}
)
LIMITS = st.fixed_dictionaries(
    {}, optional={name: MILLIS.map(lambda n: n / 100) if name in FRACTIONS else st.integers(0, 400) for name in FIELDS}
)


def exact(amounts: dict[str, Any], name: str) -> Fraction:
    return Fraction(str(amounts.get(name, 0)))


@given(LIMITS, st.lists(AMOUNTS, max_size=30), AMOUNTS)
def test_excess_is_what_plain_fractions_say(
    limits: dict[str, Any], there: list[dict[str, Any]], more: dict[str, Any]
) -> None:
    expected = {}
    for name, limit in limits.items():
        used, new = sum((exact(one, name) for one in there), Fraction()), exact(more, name)
        if new > 0 and used + new > Fraction(str(limit)):
            expected[name] = (float(used), float(new), float(limit))
    found = find_excess(QuotaSpec(**limits), add_up(there), more)
    assert {one.field: (one.used, one.requested, one.limit) for one in found} == expected


@given(LIMITS, AMOUNTS, AMOUNTS, st.integers(0, 300))
def test_as_many_fit_as_can_be_added_one_by_one(
    limits: dict[str, Any], used: dict[str, Any], one: dict[str, Any], most: int
) -> None:
    spec = QuotaSpec(**limits)
    count, now = 0, add_up([used])
    while count < most and not find_excess(spec, now, one):
        count, now = count + 1, add_up([now, one])
    assert count_fitting(spec, used, one, most) == count


@given(LIMITS, AMOUNTS, AMOUNTS)
def test_only_what_is_limited_and_more_has_grown(
    limits: dict[str, Any], before: dict[str, Any], after: dict[str, Any]
) -> None:
    grown = {name: exact(after, name) - exact(before, name) for name in FIELDS}
    expected = {name: float(more) for name, more in grown.items() if more > 0 and name in limits}
    assert find_growth([QuotaSpec(**limits)], before, after) == expected


def test_tenths_add_up_to_the_whole() -> None:
    assert add_up([{"cpu": 0.1}] * 3)["cpu"] == 0.3
    assert find_excess(QuotaSpec(cpu=0.3), {"cpu": 0.1 + 0.1}, {"cpu": 0.1}) == []
    assert count_fitting(QuotaSpec(cpu=0.3), {}, {"cpu": 0.1}, 100) == 3


def test_sizes_beyond_exact_floats_are_counted_to_the_byte() -> None:
    used = add_up([{"memory": 2**60}, {"memory": 1}])
    assert used["memory"] == 2**60 + 1
    assert find_excess(QuotaSpec(memory=2**60 + 1), used, {"memory": 1})[0].used == 2**60 + 1


@pytest.mark.parametrize("kind", COUNTED, ids=lambda kind: kind.name)
def test_every_kind_counts_in_fields_of_the_quota(kind: Any) -> None:
    specs: dict[str, dict[str, Any]] = {"volume": {"size": 1}, "function": {"ready": 2}}
    specs |= {"reservation": {"cpu": 1, "memory": 1}, "snapshot": {"of": "vm/x"}}
    specs["service"] = {"selector": {"app": "web"}, "ports": ["80"]}
    specs["replica"] = {"of": "vm/x", "origin": "u", "disks": {"root": 1}}
    spec = msgspec.convert({"image": "x", **specs.get(kind.name, {})}, kind.spec)
    counted = kind.count(spec, kind.status())
    assert counted.amounts and counted.amounts.keys() <= set(FIELDS)


def test_all_workloads_count() -> None:
    assert set(WORKLOADS) <= {kind.name for kind in COUNTED}


def test_amounts_of_each_kind() -> None:
    vm = VmSpec(image="tiny", cpu=1.5, memory=1 << 30, disk=5, gpus=2, publish=["1:1", "2:2"])
    assert VM.admission.counts is not None and VM.admission.counts(vm, WorkloadStatus()) == Counted(
        {"cpu": 1.5, "memory": 1 << 30, "disk": 5, "gpus": 2, "instances": 1, "published_ports": 2}, "tiny"
    )
    share = VM.admission.counts(VmSpec(image="tiny", gpus=1, gpu_share=0.25), WorkloadStatus())
    assert share.amounts["gpus"] == 0.25
    assert VOLUME.admission.counts is not None
    assert VOLUME.count(VolumeSpec(size=7), VolumeStatus()) == Counted({"disk": 7})
    assert FUNCTION.admission.counts is not None
    warm = FunctionSpec(cpu=0.5, memory=100, ready=3)
    assert FUNCTION.admission.counts(warm, FunctionStatus()).amounts == {"cpu": 1.5, "memory": 300, "instances": 3}
    assert not any(FUNCTION.admission.counts(FunctionSpec(), FunctionStatus()).amounts.values())


def test_only_what_never_starts_again_counts_no_more_at_its_end() -> None:
    assert CONTAINER.admission.counts is not None
    ended = WorkloadStatus(phase="Stopped", ended=True)
    for once, status, counts in ((True, ended, False), (False, ended, True), (True, WorkloadStatus(), True)):
        spec = ContainerSpec(image="registry.example.org/web:1", once=once)
        assert bool(CONTAINER.admission.counts(spec, status).amounts) == counts


def test_a_workload_whose_lease_is_over_keeps_its_disk_and_its_ports() -> None:
    assert VM.admission.counts is not None
    over = WorkloadStatus(phase="Stopped", reason=LEASE_ENDED)
    assert VM.admission.counts(VmSpec(image="tiny", disk=5, publish=["1:1"]), over).amounts == {
        "disk": 5,
        "published_ports": 1,
    }


def test_a_disk_is_at_least_as_large_as_its_image() -> None:
    sizes = {"tiny": 10}
    assert resolve(Counted({"disk": 0}, "tiny"), sizes)["disk"] == 10
    assert resolve(Counted({"disk": 12}, "tiny"), sizes)["disk"] == 12
    assert resolve(Counted({"disk": 3}, "unknown"), sizes)["disk"] == 3


def test_the_error_names_field_remedy_and_numbers() -> None:
    limits = QuotaSpec(cpu=2, memory=1 << 30)
    excess = find_excess(limits, {"cpu": 1.5, "memory": 1 << 30}, {"cpu": 1, "memory": 1 << 28})
    error = exceeded("lab", excess, VmSpec(image="tiny"))
    assert error.message == (
        "project lab: cpu: 1.5 of 2 cores used, 1 more requested; memory: 1.0 GiB of 1.0 GiB used, 256 MiB more requested"
    )
    assert (error.token, error.field, error.hint) == ("quotaExceeded", "spec.cpu", "weft quota show -p lab")
    assert error.details["limit"] == {"cpu": 2, "memory": 1 << 30}
    over = find_over(QuotaSpec(instances=1, cpu=3), {"instances": 2, "cpu": 3})
    assert describe_excess("lab", over) == "project lab: instances: 2 of 1 used"


def test_a_user_s_own_limits_are_in_place_of_those_of_each_field_by_field() -> None:
    spec = QuotaSpec(
        per_user=AccountLimits(cpu=1, memory=5, soft=Limits(cpu=0.5)),
        users={"ann": AccountLimits(cpu=4, gpus=0, soft=Limits(disk=7))},
    )
    assert spec.limits_of("ann") == AccountLimits(cpu=4, memory=5, gpus=0, soft=Limits(cpu=0.5, disk=7))
    assert spec.limits_of("bob") == spec.limits_of("token:ci") == spec.per_user
    assert spec.accounts_of("bob") == [(PROJECT, spec), ("bob", spec.per_user)]
    assert spec.accounts_of("") == [(PROJECT, spec)], "what nobody created counts for the project alone"
    assert spec.limits_users and not QuotaSpec(cpu=1, soft=Limits(cpu=1)).limits_users


@given(st.lists(st.tuples(st.sampled_from(["", "ann", "token:ci"]), AMOUNTS), max_size=30))
def test_each_object_counts_for_its_project_and_for_who_created_it(there: list[tuple[str, dict[str, Any]]]) -> None:
    totals = add_up_accounts(there)
    assert totals.pop(PROJECT) == add_up(one for _, one in there)
    users = {user for user, _ in there if user}
    assert totals == {user: add_up(one for by, one in there if by == user) for user in users}


@pytest.mark.parametrize(
    ("wrong", "field", "other"),
    [
        (QuotaSpec(cpu=2, soft=Limits(cpu=3)), "spec.soft.cpu", "spec.cpu, 2"),
        (
            QuotaSpec(per_user=AccountLimits(disk=1, soft=Limits(disk=2))),
            "spec.per_user.soft.disk",
            "spec.per_user.disk",
        ),
        (
            QuotaSpec(per_user=AccountLimits(gpus=1), users={"ann": AccountLimits(soft=Limits(gpus=2))}),
            *("spec.users.ann.soft.gpus", "spec.per_user.gpus, 1"),
        ),
    ],
)
def test_a_soft_limit_above_the_limit_itself_is_refused_unless_it_was_there(
    wrong: QuotaSpec, field: str, other: str
) -> None:
    new, change = QUOTA.admission.check_new, QUOTA.admission.check_change
    assert new is not None and change is not None
    for refused in (lambda: new(wrong), lambda: change(QuotaSpec(), wrong)):
        with pytest.raises(InvalidInput, match=f"{field}: .* is above {other}") as caught:
            refused()
        assert caught.value.field == field
    change(wrong, msgspec.structs.replace(wrong, instances=5))
    new(QuotaSpec(cpu=2, soft=Limits(cpu=2)))


def test_users_without_a_limit_are_left_out_and_names_that_no_user_has_are_refused() -> None:
    assert QUOTA.admission.check is not None
    spec = QuotaSpec(users={"ann": AccountLimits(), "token:ci": AccountLimits(soft=Limits(cpu=1))})
    QUOTA.admission.check(spec)
    assert spec.users == {"token:ci": AccountLimits(soft=Limits(cpu=1))}
    for wrong in ("Ann", "token:", "group:staff", "x" * 5000, ""):
        with pytest.raises(InvalidInput) as caught:
            QUOTA.admission.check(QuotaSpec(users={wrong: AccountLimits(cpu=1)}))
        assert caught.value.field == "spec.users" and caught.value.hint and len(caught.value.message) < 200
    most = {f"u{number}": AccountLimits(cpu=1) for number in range(MOST_USERS)}
    QUOTA.admission.check(QuotaSpec(users=most))
    with pytest.raises(InvalidInput, match="201 users are too many"):
        QUOTA.admission.check(QuotaSpec(users={**most, "ann": AccountLimits(cpu=1)}))


def test_the_error_names_the_user_whose_limit_it_is() -> None:
    for account, whose in (("ann", "user ann"), ("token:ci", "token ci")):
        error = exceeded("lab", find_excess(Limits(cpu=2), {"cpu": 2}, {"cpu": 1}, account), VmSpec(image="tiny"))
        assert error.message == f"project lab, {whose}: cpu: 2 of 2 cores used, 1 more requested"
        assert (error.field, error.details["user"]) == ("spec.cpu", account)
        assert error.hint == (
            f"delete what {whose} doesn't need, or have the limit raised; weft quota show -p lab --user {account}"
        )
    over = [one for n in range(12) for one in find_over(Limits(cpu=1), {"cpu": 2}, f"u{n}")]
    assert describe_excess("lab", over).count("of 1 cores used") == 10
    assert describe_excess("lab", over).endswith("; and 2 more")


def test_an_error_that_passes_is_answered_as_one_that_may_be_tried_again() -> None:
    error = busy("lab", "function_concurrency", 3, 3, 0.2)
    assert (status_of(error), error.token, error.to_dict()["family"]) == (429, "quotaExceeded", "tooManyRequests")
    assert ("retry-after", "1") in problem_answer(error, "r").headers
    refused = exceeded("lab", find_excess(Limits(cpu=2), {"cpu": 2}, {"cpu": 1}), VmSpec(image="tiny"))
    assert status_of(refused) == 403


def test_there_is_one_in_each_project() -> None:
    assert (QUOTA.admission.only_name, quota_key("lab")) == ("project", "/quota/lab/project")
