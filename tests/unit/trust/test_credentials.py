"""Credentials become an actor, or are refused with no more than a stranger may know."""

from __future__ import annotations

from typing import Any

import pytest

from weft.kinds.permissions import PERMISSIONS
from weft.kinds.token import TokenMarks, TokenSpec
from weft.objects.errors import Forbidden, NotAuthenticated
from weft.objects.identity import ServerIdentity
from weft.trust.credentials import (
    Actor,
    SignedRequest,
    StoredToken,
    check_bearer,
    check_certificate,
    check_signature,
    read_bearer,
)
from weft.trust.directory import Directory
from weft.trust.peer import Peer
from weft.trust.seal import SealKeys
from weft.trust.tokens import Token, hash_secret

NOW = 1_700_000_000.0
SECRET = "ab" * 32
TEXT, SHA256 = f"weft_eve_{SECRET}", hash_secret(SECRET)


def spec(**more: Any) -> TokenSpec:
    return TokenSpec(**{"use": "access", **more})


OWN = {"starter": frozenset({"vm:get", "vm:start"})}
DIRECTORY = Directory(lambda name: None, lambda: [], OWN.get, lambda: 0)


def check(token: Token, stored: TokenSpec, sha256: str = SHA256) -> Actor:
    return check_bearer(token, StoredToken(token.id, stored, marks=TokenMarks(sha256=sha256)), DIRECTORY, NOW)


def make(name: str, role: str, project: str | None = None) -> Actor:
    return Actor("person", name, name[0], (DIRECTORY.find_grant(role, project),))


@pytest.mark.parametrize("text", ["", "Bearer", f"Basic {TEXT}", "Bearer weft_x", f"Bearer {TEXT}0", TEXT])
def test_what_is_no_bearer_token_is_refused(text: str) -> None:
    with pytest.raises(NotAuthenticated, match="the token is not valid"):
        read_bearer(text)


def test_a_token_is_its_owner_with_its_role_and_project() -> None:
    token = read_bearer(f"bearer {TEXT}")
    assert check(token, spec(subject="ann", role="admin")) == Actor(
        "person", "token:eve", "eve", (DIRECTORY.find_grant("admin", None),)
    )
    actor = check(token, spec(role="invoker", project="lab"))
    assert (actor.name, actor.project, actor.permits("node:cordon", None)) == ("token:eve", "lab", False)
    joiner = check(token, spec(use="join", role="admin"))
    assert joiner.kind == "joiner" and not joiner.permits("vm:get", None)


@pytest.mark.parametrize(("use", "sha256"), [("access", ""), ("access", "0" * 64), ("access-key", SHA256)])
def test_a_wrong_secret_is_refused(use: str, sha256: str) -> None:
    with pytest.raises(NotAuthenticated, match="the token is not valid"):
        check(read_bearer(f"Bearer {TEXT}"), spec(use=use), sha256)


def test_a_token_is_worth_nothing_from_the_moment_it_expires() -> None:
    token = read_bearer(f"Bearer {TEXT}")
    assert check(token, spec(expires_at=NOW + 1))
    with pytest.raises(NotAuthenticated, match="token eve has expired"):
        check(token, spec(expires_at=NOW))


def test_an_unknown_access_key_is_refused_before_anything_is_verified() -> None:
    day = "20231114"
    scope = f"Credential=WEFTX/{day}/weft/lambda/aws4_request"
    text = f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host;x-amz-date, Signature={'0' * 64}"
    request = SignedRequest("POST", "/", "", {"host": ["h"], "x-amz-date": [f"{day}T221320Z"]}, b"")
    with pytest.raises(NotAuthenticated) as refused:
        check_signature(text, request, lambda key_id: None, DIRECTORY, SealKeys.of(b"k" * 32), NOW)
    assert refused.value.token == "unknownAccessKey"
    with pytest.raises(NotAuthenticated) as refused:
        check_signature(text, request, lambda _: StoredToken("ci", spec()), DIRECTORY, SealKeys.of(b"k" * 32), NOW)
    assert refused.value.token == "invalidSignature"


def test_a_certificate_counts_from_its_begin_until_its_end() -> None:
    peer = Peer("n1", NOW, NOW + 10, "k")
    other = Peer(None, NOW, NOW + 10, "k", ServerIdentity("s2", "u2"))
    assert check_certificate(peer, NOW) == Actor("node", "node:n1", "n1", peer=peer)
    assert check_certificate(other, NOW) == Actor("server", "server:s2", "u2", peer=other)
    for one, at in ((peer, NOW - 1), (peer, NOW + 10), (other, NOW + 10)):
        with pytest.raises(NotAuthenticated) as refused:
            check_certificate(one, at)
        assert refused.value.token == "certificateExpired"


def test_what_an_actor_may_do_follows_from_its_role_and_project() -> None:
    admin, viewer = make("ann", "admin"), make("vic", "viewer")
    invoker = make("ci", "invoker", "lab")
    admin.require("node:cordon", None, "x")
    admin.require("function:invoke", "any", "x")
    invoker.require("function:invoke", "lab", "x")
    for refused in (
        lambda: viewer.require("vm:create", "any", "x"),
        lambda: invoker.require("vm:create", "lab", "x"),
        lambda: viewer.require("function:invoke", "any", "x"),
        lambda: invoker.require("function:invoke", "other", "x"),
    ):
        with pytest.raises(Forbidden) as found:
            refused()
        assert found.value.token == "forbidden" and found.value.details["permission"] in (found.value.hint or "")


def test_an_administrator_of_a_project_has_no_right_outside_it() -> None:
    actor = make("ann", "admin", "lab")
    actor.require("vm:create", "lab", "create a VM")
    with pytest.raises(Forbidden, match="ann is limited to project lab: it can't create a VM in other"):
        actor.require("vm:create", "other", "create a VM")
    with pytest.raises(Forbidden, match="it can't cordon a node outside it"):
        actor.require("node:cordon", None, "cordon a node")
    for permission, helps in (("vm:list", True), ("usage:get", False)):
        with pytest.raises(Forbidden) as refused:
            actor.require(permission, None, "x")
        assert ("-p lab" in (refused.value.hint or "")) == helps and "token for all projects" in (
            refused.value.hint or ""
        )
    with pytest.raises(Forbidden, match="has role admin"):
        actor.require("node:cordon", "lab", "x")


def test_nodes_and_joining_machines_have_no_right_of_people() -> None:
    for kind in ("node", "joiner"):
        actor = Actor(kind, "n", "n", (DIRECTORY.find_grant("admin", None),))
        assert not any(actor.permits(permission, None) for permission in PERMISSIONS)
