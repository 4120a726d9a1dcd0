"""Messages by which a machine becomes another server of a fabric. The keys of the fabric come sealed with what only the join token
shows. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

PATH = "/v1/servers:join"


class ServerJoinInput(msgspec.Struct, frozen=True):
    """``POST /v1/servers:join``, with a token of a server."""

    name: str
    uid: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]  # of the new server's state folder


class ServerJoinAnswer(msgspec.Struct, frozen=True):
    sealed: str  # a ServerKeys as JSON


class ServerKeys(msgspec.Struct, frozen=True):
    """Files of a server's state folder, by their path in it, and the URL of the store."""

    store: str
    files: dict[str, bytes]


def name_use(given: ServerJoinInput) -> str:
    """The use of the key that ``ServerJoinAnswer.sealed`` is sealed with, which follows from the token's secret."""
    return f"server join {given.name} {given.uid}"
