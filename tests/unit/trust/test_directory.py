"""What users may do follows from the role bindings of the moment."""

from __future__ import annotations

from typing import Any

from weft.kinds.rolebinding import RoleBindingSpec
from weft.kinds.token import TokenMarks, TokenSpec
from weft.objects.identity import Ref
from weft.trust.credentials import Actor, StoredToken, make_actor
from weft.trust.directory import Account, Directory

ANN = Ref(kind="user", name="ann", uid="u1")


class Fabric:
    def __init__(self) -> None:
        self.accounts = {"ann": Account("u1", False, ("staff",))}
        self.bindings = [RoleBindingSpec(role="viewer", project="lab", groups=["staff"])]
        self.roles = {"starter": frozenset({"vm:get", "vm:start"})}
        self.version = 0
        self.directory = Directory(
            self.accounts.get, lambda: self.bindings, lambda role: self.roles.get(role), lambda: self.version
        )

    def find(self, *claims: str) -> object:
        """The roles and projects."""
        found = self.directory.find_grants(ANN, claims)
        return None if found is None else tuple(grant[:2] for grant in found)


def test_bindings_by_name_group_and_claim_add_up() -> None:
    fabric = Fabric()
    fabric.bindings += [
        RoleBindingSpec(role="editor", project="own", users=["ann", "bob"]),
        RoleBindingSpec(role="auditor", claims=["audit"]),
        RoleBindingSpec(role="admin", project="theirs", users=["bob"], groups=["others"], claims=["staff"]),
        RoleBindingSpec(role="viewer", project="lab", users=["ann"]),
    ]
    assert fabric.find() == (("viewer", "lab"), ("editor", "own"))
    assert fabric.find("audit") == (("auditor", None), ("viewer", "lab"), ("editor", "own"))
    assert fabric.find("ann") == fabric.find()  # a claim is no name


def test_a_change_counts_with_the_next_question() -> None:
    fabric = Fabric()
    assert fabric.find() == (("viewer", "lab"),)
    fabric.bindings, fabric.version = [], 1
    assert fabric.find() == ()
    fabric.bindings, fabric.version = [RoleBindingSpec(role="editor", users=["ann"])], 2
    assert fabric.find() == (("editor", None),)
    fabric.accounts["ann"], fabric.version = Account("u1", True, ()), 3
    assert fabric.find() is None
    fabric.accounts["ann"] = Account("u2", False, ())  # another person of the name
    assert fabric.find() is None
    del fabric.accounts["ann"]
    assert fabric.find() is None


def test_a_token_s_limit_and_its_user_s_rights_must_both_allow_it() -> None:
    fabric = Fabric()
    fabric.bindings.append(RoleBindingSpec(role="editor", project="own", users=["ann"]))

    def make(role: str, project: str | None) -> Actor:
        spec = TokenSpec(use="access", role=role, project=project)
        return make_actor(StoredToken("t", spec, ANN), fabric.directory, 1.0)

    whole, viewer, within = make("", None), make("viewer", None), make("", "lab")
    assert (
        whole.permits("vm:create", "own") and whole.permits("vm:get", "lab") and not whole.permits("vm:create", "lab")
    )
    assert viewer.permits("vm:get", "own") and not viewer.permits("vm:create", "own")
    assert within.permits("vm:get", "lab") and not within.permits("vm:get", "own")
    assert make("admin", None).permits("vm:create", "own") and not make("admin", None).permits("node:cordon", None)
    assert (whole.find_projects("vm:get"), whole.find_projects("vm:create")) == ({"lab", "own"}, {"own"})
    assert within.find_projects("vm:get") == {"lab"} and within.find_projects("node:cordon") == frozenset()
    assert not any(actor.permits("vm:get", None) for actor in (whole, viewer, within))


def test_an_own_role_gives_what_it_lists_from_the_moment_it_is_changed() -> None:
    fabric = Fabric()
    fabric.bindings = [RoleBindingSpec(role="starter", project="lab", users=["ann"])]

    def make(**token: Any) -> Actor:
        return make_actor(StoredToken("t", TokenSpec(use="access", **token), ANN), fabric.directory, 1.0)

    ann, program = make(role=""), StoredToken("p", TokenSpec(use="access", role="starter", project="lab"))
    assert ann.permits("vm:start", "lab") and not ann.permits("vm:stop", "lab") and not ann.permits("vm:start", "own")
    assert not ann.permits("vm:start", None) and ann.find_projects("vm:start") == {"lab"}
    assert make_actor(program, fabric.directory, 1.0).permits("vm:start", "lab")
    assert not make(role="viewer").permits("vm:start", "lab")  # the token's role is a limit …
    fabric.bindings = [RoleBindingSpec(role="editor", project="lab", users=["ann"])]
    fabric.version = 1
    assert make(role="starter").permits("vm:start", "lab")
    assert not make(role="starter").permits("vm:stop", "lab")  # … and so is an own one
    fabric.roles, fabric.version = {"starter": frozenset({"vm:stop"})}, 2
    assert make(role="starter").permits("vm:stop", "lab") and not make(role="starter").permits("vm:start", "lab")
    del fabric.roles["starter"]
    fabric.version = 3
    assert not make_actor(program, fabric.directory, 1.0).permits("vm:stop", "lab")


def test_groups_of_the_provider_get_own_roles_as_groups_here_do() -> None:
    fabric = Fabric()
    fabric.bindings = [RoleBindingSpec(role="starter", project="lab", claims=["ops"])]
    login = TokenSpec(use="access", role="")
    assert make_actor(StoredToken("t", login, ANN, TokenMarks(claims=["ops"])), fabric.directory, 1.0).permits(
        "vm:start", "lab"
    )
    assert not make_actor(StoredToken("t", TokenSpec(use="access", role=""), ANN), fabric.directory, 1.0).grants


def test_a_directory_that_was_read_once_knows_its_bindings() -> None:
    bindings = [RoleBindingSpec(role="viewer", users=["ann"])]
    directory = Directory({"ann": Account("u1", False, ())}.get, lambda: bindings, lambda role: None, lambda: None)
    assert [grant[:2] for grant in directory.find_grants(ANN, ()) or ()] == [("viewer", None)]
