"""Find the certificate of each node that counts, from the store: for processes that nodes connect to."""

from __future__ import annotations

from collections.abc import Callable

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.informer.prefix_cache import PrefixCache
from weft.trust.enrolment import (
    ENROLMENTS,
    Enrolment,
    Standing,
    enrolment_key,
    judge,
    read_enrolment,
    refuse_removed,
    refuse_replaced,
)
from weft.trust.peer import Peer


class Enrolments:
    """``on_change`` gets the uid of each node whose enrolment changed, while ``run`` runs."""

    def __init__(self, store: Store, clock: Clock, on_change: Callable[[str], None] = lambda uid: None) -> None:
        self._known = PrefixCache(
            store,
            ENROLMENTS,
            lambda value, revision: read_enrolment(value),
            clock,
            lambda key: on_change(key.removeprefix(ENROLMENTS)),
        )

    async def run(self) -> None:
        """Follow the store until cancelled."""
        await self._known.run()

    async def find(self, uid: str) -> Enrolment | None:
        return await self._known.find(enrolment_key(uid))

    async def check(self, uid: str, peer: Peer) -> Enrolment | None:
        """The enrolment of node ``uid``, None if the store has none. Raises Forbidden if the node was removed,
        NotAuthenticated if another key has replaced the peer's."""
        enrolment = await self.find(uid)
        if enrolment is not None and (enrolment.removed_at is not None or judge(enrolment, peer) is not Standing.KNOWN):
            enrolment = await self._known.read(enrolment_key(uid))  # the copy here may be a moment old
        if enrolment is None:
            return None
        if enrolment.removed_at is not None:
            raise refuse_removed(enrolment)
        if judge(enrolment, peer) is Standing.REPLACED:
            raise refuse_replaced(enrolment)
        return enrolment

    def note(self, uid: str, value: bytes, revision: int) -> None:
        """This process has committed ``value``."""
        self._known.note(enrolment_key(uid), value, revision)
