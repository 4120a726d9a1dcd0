"""How long a guest stands still that migrates to another cluster, beside one that migrates inside of its own.

Two clusters on this machine, linked. One guest writes half of its memory and its disk over and over, and verifies each round what
it wrote before. It migrates to another node of its cluster, to the other cluster and back, in turn; both kinds of pause are those
that the source's node measured. A guest that lost anything ends the run.

``ROUNDS`` (5): each has two migrations between clusters, and as many inside of one.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests.cluster.cluster import ROOT, Cluster, lay_out
from tests.cluster.second import THERE, with_second

from benchmarks.measurement import Figure, Measurement, spread
from weft.launch.local.down import WEST
from weft.launch.local.second.cluster import EAST

ROUNDS = int(os.environ.get("ROUNDS", "5"))
CIDR = "10.222.0.0/24"  # of a network that both clusters have, each its own
NAME, MEMORY_MIB, WRITTEN_MIB, PAGES_PER_SECOND = "traveller", 160, 32, 3000
MOST_RATIO = 2.0
PATIENCE_SECONDS = 180.0
SECONDS = 180  # of one migration


def measure() -> Measurement:
    folder = Path(tempfile.mkdtemp(prefix="weft-bench-"))
    folder.chmod(0o755)
    source = ROOT / "tests" / "host" / "verifier.c"
    subprocess.run(["gcc", "-O2", "-static", "-s", "-o", str(folder / "verifier"), str(source)], check=True)
    cluster = lay_out(folder)
    try:
        cluster.up()
        with with_second(cluster):
            return Bench(cluster).measure()
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)


class Bench:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.where: tuple[str, ...] = ()  # words before a command that is for the cluster that has the guest
        self.verified = 0

    def measure(self) -> Measurement:
        began = time.monotonic()
        inside, between, took = list[float](), list[float](), list[float]()
        self._begin()
        for _ in range(ROUNDS):
            for _ in range(2):
                inside.append(self._migrate()[0])
            for to in (WEST, EAST):
                pause, seconds = self._migrate("--to-cluster", to)
                between.append(pause)
                took.append(seconds)
        ratio = statistics.median(between) / statistics.median(inside)
        figures = [
            Figure(
                "pause of a guest that migrates to another cluster",
                spread(between),
                f"inside of one {spread(inside)}",
                f"{ratio:.2f}",
                f"≤ {MOST_RATIO:.0f}",
                ratio <= MOST_RATIO,
            ),
            Figure("… the longest", f"{max(between) * 1000:.0f} ms", f"inside of one {max(inside) * 1000:.0f} ms"),
            Figure(
                "migrations between clusters after which the guest had all that it wrote",
                f"{self.verified} of {2 * ROUNDS}",
                goal="all",
                kept=self.verified == 2 * ROUNDS,
            ),
            Figure("time from the order until it was over", spread(took, "s", 1.0, 1)),
        ]
        return Measurement(
            "cluster_migration",
            f"A guest of image tiny, {MEMORY_MIB} MiB, writes {WRITTEN_MIB} MiB of its memory and its disk without a pause, and "
            "verifies all of it each round. It migrates between two nodes of a cluster, to another cluster on the same "
            f"machine, and back, in turn. The ratio is that of the medians. {time.monotonic() - began:.0f} s.",
            figures,
        )

    def _begin(self) -> None:
        for where in ((), THERE):
            self._ok(where, "network", "create", NAME, "--cidr", CIDR)
        made = ("--image", "tiny", "--memory", f"{MEMORY_MIB}M", "--network", NAME)
        self._ok((), "vm", "create", NAME, *made)
        self._ok((), "vm", "cp", str(self.cluster.folder / "verifier"), f"{NAME}:/root/verifier")
        words = f"/root/verifier {WRITTEN_MIB} {PAGES_PER_SECOND} /root/counter /dev/shm/verdict c"
        self._run(f"chmod +x /root/verifier; {words} >/dev/null 2>&1 &")
        self._look(-1)

    def _migrate(self, *to: str) -> tuple[float, float]:
        """Seconds of its pause, and until the migration was over."""
        rounds, before, began = self._look(-1), self.where, time.monotonic()
        self._ok(before, "vm", "migrate", NAME, *to, "--timeout", f"{SECONDS}s")
        took = time.monotonic() - began
        listed = self.cluster.json(*before, "migration", "list")["items"]
        newest = max(listed, key=lambda item: item["created_at"])["status"]
        assert newest["phase"] == "Succeeded", newest
        if to:
            self.where = () if before else THERE
        self._look(rounds + 1)  # a whole round that began after it
        if to:
            self.verified += 1
            self._ok(before, "vm", "delete", NAME, "--yes")  # its name, which the way back needs
        return newest["actual"]["pause_ms"] / 1000, took

    def _look(self, after: int) -> int:
        """The rounds that the guest has made, once more than ``after``. Raises SystemExit if it has lost anything."""
        ends = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < ends:
            said = self._run("cat /dev/shm/verdict 2>/dev/null || true")
            if found := re.match(r"rounds=(\d+) bad=(\d+)", said):
                if found[2] != "0":
                    raise SystemExit(f"the guest has lost what it wrote: {said}")
                if int(found[1]) > after:
                    return int(found[1])
            time.sleep(0.2)
        raise SystemExit(f"the guest has made no more than {after} rounds in {PATIENCE_SECONDS:.0f} s")

    def _run(self, script: str) -> str:
        return self._ok(self.where, "vm", "exec", NAME, "--", "sh", "-c", script)

    def _ok(self, where: tuple[str, ...], *words: str) -> str:
        return self.cluster.ok(*where, *words, timeout=SECONDS + 60)
