"""Quotas of single users at the real API servers over a real store: whatever comes at once, no user gets more than was granted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from tests.scenario.api.test_api_quotas import again, grant, refuse, remove, run_together, vm
from tests.scenario.api_lab import ApiLab
from tests.scenario.people.test_people import add_user, create, log_in

from weft.client import Client
from weft.contracts.clock import SystemClock
from weft.objects.errors import Forbidden, InvalidInput, WeftError
from weft.store.sqlite.store import SqliteStore


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    folder = tmp_path_factory.mktemp("userquotas")
    lab = ApiLab(folder, SqliteStore(folder / "store.db", SystemClock()))
    for name in ("ann", "bob"):
        add_user(lab, name)
    yield lab
    lab.close()


def share(lab: ApiLab, project: str, **limits: Any) -> tuple[Client, Client]:
    """The clients of ann and bob, editors of a new project with this quota."""
    grant(lab, project, **limits)
    create(lab, "rolebinding", project, role="editor", project=project, users=["ann", "bob"])
    ann, bob = log_in(lab, "ann"), log_in(lab, "bob")
    ann.project = bob.project = project
    return ann, bob


def test_each_user_has_the_same_and_one_has_more(lab: ApiLab) -> None:
    ann, bob = share(lab, "each", cpu=8, per_user={"cpu": 1, "instances": 3}, users={"ann": {"cpu": 3}})
    ann.create(vm("a1", cpu=2))
    error = refuse(lambda: ann.create(vm("a2", cpu=2)))
    assert error.message == "project each, user ann: cpu: 2 of 3 cores used, 2 more requested"
    assert error.details == {"used": {"cpu": 2}, "requested": {"cpu": 2}, "limit": {"cpu": 3}, "user": "ann"}
    assert "weft quota show -p each --user ann" in (error.hint or "")
    bob.create(vm("b1", cpu=1))
    assert refuse(lambda: bob.create(vm("b2", cpu=0.1))).details["limit"] == {"cpu": 1}
    for number in (2, 3):
        ann.create(vm(f"a{number}", cpu=0.25))
    assert refuse(lambda: ann.create(vm("a4", cpu=0.1))).details["used"] == {"instances": 3}, (
        "per_user's, as ann has no own"
    )


def test_the_project_s_limit_holds_beside_those_of_its_users(lab: ApiLab) -> None:
    ann, bob = share(lab, "both", cpu=3, per_user={"cpu": 2})
    ann.create(vm("a1", cpu=2))
    error = refuse(lambda: bob.create(vm("b1", cpu=2)))
    assert error.message == "project both: cpu: 2 of 3 cores used, 2 more requested"
    assert "user" not in error.details
    bob.create(vm("b1", cpu=1))


def test_an_object_counts_for_who_created_it_whoever_changes_it(lab: ApiLab) -> None:
    ann, bob = share(lab, "whose", per_user={"cpu": 2})
    ann.create(vm("web", cpu=1.5))
    error = refuse(lambda: bob.patch("vm", "web", {"spec": {"cpu": 2.5}}))
    assert (error.details["user"], error.details["used"], error.field) == ("ann", {"cpu": 1.5}, "spec.cpu")
    bob.patch("vm", "web", {"spec": {"cpu": 2}})
    bob.create(vm("own", cpu=2))
    refuse(lambda: ann.create(vm("more", cpu=0.1)))
    remove(lab, bob, "vm", "web")
    ann.create(vm("more", cpu=2))


def test_a_user_s_tokens_are_the_user_and_any_other_token_counts_alone(lab: ApiLab) -> None:
    ann, _ = share(lab, "tokens", per_user={"instances": 1})
    made = ann.create(
        {"kind": "token", "name": "ann-q", "spec": {"use": "access", "role": "editor", "project": "tokens"}}
    )
    own = again(lab, ann)
    own.context.token = made["secret"]
    ann.create(vm("web"))
    assert refuse(lambda: again(lab, own).create(vm("db"))).details["user"] == "ann"
    program = lab.with_token(use="access", role="editor", project="tokens")
    program.project = "tokens"
    program.create(vm("db"))
    error = refuse(lambda: program.create(vm("third")))
    assert error.details["user"].startswith("token:") and error.message.startswith("project tokens, token t")


def test_of_a_user_s_racing_requests_only_those_pass_that_fit_together(lab: ApiLab) -> None:
    ann, bob = share(lab, "race", per_user={"cpu": 1.1})
    ann.create(vm("base", cpu=0.1))
    clients = [again(lab, ann) for _ in range(3)]
    for number in range(15):
        results = run_together(
            partial(clients[0].create, vm(f"c{number}", cpu=0.5)),
            partial(clients[1].batch, "vm", [vm(f"b{number}", cpu=0.5)]),
            partial(clients[2].patch, "vm", "base", {"spec": {"cpu": 0.6}}),
            partial(bob.create, vm(f"o{number}", cpu=1)),
        )
        assert not isinstance(results[3], WeftError), "what others count is theirs"
        cpu = {one["name"]: one["spec"]["cpu"] for one in ann.list("vm").items if one["created_by"] == "ann"}
        assert sum(cpu.values()) == pytest.approx(1.1), (cpu, results)
        for name in [*cpu, f"o{number}"]:
            if name != "base":
                remove(lab, ann, "vm", name)
        ann.patch("vm", "base", {"spec": {"cpu": 0.1}})


def test_what_is_applied_counts_for_the_user_as_a_whole(lab: ApiLab) -> None:
    ann, _ = share(lab, "whole", users={"ann": {"instances": 2}})
    with pytest.raises(Forbidden) as caught:
        ann.apply([vm(f"a{number}") for number in range(3)])
    assert caught.value.token == "quotaExceeded"
    assert ann.list("vm").items == []
    results = ann.batch("vm", [vm(f"b{number}") for number in range(3)])
    assert ["object" in one for one in results] == [True, True, False]


def test_a_limit_below_what_a_user_has_ends_nothing_and_refuses_growth(lab: ApiLab) -> None:
    ann, bob = share(lab, "below")
    ann.create(vm("web", cpu=4))
    quota = {"kind": "quota", "name": "project", "project": "below", "spec": {"users": {"ann": {"cpu": 1}}}}
    lab.client.create(quota)
    assert ann.get("vm", "web")["spec"]["cpu"] == 4
    assert refuse(lambda: ann.create(vm("db", cpu=0.1))).details["used"] == {"cpu": 4}
    ann.patch("vm", "web", {"spec": {"cpu": 3}})
    bob.create(vm("own", cpu=8))
    lab.client.patch("quota", "project", {"spec": {"users": {"ann": {"cpu": None}}}}, project="below")
    assert lab.client.get("quota", "project", project="below")["spec"]["users"] == {}, "without a limit, no entry"
    ann.create(vm("db", cpu=5))


@pytest.mark.parametrize(
    "limits",
    [
        {"per_user": {"cpu": -1}},
        {"per_user": {"per_user": {}}},
        {"users": {"ann": {"cores": 1}}},
        {"users": {"ann": {"cpu": "many"}}},
        {"users": {"Ann!": {"cpu": 1}}},
        {"users": {"x" * 10_000: {"cpu": 1}}},
        {"users": {f"u{number}": {"cpu": 1} for number in range(5000)}},
        {"users": ["ann"]},
        {"users": {"ann": 2}},
    ],
)
def test_nonsense_is_refused_with_its_field(lab: ApiLab, limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        lab.client.create({"kind": "quota", "name": "project", "project": "default", "spec": limits})
    assert (caught.value.field or "").startswith("spec.")
    assert len(caught.value.message) < 300
