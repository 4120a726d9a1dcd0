"""Messages by which a machine becomes another server of a fabric. The keys of the fabric come sealed with what only the join token
shows. Pure."""

from __future__ import annotations

import ipaddress
from typing import Annotated

import msgspec

from weft.objects.errors import InvalidInput

PATH = "/v1/servers:join"
MEMBER_PORT = 2379


class MemberPlace(msgspec.Struct, frozen=True):
    """Place at which a server's member of the store listens: for clients at ``port``, for the other members at the next one."""

    host: str  # an IP address
    port: int = MEMBER_PORT

    @property
    def client(self) -> str:
        return self.show_with(self.port)

    @property
    def peer(self) -> str:
        return self.show_with(self.port + 1)

    @property
    def is_loopback(self) -> bool:
        """Whether only its own machine reaches it."""
        return ipaddress.ip_address(self.host).is_loopback

    def meets(self, other: MemberPlace) -> bool:
        """Whether the two have a port in common."""
        return not {self.client, self.peer}.isdisjoint((other.client, other.peer))

    def show_with(self, port: int | str) -> str:
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    @staticmethod
    def of_peer(address: str) -> MemberPlace:
        """The place of the member that the others reach at HOST:PORT."""
        host, _, port = address.rpartition(":")
        return MemberPlace(host.strip("[]"), int(port) - 1)


def read_place(text: str) -> MemberPlace:
    """``10.0.0.2``, ``10.0.0.2:2379`` or ``[fd00::2]:2379``. Raises InvalidInput."""
    bare = text.startswith("[") or text.count(":") == 1
    host, _, port = text.rpartition(":") if bare and not text.endswith("]") else (text, "", str(MEMBER_PORT))
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port) if port.isascii() and port.isdecimal() else 0
    except ValueError:
        number = 0
    nowhere = number and (
        address.is_unspecified or address.is_multicast or (address.version == 4 and address.is_reserved)
    )
    if not 0 < number < 65_535 or nowhere:
        raise InvalidInput(
            f"{text[:60]!r} is not where a member of the store can be reached",
            field="member",
            hint=f"give an IP address of the server's machine, like 10.0.0.2 or 10.0.0.2:{MEMBER_PORT}; it takes that port and"
            " the next",
        )
    return MemberPlace(str(address), number)


class ServerJoinInput(msgspec.Struct, frozen=True):
    """``POST /v1/servers:join``, with a token of a server."""

    name: str
    uid: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]  # of the new server's state folder
    member: Annotated[str, msgspec.Meta(max_length=64)] = ""  # address of its member of the store, like 10.0.0.2:2379
    release: Annotated[str, msgspec.Meta(max_length=64)] = ""  # that it runs


class ServerJoinAnswer(msgspec.Struct, frozen=True):
    sealed: str  # a ServerKeys as JSON


class ServerKeys(msgspec.Struct, frozen=True):
    """Files of a server's state folder, by their path in it, the URL of the store, and where its members with a vote are."""

    store: str
    files: dict[str, bytes]
    members: dict[str, MemberPlace] = {}


def name_use(given: ServerJoinInput) -> str:
    """The use of the key that ``ServerJoinAnswer.sealed`` is sealed with, which follows from the token's secret."""
    return f"server join {given.name} {given.uid}"


def warn_of_even(members: int) -> str:
    """Warning of a store with so many members, the new one among them; "" if it is a good number."""
    if members % 2:
        return ""
    return (
        f"{members} servers keep a member of the store: it needs more than half of them, so no more may die than with"
        f" {members - 1}. Let another one join"
    )
