"""Keeps a server among the members of its fabric's store: gets its own member a vote, and follows who the others are."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NoReturn

from weft.contracts.clock import Clock
from weft.contracts.store import OtherStore
from weft.contracts.store_members import StoreMember
from weft.kinds.server import SERVER
from weft.launch.server.membership.removal import Removed
from weft.launch.store.engine import read_member_tls
from weft.launch.store.member import Member, read_member, write_member
from weft.objects.errors import WeftError
from weft.objects.identity import object_key

LOOK_SECONDS = 2.0
JOINING_SECONDS = 0.3  # while it has no vote
SURE_LOOKS = 5  # without itself in the list: a member that lags behind doesn't know a new one yet
SURE_SILENCES = 2  # of the own member, which may just be started
RENEW_SECONDS = 3600.0
SEE_SECONDS = 30.0  # until another store is noticed, which a restore at one of the servers has begun

_log = logging.getLogger(__name__)


async def check_member(store: Any, state: Path, clock: Clock) -> None:
    """Raises Removed if the member of the server in ``state`` was. ``store`` is an EtcdStore."""
    member = read_member(state)
    if _find_own(await store.members.list(), member) is None and not await store.get(
        object_key(SERVER.name, None, member.name)
    ):
        raise _removed(member)  # a join makes both
    await _find_all(store, member, clock)


class OwnMember:
    """State of the server's own member while it is kept: ``trouble`` says why it doesn't serve, "" if it does."""

    def __init__(self) -> None:
        self.trouble = ""


async def keep_member(store: Any, state: Path, own_member: OwnMember, clock: Clock) -> NoReturn:
    """Keep it, for ever. Raises Removed once it was, and OtherStore when another server has begun another store."""
    renewed_at = seen_at = clock.elapsed()
    while True:
        member = read_member(state)
        try:
            found = await _find_all(store, member, clock)
            own = _find_own(found, member)
            if own is not None and own.is_learner and own.name:
                await store.members.promote(own.id)
            now = member.learn(found)
            if not now.has_vote:
                own_member.trouble = f"its member of the store at {now.place.client} has no vote yet"
            else:
                is_silent = store.space.silences >= SURE_SILENCES
                own_member.trouble = (
                    f"its member of the store at {now.place.client} doesn't answer" if is_silent else ""
                )
            if now != member:
                _log.info("members of the store with a vote: %s", ", ".join(now.endpoints))
                write_member(state, now)
            if now.endpoints != member.endpoints or clock.elapsed() - renewed_at >= RENEW_SECONDS:
                renewed_at = clock.elapsed()
                await store.reopen(now.endpoints, read_member_tls(state, now, clock))
            if clock.elapsed() - seen_at >= SEE_SECONDS:
                seen_at = clock.elapsed()
                await store.see_one_cluster()
        except (Removed, OtherStore):
            raise
        except WeftError as problem:
            _log.info("the members of the store weren't found: %s", problem)
        await clock.sleep(LOOK_SECONDS if member.has_vote else JOINING_SECONDS)


async def _find_all(store: Any, member: Member, clock: Clock) -> list[StoreMember]:
    """Find all members, of which ``member`` is one. Raises Removed if it isn't any more."""
    for _ in range(SURE_LOOKS):
        found: list[StoreMember] = await store.members.list()
        if _find_own(found, member) is not None:
            return found
        await clock.sleep(LOOK_SECONDS)
    raise _removed(member)


def _removed(member: Member) -> Removed:
    return Removed(f"no member of the store is at {member.place.peer} any more")


def _find_own(found: list[StoreMember], member: Member) -> StoreMember | None:
    return next((one for one in found if one.address == member.place.peer), None)
