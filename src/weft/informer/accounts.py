"""Users, role bindings, roles and linked clusters, from the store: for processes that check what these may do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.informer.cache import Cache
from weft.informer.prefix_cache import PrefixCache, of_envelope
from weft.informer.view import Item, View
from weft.kinds.cluster import ClusterSpec, ClusterStatus
from weft.kinds.permissions import find_permissions
from weft.kinds.role import RoleSpec
from weft.kinds.rolebinding import RoleBindingSpec
from weft.kinds.token import TokenMarks, TokenSpec
from weft.kinds.user import UserSpec
from weft.objects.envelope import Envelope, decode_part, encode_envelope
from weft.objects.identity import Ref, kind_prefix, object_key
from weft.trust.credentials import StoredToken
from weft.trust.directory import Account, Directory, Linked

KINDS = ("user", "rolebinding", "role", "cluster")


class Accounts:
    """A copy of its own in this process. ``on_change`` is called after each change, while ``run`` runs."""

    def __init__(self, store: Store, clock: Clock, on_change: Callable[[], None] = lambda: None) -> None:
        def changed(key: str) -> None:
            on_change()

        self._users = PrefixCache(store, kind_prefix("user"), of_envelope(_read_account), clock, changed)
        self._bindings = PrefixCache(store, kind_prefix("rolebinding"), of_envelope(_read_binding), clock, changed)
        self._roles = PrefixCache(store, kind_prefix("role"), of_envelope(_read_role), clock, changed)
        self._clusters = PrefixCache(store, kind_prefix("cluster"), of_envelope(_read_linked), clock, changed)
        caches = (self._users, self._bindings, self._roles, self._clusters)
        self._caches: dict[str, PrefixCache[Any]] = dict(zip(KINDS, caches, strict=True))
        self._directory = Directory(
            lambda name: self._users.found.get(object_key("user", None, name)),
            lambda: self._bindings.found.values(),
            lambda name: self._roles.found.get(object_key("role", None, name)),
            lambda: self.version,
            lambda name: self._clusters.found.get(object_key("cluster", None, name)),
        )

    @property
    def version(self) -> tuple[int, int, int, int]:
        """Changes with every change of the copy."""
        return self._users.changes, self._bindings.changes, self._roles.changes, self._clusters.changes

    @property
    def live(self) -> Directory | None:
        """The directory of this process's copy; None while the copy doesn't follow the store."""
        return self._directory if all(cache.live for cache in self._caches.values()) else None

    async def read(self) -> Directory:
        """The directory, read from the store if the copy here doesn't follow it."""
        if (live := self.live) is not None:
            return live
        users, bindings, roles, clusters = [await cache.read_all() for cache in self._caches.values()]
        return Directory(
            lambda name: users.get(object_key("user", None, name)),
            bindings.values,
            lambda name: roles.get(object_key("role", None, name)),
            lambda: None,
            lambda name: clusters.get(object_key("cluster", None, name)),
        )

    async def run(self) -> None:
        """Follow the store until cancelled."""
        async with asyncio.TaskGroup() as group:
            for cache in self._caches.values():
                group.create_task(cache.run())

    async def read_again(self, owner: Ref) -> bool:
        """Read a token's owner from the store, since the copy here may be a moment old. Whether it was."""
        cache = self._caches.get(owner.kind)
        return cache is not None and await cache.read_again(object_key(owner.kind, None, owner.name))

    def forget(self, key: str, revision: int) -> None:
        """This process has deleted what was at ``key``, of whatever kind."""
        for cache in self._caches.values():
            cache.forget(key, revision)

    def note(self, envelope: Envelope) -> None:
        """This process has committed ``envelope``: it counts from now on."""
        if (cache := self._caches.get(envelope.kind)) is not None:
            cache.note(envelope.key, encode_envelope(envelope), envelope.revision)


def make_directory(cache: Cache, view: View) -> Directory:
    """The directory of a ``view`` with KINDS, which ``cache`` keeps."""
    count = [0]

    def notice(_: object) -> None:
        count[0] += 1

    cache.subscribe(notice, KINDS)

    def find_user(name: str) -> Account | None:
        item = view.get(object_key("user", None, name))
        return None if item is None else _make_account(item.envelope, item.spec(UserSpec))

    def list_bindings() -> Iterable[RoleBindingSpec]:
        return (item.spec(RoleBindingSpec) for item in view.of_kind("rolebinding").values())

    def find_role(name: str) -> frozenset[str] | None:
        item = view.get(object_key("role", None, name))
        return None if item is None else find_permissions(item.spec(RoleSpec).rules)

    def find_cluster(name: str) -> Linked | None:
        item = view.get(object_key("cluster", None, name))
        return None if item is None else _read_linked(item.envelope)

    return Directory(find_user, list_bindings, find_role, lambda: count[0], find_cluster)


def _read_account(envelope: Envelope) -> Account:
    return _make_account(envelope, decode_part(envelope.spec, UserSpec))


def _make_account(envelope: Envelope, spec: UserSpec) -> Account:
    return Account(envelope.uid, spec.disabled or envelope.deleting_since is not None, tuple(spec.groups))


def _read_linked(envelope: Envelope) -> Linked | None:
    """A cluster whose store is another than the one that was linked says hello only, until people trust it again."""
    if envelope.deleting_since is not None:
        return None
    spec, phase = decode_part(envelope.spec, ClusterSpec), decode_part(envelope.status, ClusterStatus).phase
    grants = () if phase == "Suspect" else tuple(spec.grants)
    return Linked(envelope.uid, grants, tuple(spec.projects.items()))


def _read_binding(envelope: Envelope) -> RoleBindingSpec:
    return decode_part(envelope.spec, RoleBindingSpec)


def _read_role(envelope: Envelope) -> frozenset[str]:
    return find_permissions(decode_part(envelope.spec, RoleSpec).rules)


def read_token(item: Item) -> StoredToken:
    """The token that ``item`` is."""
    return StoredToken(item.envelope.name, item.spec(TokenSpec), item.envelope.owner, item.marks(TokenMarks))
