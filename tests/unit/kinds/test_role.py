"""An own role lists permissions that exist; everything else is refused with its field and what to do."""

from __future__ import annotations

import pytest

from weft.kinds.permissions import PERMISSIONS, find_built_in, find_permissions, find_right_to_write, list_verbs
from weft.kinds.registry import KINDS
from weft.kinds.role import ROLE, RoleSpec, check_role
from weft.objects.errors import InvalidInput
from weft.objects.roles import RIGHTS


@pytest.mark.parametrize(
    ("rules", "field", "hint"),
    [
        ({}, "spec.rules", "give a rule, like vm: [get, list]"),
        ({"vm": []}, "spec.rules.vm", "give verbs, or leave the kind out"),
        ({"vms": ["get"]}, "spec.rules.vms", "did you mean vm?"),
        ({"x" * 500: ["get"]}, "spec.rules." + "x" * 60, "kinds: accounting, "),
        ({"vm": ["strat"]}, "spec.rules.vm", "did you mean start?"),
        ({"quota": ["start"]}, "spec.rules.quota", "verbs: create, delete, get, list, update, or * for all"),
        ({"*": ["fly"]}, "spec.rules.*", "verbs: "),
        ({"allocation": ["create"]}, "spec.rules.allocation", "verbs: get, list, or * for all"),  # nobody may
        ({"vm": ["get:list"]}, "spec.rules.vm", ""),
        ({"vm:get": ["get"]}, "spec.rules.vm:get", ""),
        ({"": ["get"]}, "spec.rules.", "kinds: "),
    ],
)
def test_a_rule_that_allows_nothing_or_names_nothing_is_refused(
    rules: dict[str, list[str]], field: str, hint: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_role(RoleSpec(rules=rules))
    assert refused.value.field == field and (refused.value.hint or "").startswith(hint)
    assert refused.value.hint and len(str(refused.value)) < 300


def test_verbs_are_kept_once_and_in_order() -> None:
    spec = RoleSpec(rules={"vm": ["stop", "get", "stop"]})
    check_role(spec)
    assert spec.rules == {"vm": ["get", "stop"]}


def test_a_star_stands_for_every_kind_and_every_verb() -> None:
    assert find_permissions({"vm": ["get", "start"]}) == {"vm:get", "vm:start"}
    assert find_permissions({"vm": ["*"]}) == {f"vm:{verb}" for verb in list_verbs("vm")}
    assert find_permissions({"*": ["start"]}) == {"vm:start", "rebalanceplan:start", "container:start"}
    assert find_permissions({"*": ["*"]}) == frozenset(PERMISSIONS) == find_built_in("fabric-admin", True)
    assert find_permissions({"unicorn": ["get"], "vm": ["fly"]}) == frozenset()  # of another version of weft


def test_every_kind_can_be_read_by_a_permission_and_every_verb_has_one() -> None:
    for kind in KINDS:
        assert {f"{kind.name}:get", f"{kind.name}:list"} <= PERMISSIONS.keys()
        for verb in kind.verbs:
            assert f"{kind.name}:{verb.name}" in PERMISSIONS, "a verb without needs is allowed to nobody"
    assert all(permission.right in RIGHTS["fabric-admin"] for permission in PERMISSIONS.values())


def test_an_administrator_without_a_project_has_everything_and_one_of_a_project_has_not() -> None:
    whole, of_project = find_built_in("admin", True), find_built_in("admin", False)
    assert whole == find_built_in("fabric-admin", True) and of_project is not None and "node:cordon" not in of_project
    assert find_built_in("starter", True) is None


def test_the_names_of_built_in_roles_are_taken() -> None:
    assert set(ROLE.admission.reserved_names) == set(RIGHTS)


def test_no_verb_lowers_the_right_that_a_change_of_its_kind_takes() -> None:
    for kind in KINDS:
        for verb in ("create", "update", "delete"):
            own = kind.verb(verb)
            assert own is None or not own.needs or own.needs == find_right_to_write(kind), f"{kind.name}:{verb}"
