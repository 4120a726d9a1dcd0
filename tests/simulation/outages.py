"""What befalls one of several servers, or what they share: each ends after a while."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.connections import name_line
from tests.simulation.etcd import Cluster
from tests.simulation.fate import SKEW_SECONDS
from tests.simulation.server import Server
from tests.simulation.virtual_loop import Part

if TYPE_CHECKING:
    from tests.simulation.fabric import Fabric

LENGTHS = (1.0, 3.0, 12.0, 30.0)  # seconds; a leader lease is 10 s long


class Outages:
    def __init__(self, fabric: Fabric, cluster: Cluster) -> None:
        self._fabric, self._cluster = fabric, cluster

    def befall(self, name: str) -> bool:
        """Whether a misfortune of this name could happen, and does."""
        fabric, cluster, draw = self._fabric, self._cluster, self._fabric.fate.draw
        server = draw.choice(fabric.servers)
        seconds = draw.choice(LENGTHS) * draw.uniform(0.3, 1.2)
        match name:
            case "server killed" if server.doorway.up or server.controllers is not None:
                server.kill()
                fabric.later(seconds, server.start)
            case "server frozen":
                self._freeze(server, seconds)
            case "server cut off from etcd":
                self._add(cluster.cut_off, server.name, seconds)
            case "server deaf to etcd":
                self._add(cluster.deaf, server.name, seconds)
            case "server cut off from a node":
                self._add(fabric.fate.cut_off, name_line(draw.choice(fabric.nodes).name, server.name), seconds)
            case "server cut off from all":
                self._add(fabric.fate.cut_off, server.name, seconds)
            case "etcd without a leader":
                cluster.leaderless = True
                fabric.later(draw.choice((0.5, 1.5, 2.5, 10.0)), self._elect)
            case "server's clock jumps":
                server.clock.jump_seconds = draw.uniform(-SKEW_SECONDS, SKEW_SECONDS)
            case _:
                return False
        return True

    def end(self) -> None:
        """All servers are there, and reach all."""
        self._elect()
        self._cluster.cut_off.clear()
        self._cluster.deaf.clear()
        for server in self._fabric.servers:
            for part in _find_parts(server):
                part.thaw()
            server.start()

    def _freeze(self, server: Server, seconds: float) -> None:
        """One of its processes stands still, or its machine."""
        parts = _find_parts(server)
        for part in parts if self._fabric.fate.draw.random() < 0.5 else parts[-1:]:
            part.freeze()
            self._fabric.later(seconds, part.thaw)

    def _add(self, cut: set[str], name: str, seconds: float) -> None:
        cut.add(name)
        self._fabric.later(seconds, lambda: cut.discard(name))

    def _elect(self) -> None:
        self._cluster.leaderless = False


def _find_parts(server: Server) -> list[Part]:
    return [part for part in (server.doorway.part, server.controllers) if part is not None and part.alive]
