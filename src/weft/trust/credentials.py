"""Turns credentials into an actor: a bearer token, an access key's signature, or a node's certificate. The API and the port for
functions' callers share these rules and messages; each finds the token's object in its own copy of the store. Pure.

A refusal reveals no more than a stranger may know."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from weft.contracts.driver.function import REGION
from weft.kinds.permissions import PERMISSIONS, find_least_role
from weft.kinds.token import SERVER_USE, TokenMarks, TokenSpec
from weft.objects.errors import Forbidden, NotAuthenticated
from weft.objects.identity import CLUSTER_PREFIX, NODE_PREFIX, SERVER_PREFIX, Ref
from weft.objects.roles import ALL, RIGHTS, Grant
from weft.trust.access_keys import derive_secret, place_of_access_key
from weft.trust.audit_chain import AuditActor
from weft.trust.directory import Directory
from weft.trust.peer import Peer
from weft.trust.seal import SealKeys
from weft.trust.sigv4 import check_scope, read_authorization, verify
from weft.trust.tokens import Token, parse_token, verify_secret

TOKEN_PREFIX = "token:"  # of the name of what acts with a token that belongs to no user
LINK_AGAIN = "link the clusters again: weft cluster link-token at the one, weft cluster link at the other"
SERVICE = "lambda"  # that signatures are for


class Actor(msgspec.Struct, frozen=True, dict=True):
    """A person (or program, or linked cluster) with a token, a node or another server of the fabric with its certificate, a joining
    machine, a cluster that links, or a stranger who wants to log in."""

    kind: Literal["person", "node", "server", "joiner", "linker", "stranger"]
    # For people, the journal and the audit log: a user's, or token:ID, which no user's name looks like; node:UID, server:NAME,
    # cluster:NAME.
    name: str
    id: str  # the token's name, or the uid of the node or the server
    grants: tuple[Grant, ...] = ()  # of a person
    limit: Grant | None = None  # of a user's token: what it may do at most
    user: Ref | None = None  # whose token it is
    peer: Peer | None = None  # the certificate of the node or the server
    own_project: str = ""  # of a linked cluster: which of its own projects it asks for

    @property
    def creator(self) -> str:
        """Creator of objects: the person's name."""
        return self.name if self.kind == "person" else ""

    @functools.cached_property
    def role(self) -> str:
        """All roles that it has, somewhere, for people."""
        return ", ".join(sorted({grant.role for grant in self.grants}))

    @functools.cached_property
    def project(self) -> str | None:
        """The only project in which it has rights; None: there are several, or all."""
        if self.limit is not None and self.limit.project is not None:
            return self.limit.project
        projects = {grant.project for grant in self.grants}
        return projects.pop() if len(projects) == 1 else None

    @functools.cached_property
    def audited(self) -> AuditActor:
        """Actor in the audit log."""
        if self.kind == "stranger":
            return AuditActor(kind="nobody")
        return AuditActor(kind=self.kind, name=self.name, role=self.role, project=self.project or "", id=self.id)

    @functools.cached_property
    def is_cluster(self) -> bool:
        """Whether it is a linked cluster, which has rights only on what it has made itself."""
        return self.kind == "person" and self.name.startswith(CLUSTER_PREFIX)

    def ask_for(self, own_project: str) -> Actor:
        """The same actor; as a linked cluster with its rights for ``own_project``, a project there, alone."""
        if not self.is_cluster:
            return self
        kept = tuple(grant for grant in self.grants if grant.peer_project in ("", own_project))
        return msgspec.structs.replace(self, grants=kept, own_project=own_project)

    def is_kept_from(self, creator: str) -> bool:
        """Whether objects that ``creator`` made are not there for it."""
        return self.is_cluster and creator != self.name

    @functools.cached_property
    def is_fixed(self) -> bool:
        """Whether no change of users, role bindings or roles changes what it may do."""
        return self.user is None and all(grant.role in RIGHTS for grant in self.grants)

    @functools.cached_property
    def _everywhere(self) -> frozenset[str]:
        """The permissions that it has in all projects."""
        if self.kind != "person" or (self.limit is not None and self.limit.project is not None):
            return frozenset()
        held = [grant.permissions for grant in self.grants if grant.project is None]
        every = (
            held[0] if len(held) == 1 else frozenset[str]().union(*held)
        )  # one role's set is shared by all who have it
        return every if self.limit is None else every & self.limit.permissions

    @functools.cached_property
    def administers_all(self) -> bool:
        """Whether it administers the whole fabric."""
        return self.permits("quota:update", None)

    def permits(self, permission: str, project: str | None) -> bool:
        """Whether it has ``permission`` (KIND:VERB) in ``project`` (None: in no project, or in all of them)."""
        if permission in self._everywhere:  # answers most requests
            return True
        if self.kind != "person" or (self.limit is not None and not self.limit.gives(permission, project)):
            return False
        return any(grant.gives(permission, project) for grant in self.grants)

    def find_projects(self, permission: str) -> frozenset[str] | None:
        """The projects in which it has ``permission``; None: all."""
        if self.permits(permission, None):
            return None
        named = {grant.project for grant in self.grants} | ({self.limit.project} if self.limit else set())
        return frozenset(project for project in named if project is not None and self.permits(permission, project))

    def require_somewhere(self, permission: str, what: str) -> None:
        """Raise Forbidden unless it has ``permission`` in a project."""
        if self.find_projects(permission) == frozenset():
            raise self.refuse(permission, self.project, what, anywhere=True)

    def require(self, permission: str, project: str | None, what: str) -> None:
        """Raise Forbidden unless it has ``permission`` in ``project``."""
        if not self.permits(permission, project):
            raise self.refuse(permission, project, what)

    def refuse(self, permission: str, project: str | None, what: str, *, anywhere: bool = False) -> Forbidden:
        """Why it may not do ``what``: it has no role, its token is limited to another project, or its role lacks the permission.
        ``anywhere``: any project would do."""
        takes = f"it takes {permission} (role {find_least_role(permission)})"
        if project is None and not anywhere and self.grants:
            takes += " in all projects"
        refusal = self._refuse(permission, project, what, takes)
        refusal.details["permission"] = permission
        return refusal

    def _refuse(self, permission: str, project: str | None, what: str, takes: str) -> Forbidden:
        if not self.grants:
            return Forbidden(
                f"{self.name} has no role: {self.name} can't {what}",
                hint=f"{takes}: ask an administrator: weft rolebinding create NAME --role ROLE --users {self.name}",
            )
        if self.user is not None:
            return self._refuse_user(takes, project, what)
        if self.is_cluster:
            return self._refuse_cluster(permission, project, what)
        if self.project is not None and self.project != project:
            where = f"in {project[:80]}" if project else "outside it"
            known = PERMISSIONS.get(permission)
            inside = f"give -p {self.project}, or " if known is not None and known.in_project else ""
            return Forbidden(
                f"{self.name} is limited to project {self.project}: it can't {what} {where}",
                hint=f"{takes}: {inside}use a token for all projects",
            )
        hint = f"{takes}: weft token create NAME --role ROLE, or ask an administrator"
        return Forbidden(f"{self.name} has role {self.role}: it can't {what}", hint=hint)

    def _refuse_cluster(self, permission: str, project: str | None, what: str) -> Forbidden:
        where = f" in {project[:80]}" if project else ""
        if project and not self.own_project:
            return Forbidden(
                f"{self.name} can't {what}{where}: it doesn't say which of its own projects it asks for",
                hint="update that cluster: older releases don't say it",
            )
        whose = f" for its project {self.own_project[:80]}" if self.own_project else ""
        return Forbidden(
            f"{self.name} can't {what}{where}: the link doesn't grant {permission}{whose} there",
            hint="compare grants and projects of the link at both clusters: weft cluster list -o yaml",
        )

    def _refuse_user(self, takes: str, project: str | None, what: str) -> Forbidden:
        where = f" in {project[:80]}" if project else ""
        roles = sorted({grant.role for grant in self.grants if grant.project in (None, project)})
        held = (
            f"only role {', '.join(roles)}{where}"
            if roles
            else f"no role{where}"
            if where
            else "roles in projects only"
        )
        if self.limit is not None:
            held += f", and this token allows {self.limit.role} at most"
        return Forbidden(
            f"{self.name} has {held}: {self.name} can't {what}{where}",
            hint=f"{takes}: ask an administrator (weft rolebinding create); weft whoami shows your roles",
        )


class StoredToken(NamedTuple):
    """A token as its object has it; ``owner`` is the user whose it is, None for one that belongs to no user."""

    name: str
    spec: TokenSpec
    owner: Ref | None = None
    marks: TokenMarks = TokenMarks()


class SignedRequest(msgspec.Struct, frozen=True):
    """The parts of a request that its signature covers, as they came."""

    method: str
    path: str
    query: str
    headers: Mapping[str, Sequence[str]]  # by name in lower case
    body: bytes


def missing_credentials(hint: str) -> NotAuthenticated:
    return NotAuthenticated("the request has no credentials", hint=hint)


def invalid_token() -> NotAuthenticated:
    return NotAuthenticated(
        "the token is not valid",
        hint="a token looks like weft_ID_SECRET; if it was deleted: weft login gets a new one",
    )


def read_bearer(authorization: str) -> Token:
    """The token in an Authorization header. Raises NotAuthenticated."""
    scheme, _, text = authorization.partition(" ")
    token = parse_token(text.strip()) if scheme.lower() == "bearer" else None
    if token is None:
        raise invalid_token()
    return token


def check_bearer(token: Token, stored: StoredToken, directory: Directory, now: float) -> Actor:
    """The owner of a token that is ``stored``. ``now``: unix seconds. Raises NotAuthenticated."""
    if not verify_secret(token.secret, stored.marks.sha256) or stored.spec.use == "access-key":
        raise invalid_token()
    return make_actor(stored, directory, now)


def check_signature(
    authorization: str,
    request: SignedRequest,
    find: Callable[[str], StoredToken | None],
    directory: Directory,
    keys: SealKeys,
    now: float,
) -> Actor:
    """The owner of the access key that signed ``request``. ``find`` gives the one token with a key's id. Raises
    NotAuthenticated."""
    signed = read_authorization(authorization)
    dates = request.headers.get("x-amz-date")
    check_scope(signed, REGION, SERVICE, dates[0] if dates else "", now)
    found = find(signed.key_id)
    if found is None:
        raise NotAuthenticated(
            "the access key is not valid: no key has that id",
            reason="unknownAccessKey",
            hint="weft token list shows the access keys",
        )
    *others, last = _list_secrets(found.marks, keys)
    check = functools.partial(
        verify,
        signed,
        method=request.method,
        path=request.path,
        query=request.query,
        headers=request.headers,
        body_sha256=hashlib.sha256(request.body).hexdigest(),
    )
    for secret in others:
        with contextlib.suppress(NotAuthenticated):
            check(secret)
            return make_actor(found, directory, now)
    check(last)
    return make_actor(found, directory, now)


def _list_secrets(marks: TokenMarks, keys: SealKeys) -> list[str]:
    """List what the secret of an access key may be: one of an earlier release isn't stored, and follows from one of the keys."""
    if marks.sealed:
        return [keys.unseal(marks.sealed, place_of_access_key(marks.key_id)).decode()]
    return [derive_secret(key, marks.key_id) for key in keys.keys]


def check_certificate(peer: Peer, now: float) -> Actor:
    """The node or the server of a certificate that TLS has verified; ``enrolment.py`` checks whether a newer one has replaced a
    node's.

    Raises NotAuthenticated (``certificateExpired``)."""
    whose, again = (
        ("node", "weft token create --join --node NAME, and join again with the same --state")
        if peer.server is None
        else ("server", "restart that server: it renews it")
    )
    if not peer.begins <= now < peer.ends:
        begin, end, here = (
            datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M")
            for at in (peer.begins, peer.ends, now)
        )
        raise NotAuthenticated(
            f"the {whose}'s certificate is valid from {begin} to {end} UTC, but the server's clock says {here}",
            reason="certificateExpired",
            hint=f"if that clock is right: {again}",
        )
    if peer.server is not None:
        return Actor("server", f"{SERVER_PREFIX}{peer.server.name}", peer.server.uid, peer=peer)
    return Actor("node", f"{NODE_PREFIX}{peer.node_uid}", peer.node_uid or "", peer=peer)


def has_expired(spec: TokenSpec, now: float) -> bool:
    return spec.expires_at is not None and spec.expires_at <= now


def make_actor(stored: StoredToken, directory: Directory, now: float) -> Actor:
    """The owner of a token, with the rights that the token or its user has now. Raises NotAuthenticated if it has expired, or if
    the user was deleted or disabled."""
    name, spec = stored.name, stored.spec
    if has_expired(spec, now):
        again = "weft login" if stored.owner is not None else "weft token create makes another"
        raise NotAuthenticated(f"token {name} has expired", hint=again)
    if spec.use in ("join", SERVER_USE):
        return Actor("joiner", f"{TOKEN_PREFIX}{name}", name)
    if spec.use == "link":
        return Actor("linker", f"{TOKEN_PREFIX}{name}", name)
    if spec.use == "cluster":
        given = directory.find_link(stored.owner) if stored.owner is not None else None
        if stored.owner is None or given is None:
            raise NotAuthenticated("the link was removed", reason="linkRemoved", hint=LINK_AGAIN)
        return Actor("person", f"{CLUSTER_PREFIX}{stored.owner.name}", name, given)
    if stored.owner is None:
        return Actor("person", f"{TOKEN_PREFIX}{name}", name, (directory.find_grant(spec.role, spec.project),))
    grants = directory.find_grants(stored.owner, stored.marks.claims)
    if grants is None:
        raise NotAuthenticated(
            f"user {stored.owner.name} was deleted or disabled: the user's tokens are not valid",
            hint="ask an administrator",
        )
    limit = directory.find_grant(spec.role or ALL, spec.project) if spec.role or spec.project else None
    return Actor("person", stored.owner.name, name, grants, limit, stored.owner)
