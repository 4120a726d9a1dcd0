"""All that workloads can leave on the nodes of a local cluster, before they came and after they are gone."""

from __future__ import annotations

import re
import time
from typing import NamedTuple

from tests.cluster.cluster import Cluster

from benchmarks.soak.traces import NODES, list_running, list_things
from benchmarks.soak.travellers import Broken

CLEAN_SECONDS = 120.0
MAX_REASONS, DEPTH_TOLD = 40, 12
# What outlives workloads, within bounds: images and layers that were pulled, what functions are made of; empty rooms; and what
# comes and goes by itself: what expires, and the addresses that this machine has for other clusters.
KEPT = re.compile(
    r"n\d+:((oci|microvm|functions)/(images|layers|blobs|bases|code)(/.*)?|(oci|microvm|functions|clones)(/[a-z]+)?)$"
    r"|cgroup beside$|rule element (.* expires |10\.\d+\.\d+\.1$)"
)


class Landscape(NamedTuple):
    """What each node has, by its name."""

    nodes: dict[str, set[str]]

    @classmethod
    def look(cls, cluster: Cluster) -> Landscape:
        return cls({node: list_things(cluster, node) | list_running(cluster, node) for node in NODES})

    def list_left(self, before: Landscape) -> list[str]:
        """What is here and wasn't before. What was there then and has gone since belonged to others."""
        told = {
            f"{node} has {'/'.join(thing.split('/')[:DEPTH_TOLD])}"
            for node, found in self.nodes.items()
            for thing in found - before.nodes[node]
            if not KEPT.match(thing)
        }
        return sorted(told)

    def await_again(self, cluster: Cluster) -> None:
        """Return when there is nothing more than here, and no node tells of orphans; raises Broken if that doesn't come."""
        began = time.monotonic()
        while True:
            orphans = [node["report"]["orphans"] for node in cluster.json("get", "node")["items"]]
            told = Landscape.look(cluster).list_left(self)
            if not told and not any(orphans):
                return
            if time.monotonic() - began > CLEAN_SECONDS:
                raise Broken(f"something is left on the nodes: {told[:MAX_REASONS]}, orphans {orphans}")
            time.sleep(1.0)
