"""Rights of users: the users, the roles, and the role bindings that name users, groups, or groups of the OIDC provider. Pure.

The API server and the gateway each keep a copy of these objects and ask here at every request, so a change counts at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import weft.kinds.registry  # noqa: F401 - it says which permissions there are
from weft.kinds.fields.cluster.link import GRANTS, HELLO
from weft.kinds.permissions import find_built_in, find_permissions
from weft.kinds.rolebinding import RoleBindingSpec
from weft.objects.identity import Ref
from weft.objects.roles import Grant

MOST_KEPT = 10_000  # users whose grants are remembered
Grants = tuple[Grant, ...]
_NONE: frozenset[str] = frozenset()
_LINK = "link"  # the role, as errors and the audit log say it
_GREETS = frozenset({HELLO})


class Account(NamedTuple):
    """A user as logins and tokens are checked against it."""

    uid: str
    disabled: bool
    groups: tuple[str, ...]


class Linked(NamedTuple):
    """A linked cluster as its token is checked against it."""

    uid: str  # of its object here
    grants: tuple[str, ...]
    projects: tuple[tuple[str, str], ...]  # the link's: each one here with the one there


class Directory:
    """``find_user`` gives an account by its name, ``list_bindings`` all role bindings, ``find_role`` the permissions of an own
    role, ``find_cluster`` a linked cluster by its name; ``version`` changes with any of them."""

    def __init__(
        self,
        find_user: Callable[[str], Account | None],
        list_bindings: Callable[[], Iterable[RoleBindingSpec]],
        find_role: Callable[[str], frozenset[str] | None],
        version: Callable[[], object],
        find_cluster: Callable[[str], Linked | None] = lambda name: None,
    ) -> None:
        self._find_user, self._list_bindings, self._find_role, self._version = (
            find_user,
            list_bindings,
            find_role,
            version,
        )
        self._find_cluster = find_cluster
        self._read: object = _NONE  # the version that these are of: of none yet
        self._by_subject: dict[tuple[str, str], list[Grant]] = {}
        self._known: dict[tuple[str, tuple[str, ...]], Grants] = {}
        self._roles: dict[tuple[str, str | None], Grant] = {}

    def find_grants(self, user: Ref, claims: Sequence[str]) -> Grants | None:
        """Grants of ``user``, who is in the groups ``claims`` at the OIDC provider: sorted, each once. None if there is no such
        user any more (a later one of the name is another), or it is disabled."""
        account = self._find_user(user.name)
        if account is None or account.uid != user.uid or account.disabled:
            return None
        self._read_again()
        key = (user.uid, tuple(claims))
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            known = self._known[key] = self.list_grants(user.name, account.groups, claims)
        return known

    def find_grant(self, role: str, project: str | None) -> Grant:
        """Grant of ``role`` in ``project``, None for all projects: nothing, if there is no such role any more."""
        built_in = find_built_in(role, project is None)
        if built_in is not None:
            return Grant(role, project, built_in)
        self._read_again()
        known = self._roles.get((role, project))
        if known is None:
            if len(self._roles) >= MOST_KEPT:
                self._roles.clear()
            known = self._roles[role, project] = Grant(role, project, self._find_role(role) or _NONE)
        return known

    def find_link(self, cluster: Ref) -> Grants | None:
        """Grants of the linked ``cluster``: to say hello, and what its link grants, in the link's projects. None if there is no
        such link any more (a later one of the name is another)."""
        linked = self._find_cluster(cluster.name)
        if linked is None or linked.uid != cluster.uid:
            return None
        found = [Grant(_LINK, None, _GREETS)]
        given = frozenset[str]().union(*(find_permissions(GRANTS.get(word, {})) for word in linked.grants))
        if given:
            found += [Grant(_LINK, here, given, there) for here, there in linked.projects]
        return tuple(found)

    def list_grants(self, user: str | None, groups: Sequence[str], claims: Sequence[str] = ()) -> Grants:
        """Grants by the bindings of a user's name (None: without them) and of these groups: sorted, each once."""
        self._read_again()
        subjects = [
            *([("user", user)] if user is not None else []),
            *(("group", group) for group in groups),
            *(("claim", claim) for claim in claims),
        ]
        found = {grant for subject in subjects for grant in self._by_subject.get(subject, ())}
        return tuple(sorted(found, key=lambda grant: (grant.project or "", grant.role)))

    def _read_again(self) -> None:
        """Forget what is of an earlier version."""
        if self._read != (version := self._version()):
            self._known, self._roles, self._read = {}, {}, version
            self._by_subject = _index(self._list_bindings(), self.find_grant)


def _index(
    bindings: Iterable[RoleBindingSpec], find_grant: Callable[[str, str | None], Grant]
) -> dict[tuple[str, str], list[Grant]]:
    found: dict[tuple[str, str], list[Grant]] = {}
    for spec in bindings:
        grant = find_grant(spec.role, spec.project)
        for word, names in (("user", spec.users), ("group", spec.groups), ("claim", spec.claims)):
            for name in names:
                found.setdefault((word, name), []).append(grant)
    return found
