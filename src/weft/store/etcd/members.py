"""Members of the etcd cluster: listed, added as learners, promoted and removed."""

from __future__ import annotations

import builtins
from typing import Any

from weft.contracts.store_members import StoreMember
from weft.objects.errors import IllegalTransition, InUse, StoreUnavailable
from weft.store.etcd import wire
from weft.store.etcd.connection import EtcdConnection, EtcdRefused

_SCHEME = "https://"
_UNHEALTHY = (
    "unhealthy cluster"  # not all members are there, or the one that is asked hasn't seen all of them for 5 s yet
)
_ONE_AT_A_TIME = (
    "too many learner members",
    "member not found",  # raft passes over a change while another one is under way
)
_AWAY = "weft server list shows who is away: start that server, or remove it with weft server delete"


class EtcdMembers:
    """Implements StoreMembers. Its requests may be sent twice: what an earlier attempt has done is no error."""

    def __init__(self, connection: EtcdConnection) -> None:
        self._connection = connection

    async def list(self) -> builtins.list[StoreMember]:
        return _read(await self._connection.ask("MemberList", wire.MemberListRequest()))

    async def add(self, address: str) -> builtins.list[StoreMember]:
        try:
            request = wire.MemberAddRequest(peer_urls=[_SCHEME + address], is_learner=True)
            return _read(await self._connection.ask("MemberAdd", request))
        except EtcdRefused as refused:
            found = await self.list()
            if not any(member.address == address for member in found):
                if any(said in refused.details for said in _ONE_AT_A_TIME):
                    raise InUse(
                        "another server is joining: its member of the store has no vote yet",
                        hint="wait until weft server list shows it as Ready, and try again",
                    ) from None
                raise IllegalTransition(
                    f"{address} can't become a member of the store: {refused.details}",
                    hint=_AWAY,
                ) from None
            return found
        except StoreUnavailable as problem:
            if _UNHEALTHY in problem.message:
                raise IllegalTransition(
                    f"{address} can't become a member of the store: one of its members is away", hint=_AWAY
                ) from None
            raise

    async def promote(self, member_id: int) -> bool:
        try:
            await self._connection.ask("MemberPromote", wire.MemberPromoteRequest(id=member_id))
        except EtcdRefused:
            return any(member.id == member_id and not member.is_learner for member in await self.list())
        return True

    async def remove(self, member_id: int) -> None:
        try:
            await self._connection.ask("MemberRemove", wire.MemberRemoveRequest(id=member_id))
        except EtcdRefused as refused:
            if any(member.id == member_id for member in await self.list()):
                raise IllegalTransition(
                    f"the member can't be removed from the store: {refused.details}",
                    hint="start the other servers first: more than half of those that stay must be there",
                ) from None


def _read(answer: Any) -> builtins.list[StoreMember]:
    return [
        StoreMember(one.id, one.name, next(iter(one.peer_urls), "").removeprefix(_SCHEME), one.is_learner)
        for one in answer.members
    ]
