"""The cluster that tests share, as it was: what they made in it goes, what they changed or killed comes back.

An object belongs to the test in whose time it was made, so nobody has to remember names, and a test that is run again finds
nothing of its first try.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tests.cluster.cluster import Cluster
from weft.client import Client
from weft.client.context import find_context
from weft.kinds.registry import KINDS
from weft.objects.errors import WeftError

LABEL = "weft/bootstrap"  # of tokens that the server made for itself
# What `make up` makes, and makes again in a store that was lost: KIND/PROJECT/NAME.
OWN = {
    "project//default",
    "network/default/default",
    "image/default/tiny",
    "vm/default/hello",
    "server//s1",
    "networktopology//fabric",
    *(f"node//n{number}" for number in (1, 2, 3)),
}
MADE_BY_PEOPLE = [
    kind for kind in KINDS if kind.access.writer == "people" or kind.access.removable or kind.lifetime.runs_workloads
]
GOES_WITHIN_SECONDS = 60.0
Object = dict[str, Any]


@contextmanager
def ask(cluster: Cluster) -> Iterator[Client]:
    """A client that waits a little for a server that a test has killed."""
    client = Client(find_context(folder=str(cluster.folder), environ={}), patience_seconds=10)
    try:
        yield client
    finally:
        client.close()


def sweep(cluster: Cluster, since: float) -> None:
    """Delete all that was made after ``since`` (unix seconds) and wait until it is gone: what is in use goes after its user."""
    with ask(cluster) as client:
        deadline = time.monotonic() + GOES_WITHIN_SECONDS
        while (left := find_new(client, since)) and time.monotonic() < deadline:
            for one in left:
                with suppress(WeftError):
                    if one["kind"] == "conversion":  # it keeps both of its workloads
                        client.verb("conversion", one["name"], "undo", project=one["project"])
                with suppress(WeftError):
                    client.delete(one["kind"], one["name"], project=one.get("project"), force=one["kind"] == "node")
            time.sleep(0.4)
        if left:
            print("what a test left and can't be deleted:", *(f"{one['kind']}/{one['name']}" for one in left))


def find_new(client: Client, since: float) -> list[Object]:
    """What people made after ``since``, of all projects; nothing of what `make up` made."""
    found = (one for kind in MADE_BY_PEOPLE for one in client.list(kind.name, all_projects=True).items)
    return [one for one in found if one["created_at"] > since and name(one) not in OWN and not is_servers(one)]


def is_servers(one: Object) -> bool:
    """A token that the server made for itself, or that a node has joined with; a pool that a node has, which can't be deleted and
    is another object after its node was deleted, or the store lost."""
    if one["kind"] == "pool":
        return bool(one["status"].get("nodes"))
    return one["kind"] == "token" and (LABEL in one["labels"] or one["spec"]["use"] == "join")


def name(one: Object) -> str:
    return f"{one['kind']}/{one.get('project') or ''}/{one['name']}"


def read_nodes(cluster: Cluster) -> list[Object]:
    """Labels and specs of all nodes, to be put back."""
    with ask(cluster) as client:
        kept = ("kind", "name", "labels", "spec")
        return [{key: one[key] for key in kept} for one in client.list("node").items]


def restore(cluster: Cluster, nodes: list[Object], since: float) -> None:
    """After a test that failed: processes run, ``nodes`` are as they were, hello runs, and what it made is gone."""
    cluster.up()
    sweep(cluster, since)
    with ask(cluster) as client:
        for node in nodes:
            client.put(node)
        try:
            phase = client.get("vm", "hello")["status"]["phase"]
        except WeftError:
            phase = "gone"
    if phase != "Running" and cluster.run("vm", "resume" if phase == "Suspended" else "start", "hello").returncode:
        cluster.run("vm", "delete", "hello", "--yes")
        cluster.ok("vm", "create", "hello", "--image", "tiny", "--memory", "128M")
