"""Members of the store that servers of the fabric keep: one is taken in with its server, and goes with it.

Asks the store's members; writes nothing itself. A member that no server has was left by a join that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weft.api.context import ApiContext
from weft.contracts.store_members import StoreMember, StoreMembers
from weft.kinds.server import SERVER, ServerMarks, find_address
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import AlreadyExists, InUse, InvalidInput
from weft.objects.identity import kind_prefix
from weft.protocol.server.join import MemberPlace, read_place, warn_of_even

_WRITTEN_SECONDS = 1.0  # until a join that has added its member has written its server


def read_member(context: ApiContext, text: str) -> MemberPlace | None:
    """Read the place of a joining server's member; None where the servers keep no members of the store. Raises InvalidInput."""
    if context.members is None:
        if text:
            raise InvalidInput(
                "no server of this fabric keeps a member of its store", field="member", hint="leave --member out"
            )
        return None
    if not text:
        raise InvalidInput(
            "each server of this fabric keeps a member of its store, and it isn't said where the new one will be",
            field="member",
            hint="give --member ADDRESS, an address of the new server's machine that the other servers reach",
        )
    return read_place(text)


async def take_in(context: ApiContext, place: MemberPlace) -> dict[str, MemberPlace]:
    """Make ``place`` a learner of the store; where the members with a vote are, by their names. Raises AlreadyExists, and InUse
    while another server joins."""
    members = _require(context)
    known, found, unknown = await _find_places(context), await members.list(), list[StoreMember]()
    for one in found:
        other = MemberPlace.of_peer(one.address)
        at = other.client
        if other.is_loopback is not place.is_loopback:
            hint = "give an address that the other servers' machines reach"
            if other.is_loopback:
                hint = "127.0.0.1 is for servers of one machine: begin the fabric with an address that others reach"
            raise InvalidInput(
                f"the members can't reach each other: one is at {at}, the new one would be at {place.client}",
                field="member",
                hint=hint,
            )
        if other.meets(place) and (not one.is_learner or at in known):
            raise AlreadyExists(
                f"{at} is the member of server {known.get(at, one.name)}, which has the next port, too",
                field="member",
                hint="give another --member: an address of the new server's machine, or another port",
            )
        if one.is_learner and at != place.client:
            _refuse_joining(known, at)
            unknown.append(one)
    if unknown:  # of a join that failed, or that writes its server in this moment
        await context.clock.sleep(_WRITTEN_SECONDS)
        known = await _find_places(context)
        for one in unknown:
            _refuse_joining(known, MemberPlace.of_peer(one.address).client)
            await members.remove(one.id)
    found = await members.add(place.peer)
    return {one.name: MemberPlace.of_peer(one.address) for one in found if not one.is_learner}


async def _find_places(context: ApiContext) -> dict[str, str]:
    """The names of the servers by where their members are."""
    return {at: server.name for server in await _list_servers(context) if (at := _member_of(server))}


def _refuse_joining(known: Mapping[str, str], at: str) -> None:
    if at in known:
        raise InUse(
            f"server {known[at]} is joining: its member of the store at {at} has no vote yet",
            hint=f"start it and wait until it is Ready, or give it up: weft server delete {known[at]}",
        )


async def give_up(context: ApiContext, place: MemberPlace) -> None:
    """Take back what ``take_in`` did, unless a server has the member."""
    if any(_member_of(server) == place.client for server in await _list_servers(context)):
        return
    if (one := _find(await _require(context).list(), place)) is not None:
        await _require(context).remove(one.id)


async def remove_of(context: ApiContext, server: Envelope) -> None:
    """Remove the member of a server that is deleted, if it has one; if the server runs, it finds that out and stops. Raises InUse
    for the last one that serves, or the last member with a vote, and IllegalTransition if too few of the others are there."""
    if not any(find_address(other) for other in await _list_servers(context) if other.name != server.name):
        raise InUse(
            f"server {server.name} can't be removed: no other server is Ready",
            hint="let another server join first, or start one that is NotReady",
        )
    at, members = _member_of(server), context.members
    if not at or members is None:
        return
    place, found = read_place(at), await members.list()
    one = _find(found, place)
    if one is None:
        return
    votes = sum(not member.is_learner for member in found)
    if not one.is_learner and votes == 1:
        raise InUse(
            f"server {server.name} keeps the only member of the store: it can't be removed",
            hint="let another server join first",
        )
    await members.remove(one.id)
    if not one.is_learner and (warning := warn_of_even(votes - 1)):
        context.add_event(server.ref, "EvenMembers", warning, "Warning")


def _find(found: Sequence[StoreMember], place: MemberPlace) -> StoreMember | None:
    return next((one for one in found if one.address == place.peer), None)


def _member_of(server: Envelope) -> str:
    return decode_part(server.marks, ServerMarks).member


async def _list_servers(context: ApiContext) -> list[Envelope]:
    page = await context.store.list(kind_prefix(SERVER.name))
    return [decode_envelope(entry.value, entry.revision) for entry in page.entries]


def _require(context: ApiContext) -> StoreMembers:
    assert context.members is not None
    return context.members
