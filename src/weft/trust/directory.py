"""What users may do: the users, and the role bindings that name them, their groups, or groups of the OIDC provider. Pure.

The API server and the gateway each keep a copy of these objects and ask here at every request, so a change counts at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from weft.kinds.rolebinding import RoleBindingSpec
from weft.objects.identity import Ref
from weft.objects.roles import Grant

MOST_KEPT = 10_000  # users whose grants are remembered
Grants = tuple[Grant, ...]
FindGrants = Callable[[Ref, Sequence[str]], Grants | None]  # of a user and the provider's groups; None: no such user


class Account(NamedTuple):
    """A user as logins and tokens are checked against it."""

    uid: str
    disabled: bool
    groups: tuple[str, ...]


class Directory:
    """``find_user`` gives an account by its name, ``list_bindings`` all role bindings; ``version`` changes with any of them."""

    def __init__(
        self,
        find_user: Callable[[str], Account | None],
        list_bindings: Callable[[], Iterable[RoleBindingSpec]],
        version: Callable[[], object],
    ) -> None:
        self._find_user, self._list_bindings, self._version = find_user, list_bindings, version
        self._read: object = None  # the version that these are of
        self._by_subject: dict[tuple[str, str], list[Grant]] = {}
        self._known: dict[tuple[str, tuple[str, ...]], Grants] = {}

    def find_grants(self, user: Ref, claims: Sequence[str]) -> Grants | None:
        """What ``user`` may do, who is in the groups ``claims`` at the OIDC provider: sorted, each once. None if there is no such
        user any more (a later one of the name is another), or it is disabled."""
        account = self._find_user(user.name)
        if account is None or account.uid != user.uid or account.disabled:
            return None
        if self._read != (version := self._version()):
            self._by_subject, self._known, self._read = _index(self._list_bindings()), {}, version
        key = (user.uid, tuple(claims))
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            known = self._known[key] = self._collect(user.name, account, claims)
        return known

    def _collect(self, name: str, account: Account, claims: Sequence[str]) -> Grants:
        subjects = [
            ("user", name),
            *(("group", group) for group in account.groups),
            *(("claim", claim) for claim in claims),
        ]
        found = {grant for subject in subjects for grant in self._by_subject.get(subject, ())}
        return tuple(sorted(found, key=lambda grant: (grant.project or "", grant.role)))


def _index(bindings: Iterable[RoleBindingSpec]) -> dict[tuple[str, str], list[Grant]]:
    found: dict[tuple[str, str], list[Grant]] = {}
    for spec in bindings:
        grant = Grant(spec.role, spec.project)
        for word, names in (("user", spec.users), ("group", spec.groups), ("claim", spec.claims)):
            for name in names:
                found.setdefault((word, name), []).append(grant)
    return found
