"""`make up CLUSTERS=2`: a second, small cluster in the clone's state folder, linked with the first as `west`, and that with it as
`east`.

It is a cluster like the first, whose clone is `.weft/west`: all names, networks and ports follow from that path. It shares the
first one's cache and .venv. Nothing here touches the host.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from weft.client import Client
from weft.client.answer import raise_problem
from weft.client.context import FILE as CONTEXT_FILE
from weft.client.context import NAMED, read_context
from weft.contracts.clock import Clock
from weft.contracts.store import epoch_of
from weft.kinds.cluster import CLUSTER
from weft.launch.local.down import CACHE, WEST, find_second, place_second
from weft.launch.local.fabric import POLL_SECONDS, READY_SECONDS, ensure_image, weft_fabric
from weft.launch.local.progress import Progress
from weft.launch.local.topology import Topology, server_url
from weft.launch.local.up import up
from weft.objects.errors import IllegalTransition, InUse, InvalidInput, NotFound, TimedOut, WeftError

EAST = "east"
CIDR = "10.215.0.0/20"  # of its network default: the first one's guests have other addresses
NODES = 1
TERMS: dict[str, Any] = {"grants": ["migrate", "replicate"], "projects": {"default": "default"}}


def read_count(text: str, clone: str) -> int:
    """How many clusters ``CLUSTERS=text`` wants; without a word as many as the clone has. Raises InvalidInput, and InUse for one of
    two."""
    if text not in ("", "1", "2"):
        raise InvalidInput(f"CLUSTERS={text} is not possible", field="clusters", hint="CLUSTERS=2, or leave it out")
    has_second = find_second(clone) is not None
    if text == "1" and has_second:
        raise InUse("this clone has two clusters", hint="make down, then make up")
    return 2 if text == "2" or has_second else 1


async def up_second(
    clone: str, first: Topology, clock: Clock, stream: TextIO, server_options: Sequence[str] | None = None
) -> Topology:
    """Bring the second cluster of ``clone`` up and link it with the ``first``. Raises as ``up`` does."""
    home = place_second(clone)
    prepare_home(Path(clone), Path(home))
    stream.write(f"\n{WEST}, a second cluster:\n")
    fabric = weft_fabric((("image tiny", ensure_image),), lambda _: "")
    options = ("--network", CIDR, *(first.server_options if server_options is None else server_options))
    topology = await up(home, fabric, clock, stream, NODES, server_options=options)
    await Progress(stream, clock).show("link", ensure_link(first, topology, clock))
    stream.write(
        f"\nTry:  .venv/bin/weft cluster list        .venv/bin/weft --context {WEST} node list\n"
        f"      make down (removes both)\n"
    )
    return topology


def prepare_home(clone: Path, home: Path) -> None:
    """The second cluster's folder, with the first one's cache; and its context under a name of its own."""
    state, named = home / ".weft", clone / ".weft" / NAMED
    for folder in (home, state, named):
        folder.mkdir(mode=0o700, exist_ok=True)
    (clone / ".weft" / CACHE).mkdir(exist_ok=True)
    for link, to in (
        (state / CACHE, clone / ".weft" / CACHE),
        (named / f"{WEST}.json", state / CONTEXT_FILE),
    ):
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(to, link.parent))


async def ensure_link(first: Topology, second: Topology, clock: Clock) -> str:
    """Both clusters linked with each other, at addresses that the nodes of both reach."""
    await asyncio.to_thread(link, first, second)
    await _until_linked(first, second, clock)
    return f"{WEST} here, {EAST} there; each may replicate and migrate into project default of the other"


def link(first: Topology, second: Topology) -> None:
    """Link them, unless they are linked already, whatever has become of that."""
    with _Asking(first) as here, _Asking(second) as there:
        if _is_there(here, WEST) and _is_there(there, EAST):
            return
        spec = {"use": "link", "link": {"name": EAST, **TERMS}}
        token = there.create({"kind": "token", "spec": spec})["secret"]
        body = {"url": find_url(second), "token": token, "own_url": find_url(first), **TERMS}
        raise_problem(here.http.request("POST", f"/v1/clusters/{WEST}:link", body, timeout_seconds=60.0))


def find_url(topology: Topology) -> str:
    """Find the URL of its API server for processes of this machine, and for the nodes of both clusters."""
    return server_url(topology)


def _is_there(client: Client, name: str) -> bool:
    try:
        client.get(CLUSTER.name, name)
    except NotFound:
        return False
    return True


class _Asking:
    """A client of a cluster of this clone, while it is used."""

    def __init__(self, topology: Topology) -> None:
        self._client = Client(read_context(Path(topology.state_dir) / CONTEXT_FILE), timeout_seconds=60.0)

    def __enter__(self) -> Client:
        return self._client

    def __exit__(self, *_: object) -> None:
        self._client.close()


async def _until_linked(first: Topology, second: Topology, clock: Clock) -> None:
    """Wait until each cluster has heard of the other. Raises IllegalTransition immediately if the store of one was restored, and
    TimedOut with what is the matter."""
    ends, name, trouble = clock.elapsed() + READY_SECONDS, WEST, ""
    while clock.elapsed() < ends:
        try:
            west, epoch_here = await asyncio.to_thread(_inspect, first, WEST)
            east, epoch_there = await asyncio.to_thread(_inspect, second, EAST)
        except WeftError as problem:
            trouble = problem.message
        else:
            refuse_restored(west, epoch_there)
            refuse_restored(east, epoch_here)
            if (waits := next((one for one in (west, east) if not _is_linked(one)), None)) is None:
                return
            name, status = waits["name"], waits["status"]
            trouble = f"{name} is {status.get('phase')}: {status.get('message') or 'not asked yet'}"
        await clock.sleep(POLL_SECONDS)
    hint = f"{_weft(name)} cluster describe {name}; then make up again"
    raise TimedOut(f"the clusters are not linked. {trouble}", hint=hint)


def _is_linked(link: Mapping[str, Any]) -> bool:
    return link["status"].get("phase") == "Linked" and link["status"].get("clock_offset_seconds") is not None


def refuse_restored(link: Mapping[str, Any], epoch: str) -> None:
    """Raise IllegalTransition for a cluster whose store has another history than the one that ``link`` trusts: only people end
    that. ``epoch``: its history now, which the other cluster may not have heard of yet."""
    name, asked, status = link["name"], link["actions"], link["status"]
    if status.get("epoch") and status["epoch"] != epoch and asked.get("trusted", 0) <= status.get("trusted", 0):
        by = EAST if name == WEST else WEST
        raise IllegalTransition(
            f"both clusters run, but {by} lets {name} do nothing since the store of {name} was restored",
            hint=f"if you restored it: {_weft(name)} cluster trust {name}",
        )


def _weft(name: str) -> str:
    """The command at the cluster that calls the other one by this name."""
    return "weft" if name == WEST else f"weft --context {WEST}"


def _inspect(topology: Topology, name: str) -> tuple[dict[str, Any], str]:
    """Its link with cluster ``name``, and the history of its own store."""
    with _Asking(topology) as client:
        return client.get(CLUSTER.name, name), epoch_of(client.list(CLUSTER.name).cursor)
