"""`python -m weft.launch.local inspect|up|down`: what `make up` and `make down` run, for the clone they are run in. `inspect` says
whether its cluster is another than the requested one, before packages are installed.

The environment's STORE (`sqlite` or `etcd`) is where a new cluster keeps its objects; CONTAINERD (`n3`, or several nodes)
on which of its nodes a containerd holds the containers, KATA on which Kata gives them machines of their own; CEPH=1 gives it a
Ceph cluster; SERVERS=3 so many servers; CLUSTERS=2 a second cluster, linked with it. SERVER_OPTIONS are more options of each
`weft server` that is started.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Coroutine
from typing import Any

from weft.contracts.clock import SystemClock
from weft.launch.local.choice import check_store, find_differing, find_topology, refuse_other
from weft.launch.local.down import down
from weft.launch.local.fabric import weft_fabric
from weft.launch.local.second.cluster import read_count, up_second
from weft.launch.local.topology import MOST_SERVERS
from weft.launch.local.up import up
from weft.objects.errors import InvalidInput, WeftError


def main(argv: list[str]) -> int:
    """Run one command; exit 0 when done, 1 with a sentence on stderr when not, 130 when interrupted."""
    clone = os.getcwd()
    if argv in (["up"], ["inspect"]):
        store = os.environ.get("STORE") or None
        containerd, kata = (tuple(os.environ.get(word, "").split()) or None for word in ("CONTAINERD", "KATA"))
        more: dict[str, Any] = {"store": store, "containerd": containerd, "kata": kata}
        more["ceph"] = None if (ceph := os.environ.get("CEPH", "")) == "" else ceph != "0"
        more["servers"] = os.environ.get("SERVERS", "")
        more["server_options"] = shlex.split(os.environ.get("SERVER_OPTIONS", "")) or None
        more["clusters"] = os.environ.get("CLUSTERS", "")
        return _run((inspect if argv == ["inspect"] else up_all)(clone, **more))
    if argv == ["down"]:
        return _run(down(clone, SystemClock(), sys.stdout))
    print("usage: python -m weft.launch.local inspect|up|down", file=sys.stderr)
    return 2


def count_servers(text: str) -> int | None:
    """The number of servers that ``SERVERS=text`` wants; None without a word. Raises InvalidInput."""
    if text and (text not in {str(count) for count in range(1, MOST_SERVERS + 1)}):
        raise InvalidInput(
            f"SERVERS={text} is not possible",
            field="servers",
            hint=f"SERVERS=1 to SERVERS={MOST_SERVERS}, or leave it out",
        )
    return int(text) if text else None


async def inspect(clone: str, *, clusters: str, servers: str, **more: Any) -> None:
    """Whether ``make up`` is asked for what can be, and for the clone's cluster, if there is one: before anything is installed."""
    read_count(clusters, clone)
    find_differing((), more["server_options"] or ())
    count, topology = count_servers(servers), find_topology(clone)
    check_store(more["store"], count)
    if topology is not None:
        refuse_other(topology, servers=count, **more)


async def up_all(clone: str, *, clusters: str, servers: str, **more: Any) -> None:
    """The clone's cluster, and a second one if it is wanted or there."""
    find_differing((), more["server_options"] or ())  # what weft server doesn't take is said before anything starts
    count, clock = read_count(clusters, clone), SystemClock()
    first = await up(clone, weft_fabric(), clock, sys.stdout, servers=count_servers(servers), **more)
    if count > 1:
        await up_second(clone, first, clock, sys.stdout, more["server_options"])


def _run(command: Coroutine[Any, Any, object]) -> int:
    try:
        asyncio.run(command)
    except WeftError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what has started keeps running: make up continues, make down removes it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
