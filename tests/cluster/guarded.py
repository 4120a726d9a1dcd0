"""What a cluster's guards hold, and processes that stand still for a while."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.cluster.cluster import Cluster
from weft.contracts.clock import read_boot_time
from weft.drivers.guard.driver import FOLDER
from weft.drivers.guard.holds import read_holds
from weft.drivers.guard.process import FILE
from weft.failover.timing import NODES
from weft.objects.identity import short_id


@contextmanager
def frozen(pids: Iterable[int]) -> Iterator[Callable[[], None]]:
    """They stand still until the block ends, or the given function is called."""
    stopped = list(pids)
    assert stopped
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)

    def go_on() -> None:
        while stopped:
            with suppress(ProcessLookupError):  # another has replaced it
                os.kill(stopped.pop(), signal.SIGCONT)

    try:
        yield go_on
    finally:
        go_on()


class Hold(NamedTuple):
    """What the guard of ``node`` has of a guest."""

    node: str
    guest: str
    file: Path

    def read_answered_at(self) -> float:
        """When the node made the last report that was answered, by the monotonic clock; long ago if the guest isn't held."""
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        hold = read_holds(self.file.read_bytes(), boot_id).get(self.guest)
        if hold is None:
            return float("-inf")
        return time.monotonic() - read_boot_time() + hold.until - NODES.lease


def find_hold(cluster: Cluster, name: str) -> Hold | None:
    """Of a workload that is in one place, whose node says that its guard holds it."""
    found = [one for one in cluster.json("get", "allocation")["items"] if one["spec"]["workload"]["name"] == name]
    if len(found) != 1 or not found[0]["report"].get("guarded"):
        return None
    node = found[0]["spec"]["node"]
    return Hold(node, short_id(found[0]["uid"]), Path(f"/run/weft-{cluster.run_mark()}") / node / FOLDER / FILE)


def is_heard(cluster: Cluster, name: str) -> bool:
    """Whether a server answers, all nodes are Ready, and that of ``name``, which its guard holds, has been answered of late."""
    if cluster.run("get", "node").returncode:
        return False
    phases = [node["status"]["phase"] for node in cluster.json("get", "node")["items"]]
    if phases != ["Ready"] * 3 or (hold := find_hold(cluster, name)) is None:
        return False
    return time.monotonic() - hold.read_answered_at() < NODES.renew * 2
