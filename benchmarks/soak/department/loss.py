"""A node that is lost for a while: cut off from the others, or without power; and perhaps given up before it comes back."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

from tests.cluster.cluster import Cluster

from weft.client import Client
from weft.launch.local.topology import link_prefix_of
from weft.objects.errors import IllegalTransition, WeftError

NODES = ("n1", "n2", "n3")
WAYS = ("cut off", "no power", "given up")
LOST_SECONDS = 36.0  # away at least: it counts as lost after 30 s, and then its promises are planned anew
WAIT_SECONDS = 90.0
BACK_SECONDS = 60.0  # after its return, in which it ends what is over


class Loss:
    """At most one node is away at a time."""

    def __init__(self, cluster: Cluster, admin: Client) -> None:
        self.cluster, self._admin = cluster, admin
        self.away, self.way = "", ""
        self.spans: list[tuple[float, float, str]] = []  # from, until (infinite: it is away), node
        self.problems: list[str] = []

    def begin(self, draw: random.Random, number: int) -> str:
        self.away, self.way = draw.choice(NODES), WAYS[number % len(WAYS)]
        self.spans.append((time.time(), float("inf"), self.away))
        if self.way == "cut off":
            self._set_link("down")
        else:
            for pid in self.cluster.pids(f"weft init {self.away}"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return f"{self.away} {self.way}"

    def end(self) -> None:
        """Wait until it counts as lost, and let it come back; one that is given up comes back after that."""
        began = self.spans[-1][0]
        self._await(lambda: self._phase() == "NotReady", f"{self.away} doesn't count as lost")
        time.sleep(max(0.0, began + LOST_SECONDS - time.time()))
        if self.way == "given up":
            self._await(self._give_up, f"{self.away} isn't given up")
        if self.way == "cut off":
            self._set_link("up")
        else:
            self.cluster.up()
        self._await(lambda: self._phase() == "Ready", f"{self.away} doesn't come back")
        self.spans[-1] = (began, time.time(), self.away)
        self.away = ""

    def list_near(self, now: float) -> set[str]:
        """The nodes that are away, or were shortly before ``now``."""
        return {name for began, until, name in self.spans if began <= now < until + BACK_SECONDS}

    def met(self, since: float, until: float) -> bool:
        """Whether any node was lost in this time."""
        return any(began < until and back > since for began, back, _ in self.spans)

    def restore(self) -> None:
        """However the soak ended, the link is there again."""
        if self.away and self.way == "cut off":
            self._set_link("up")

    def _phase(self) -> str:
        found = [node for node in self._admin.list("node").items if node["name"] == self.away]
        return str(found[0]["status"]["phase"]) if found else "gone"

    def _give_up(self) -> bool:
        """Whether it is gone; a first answer may have been lost."""
        if self._phase() == "gone":
            return True
        with suppress(IllegalTransition):  # it isn't lost yet
            self._admin.delete("node", self.away, force=True)
        return self._phase() == "gone"

    def _await(self, holds: Callable[[], bool], what: str) -> None:
        began = time.monotonic()
        while True:
            with suppress(WeftError, OSError):
                if holds():
                    return
            if time.monotonic() - began > WAIT_SECONDS:
                self.problems.append(what)
                return
            time.sleep(0.4)

    def _set_link(self, state: str) -> None:
        link = f"{link_prefix_of(self.cluster.run_mark())}{self.away}"
        subprocess.run(["ip", "link", "set", link, state], check=True)
