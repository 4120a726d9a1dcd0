"""The hold of a primary at the cluster that has its replica. Blocking; usable from threads."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.client.cluster.peer import PeerLink, connect_peer
from weft.contracts.clock import read_boot_time
from weft.objects.errors import WeftError

SILENCE_SECONDS = 3.0
ROUND_SECONDS = 8.0  # after which it begins no request more


class Hold(msgspec.Struct, frozen=True):
    """Of one VM: its replica there, and the uid of the replication here."""

    project: str
    replica: str
    origin: str


def renew_holds(link: PeerLink, holds: Sequence[Hold]) -> list[bool | None]:
    """Whether the other cluster has promised for each, in order, to take over nothing for a while from now on. It hasn't where it
    doesn't answer, or refuses; None: there was no time left to ask."""
    client, begun, renewed = connect_peer(link, timeout_seconds=SILENCE_SECONDS), read_boot_time(), list[bool | None]()
    try:
        for one in holds:
            if read_boot_time() - begun > ROUND_SECONDS:
                break
            try:
                client.verb("replica", one.replica, "renew", {"origin": one.origin}, project=one.project)
                renewed.append(True)
            except WeftError:
                renewed.append(False)
    finally:
        client.close()
    return [*renewed, *[None] * (len(holds) - len(renewed))]
