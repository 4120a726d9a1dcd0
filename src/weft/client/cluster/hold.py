"""The hold of a primary at the cluster that has its replica, and whether that takes over automatically.
Blocking; usable from threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from weft.client.cluster.peer import MOST_TEXT, PeerClient, PeerLink, connect_peer
from weft.contracts.clock import read_boot_time
from weft.objects.errors import Forbidden, NotFound, Unavailable, WeftError

REQUEST_SECONDS = 3.0  # for all of one, however slowly its answer comes
ROUND_SECONDS = 8.0  # after which it begins no request more


class Hold(msgspec.Struct, frozen=True):
    """Hold of one VM: its replica there, in ``project``, and the uid of the replication here, in ``own_project``."""

    project: str  # "": the link has none for ``own_project``, so nothing can be asked
    replica: str
    origin: str
    own_project: str


def renew_holds(link: PeerLink, holds: Sequence[Hold]) -> list[bool | None]:
    """Whether the other cluster has promised for each, in order, to take over nothing for a while from now on. It hasn't where it
    doesn't answer, or refuses; None: there was no time left to ask."""
    client, begun, renewed = _connect(link), read_boot_time(), list[bool | None]()
    try:
        for one in holds:
            if read_boot_time() - begun > ROUND_SECONDS:
                break
            try:
                _ask(client, one, "renew", {"origin": one.origin})
                renewed.append(True)
            except WeftError:
                renewed.append(False)
    finally:
        client.close()
    return [*renewed, *[None] * (len(holds) - len(renewed))]


def _connect(link: PeerLink) -> PeerClient:
    return connect_peer(link, timeout_seconds=REQUEST_SECONDS, most_seconds=REQUEST_SECONDS)


def _ask(client: PeerClient, hold: Hold, verb: str, given: dict[str, Any]) -> None:
    _check_linked(hold)
    client.ask_for(hold.own_project).verb("replica", hold.replica, verb, given, project=hold.project)


def _check_linked(hold: Hold) -> None:
    if not hold.project:
        raise Forbidden(f"the link is not for project {hold.own_project}", reason="projectNotLinked")


class ArmingAnswer(msgspec.Struct, frozen=True):
    """Answer to a word to a replica, whether it takes over automatically."""

    # promoted: it was, so this cluster is primary no more; overtaken: it knows a later turn of this cluster; silent: nothing is
    # known.
    outcome: Literal["done", "promoted", "overtaken", "refused", "silent"]
    message: str = ""
    automatic: bool = False  # of the replica, where it was read
    arming: int = 0


def arm_replica(link: PeerLink, hold: Hold, *, automatic: bool, arming: int) -> ArmingAnswer:
    """Tell the replica at the other cluster whether it takes over. ``arming``: which turn this is, so that no earlier one that was
    late counts after it."""
    client = _connect(link)
    given = {"origin": hold.origin, "automatic": automatic, "arming": arming}
    try:
        _ask(client, hold, "arm", given)
        return ArmingAnswer("done", automatic=automatic, arming=arming)
    except Unavailable as problem:
        return ArmingAnswer("silent", problem.message[:MOST_TEXT])
    except WeftError as problem:
        known = {"staleGeneration": "promoted", "overtaken": "overtaken"}
        return msgspec.convert(
            {"outcome": known.get(problem.token, "refused"), "message": problem.message[:MOST_TEXT]}, ArmingAnswer
        )
    finally:
        client.close()


class _Replica(msgspec.Struct):
    origin: str = ""
    role: str = ""
    automatic: bool = False
    arming: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0


def read_arming(link: PeerLink, hold: Hold) -> ArmingAnswer:
    """Read what the replica at the other cluster knows: ``done``, with its fields."""
    client = _connect(link)
    try:
        _check_linked(hold)
        found = client.ask_for(hold.own_project).get("replica", hold.replica, project=hold.project)
        there = msgspec.convert(
            {**found["spec"], **found.get("marks", {})}, _Replica
        )  # an older weft has all in its spec
    except Unavailable as problem:
        return ArmingAnswer("silent", problem.message[:MOST_TEXT])
    except NotFound:
        return ArmingAnswer("done")  # there is none, so nothing takes over
    except (WeftError, msgspec.ValidationError) as problem:
        return ArmingAnswer("refused", str(problem)[:MOST_TEXT])
    finally:
        client.close()
    if there.origin != hold.origin:
        return ArmingAnswer("refused", "the replica there is of another replication")
    return ArmingAnswer("promoted" if there.role == "primary" else "done", "", there.automatic, there.arming)
