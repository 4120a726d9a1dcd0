"""What users may do follows from the role bindings of the moment."""

from __future__ import annotations

from weft.kinds.rolebinding import RoleBindingSpec
from weft.kinds.token import TokenSpec
from weft.objects.identity import Ref
from weft.objects.roles import Grant
from weft.trust.credentials import Actor, StoredToken, make_actor
from weft.trust.directory import Account, Directory

ANN = Ref(kind="user", name="ann", uid="u1")


class Fabric:
    def __init__(self) -> None:
        self.accounts = {"ann": Account("u1", False, ("staff",))}
        self.bindings = [RoleBindingSpec(role="viewer", project="lab", groups=["staff"])]
        self.version = 0
        self.directory = Directory(self.accounts.get, lambda: self.bindings, lambda: self.version)

    def find(self, *claims: str) -> object:
        return self.directory.find_grants(ANN, claims)


def test_bindings_by_name_group_and_claim_add_up() -> None:
    fabric = Fabric()
    fabric.bindings += [
        RoleBindingSpec(role="editor", project="own", users=["ann", "bob"]),
        RoleBindingSpec(role="auditor", claims=["audit"]),
        RoleBindingSpec(role="admin", project="theirs", users=["bob"], groups=["others"], claims=["staff"]),
        RoleBindingSpec(role="viewer", project="lab", users=["ann"]),
    ]
    assert fabric.find() == (Grant("viewer", "lab"), Grant("editor", "own"))
    assert fabric.find("audit") == (Grant("auditor", None), Grant("viewer", "lab"), Grant("editor", "own"))
    assert fabric.find("ann") == fabric.find()  # a claim is no name


def test_a_change_counts_with_the_next_question() -> None:
    fabric = Fabric()
    assert fabric.find() == (Grant("viewer", "lab"),)
    fabric.bindings, fabric.version = [], 1
    assert fabric.find() == ()
    fabric.bindings, fabric.version = [RoleBindingSpec(role="editor", users=["ann"])], 2
    assert fabric.find() == (Grant("editor", None),)
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
        spec = TokenSpec(use="access", role=role, project=project)  # type: ignore[arg-type]
        return make_actor(StoredToken("t", spec, ANN), fabric.directory.find_grants, 1.0)

    whole, viewer, within = make("", None), make("viewer", None), make("", "lab")
    assert whole.permits("write", "own") and whole.permits("read", "lab") and not whole.permits("write", "lab")
    assert viewer.permits("read", "own") and not viewer.permits("write", "own")
    assert within.permits("read", "lab") and not within.permits("read", "own")
    assert make("admin", None).permits("write", "own") and not make("admin", None).permits("fabric", None)
    assert (whole.find_projects("read"), whole.find_projects("write")) == ({"lab", "own"}, {"own"})
    assert within.find_projects("read") == {"lab"} and within.find_projects("fabric") == frozenset()
    assert not any(actor.permits("read", None) for actor in (whole, viewer, within))
