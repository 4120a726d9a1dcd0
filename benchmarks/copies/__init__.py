"""What a second copy costs a VM that writes, and how old its newest point becomes.

One guest writes through to a second disk at a rate, in turn with one copy and with two; it says each round that the disk has. With
two, another node of the cluster takes the points in. All nodes are on this machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster, lay_out, until
from tests.commands import WEFT

from benchmarks.measurement import Figure, Measurement, spread
from benchmarks.replication import PIECE, PIECES
from weft.client import Client
from weft.client.context import find_context

RATE, RPO, TURNS = 5e6, 60.0, 2
SECONDS = float(os.environ.get("SECONDS_EACH", "180"))  # of each turn, with one copy and with two
LEAST_SHARE = 0.95
NAME, COPY = "writer", "writer-copy"
WRITER = Path(__file__).parents[1] / "replication" / "writer.c"


def measure() -> Measurement:
    folder = Path(tempfile.mkdtemp(prefix="weft-bench-"))
    folder.chmod(0o755)
    subprocess.run(["gcc", "-O2", "-static", "-o", str(folder / "writer"), str(WRITER)], check=True)
    cluster = lay_out(folder)
    try:
        cluster.up()
        return Bench(cluster).measure()
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)


class Bench:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.api = Client(find_context(folder=str(cluster.folder), environ={}))
        self.rounds = 0  # that the guest has said
        self.ages: list[float] = []  # of the newest point, as it was each second

    def measure(self) -> Measurement:
        self.cluster.ok("volume", "create", "data", "--size", "128M")
        self.cluster.ok("vm", "create", NAME, "--image", "tiny", "--memory", "128M", "--volume", "data")
        self.cluster.ok("vm", "cp", str(self.cluster.folder / "writer"), f"{NAME}:/root/writer")
        alone, copied, shown = [], [], []
        with self._writing():
            until(lambda: self.rounds >= PIECES)  # the whole disk is written once
            for _ in range(TURNS):
                alone.append(self._take_rate())
                self.cluster.ok("vm", "set", NAME, "--copies", "2")
                until(lambda: self._status().get("point") is not None)
                copied.append(self._take_rate())
                shown.append(float(self._status()["rpo_seconds"]))
                self.cluster.ok("vm", "set", NAME, "--copies", "1")
                until(lambda: not self._status())
        share, oldest = sum(copied) / sum(alone), max(*self.ages, *shown)
        return Measurement(
            "copies",
            f"One guest writes up to {RATE / 1e6:g} MB/s through to a second disk of 128 MB, {TURNS} times for {SECONDS:g} s with "
            f"one copy and with two in turn, with an RPO of {RPO:g} s; the nodes are on this machine.",
            [
                Figure(
                    "written with two copies",
                    spread(copied, "MB/s", 1, 2),
                    f"with one: {spread(alone, 'MB/s', 1, 2)}",
                    f"{share:.3f}×",
                    f"≥ {LEAST_SHARE:g}×",
                    share >= LEAST_SHARE,
                ),
                Figure(
                    "age of the newest point, at most",
                    f"{max(self.ages):.1f} s",
                    f"weft says: {max(shown):.1f} s",
                    goal=f"≤ {RPO:g} s",
                    kept=oldest <= RPO,
                ),
            ],
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        words = [WEFT, "vm", "exec", NAME, "--", "/root/writer", "run", "/dev/vdb", str(int(RATE))]
        process = subprocess.Popen(
            words, cwd=self.cluster.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

        def listen() -> None:
            assert process.stdout is not None
            for _ in process.stdout:
                self.rounds += 1

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield
        finally:
            process.kill()
            process.wait()
            thread.join()

    def _take_rate(self) -> float:
        """MB/s of the guest, while the age of the newest point is noted each second, if there is one."""
        began, before = time.monotonic(), self.rounds
        while time.monotonic() - began < SECONDS:
            if point := self._status().get("point"):
                self.ages.append(time.time() - point["begun_at"])
            time.sleep(1)
        return (self.rounds - before) * PIECE / (time.monotonic() - began) / 1e6

    def _status(self) -> dict[str, Any]:
        """Of the replication to the other node; empty: there is none."""
        found = [one["status"] for one in self.api.list("replication").items if one["name"] == COPY]
        return dict(found[0]) if found else {}
