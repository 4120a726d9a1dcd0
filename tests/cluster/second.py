"""A second cluster beside the one of a test or a benchmark, linked with it, and the line between them."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.cluster import Cluster
from weft.contracts.clock import SystemClock
from weft.launch.local.down import CACHE, WEST, down, place_second

THERE = ("--context", WEST)  # words before a command that is for the second one


@contextmanager
def with_second(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, which must be up, with the second one beside it; that ends with the context."""
    home = Path(place_second(str(cluster.folder)))
    done = cluster.local("up", clusters="2")
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield cluster
    finally:
        (home / ".weft" / CACHE).unlink(missing_ok=True)
        asyncio.run(down(str(home), SystemClock(), io.StringIO()))


@contextmanager
def cut(cluster: Cluster) -> Iterator[None]:
    """What the first cluster's nodes send to the second one is reset. The servers still answer each other."""
    first, second = (
        json.loads((state / "cluster.json").read_text()) for state in (cluster.state, cluster.state / WEST / ".weft")
    )
    there = second["underlay"].rpartition(".")[0] + ".1"
    ports = f"{{ {second['api_port']}, {second['gateway_port']} }}"
    table = f"weft-cut-{first['id']}"
    rule = f"ip saddr {first['underlay']} ip daddr {there} tcp dport {ports} reject with tcp reset"
    rules = f"table inet {table} {{ chain in {{ type filter hook input priority -10; {rule}; }}; }}"
    subprocess.run(["nft", "-f", "-"], input=rules.encode(), check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "inet", table], check=True)
