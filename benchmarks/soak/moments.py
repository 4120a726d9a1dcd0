"""Back to a point in time, 20 times: what is restored was there, and no longer before the instant than the backups lie apart.

A guest writes a chain: each line has a number and the hash of the line before, first to its root disk, then to a volume, both
synced. Meanwhile backups of it are made. Then instants are drawn; for each the VM is restored under another name by
`weft storage restore --point-in-time`, and the chain on its disks is computed anew.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

import msgspec
from tests.cluster.cluster import Cluster, lay_out, until

from benchmarks.measurement import Figure, Measurement
from weft.objects.quantity import parse_moment

INSTANTS = int(os.environ.get("WEFT_SOAK_ROUNDS", "20"))
BACKUPS = 8
APART_SECONDS = 6.0  # at most, between the end of one backup and the next
CLOCK_SECONDS = 2.0  # between the guest's clock, in whole seconds, and this machine's
WRITE = """h=0; i=0; : > /root/chain
while true; do
  i=$((i+1)); line="$i $h $(date +%s)"; h=$(echo "$line" | sha256sum | cut -c1-64)
  echo "$line" >> /root/chain; sync
  echo "$line" | dd of=/dev/vdb bs=512 count=1 conv=sync,fsync,notrunc
done"""


class Found(msgspec.Struct, frozen=True):
    """A restored chain: its last lines on both disks, and when the last on the root disk was written."""

    root: str
    volume: str
    written_at: float


class Moments:
    def __init__(self, cluster: Cluster, repository: Path, seed: int) -> None:
        self.cluster, self.draw = cluster, random.Random(seed)
        self.ages, self.grains = list[float](), list[float]()
        cluster.ok("backuprepository", "create", "moments", "--url", f"dir://{repository}")
        cluster.ok("volume", "create", "chain", "--size", "16M")
        cluster.ok("vm", "create", "writer", "--image", "tiny", "--memory", "128M", "--volume", "chain")
        self._sh("writer", f"({WRITE}) >/dev/null 2>&1 &")
        until(lambda: len(self._sh("writer", "cat /root/chain").splitlines()) > 1)

    def run(self, backups: int, instants: int) -> None:
        for number in range(backups):
            self.cluster.ok("backup", "create", "vm/writer", "--to", "moments", "--name", f"m{number}")
            time.sleep(self.draw.random() * APART_SECONDS)
        until_now = time.time()
        written = self._sh("writer", "cat /root/chain").splitlines()
        made = self.cluster.json("backup", "list")["items"]
        taken = sorted(parse_moment(one["status"]["taken_at"]) for one in made if one["spec"]["of"] == "vm/writer")
        for number in range(instants):
            at = int(taken[0]) + 1 + self.draw.randrange(max(1, int(until_now - taken[0])))
            self._restore(f"r{number}", at, taken, written)
            print(f"  {number + 1}/{instants}: {self.ages[-1]:.1f} s before the instant", flush=True)

    def _restore(self, name: str, at: int, taken: list[float], written: list[str]) -> None:
        text = datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")
        words = ("--point-in-time", text, "--new-name", name)
        self.cluster.ok("storage", "restore", "vm/writer", *words, timeout=240)
        found = self._read(name)
        if found.root not in written or found.volume not in written:
            raise SystemExit(f"{text}: the restored state was never there: {found}")
        if not 0 <= written.index(found.root) - written.index(found.volume) <= 1:
            raise SystemExit(f"{text}: the disks are of two instants: {found}")
        chosen = max(one for one in taken if one <= at)
        following = min((one for one in taken if one > at), default=at + CLOCK_SECONDS)
        if not chosen - CLOCK_SECONDS - self._longest(written) <= found.written_at <= at + CLOCK_SECONDS:
            raise SystemExit(f"{text}: {found} is not of the backup before it, which is of {chosen}")
        self.ages.append(max(0.0, at - found.written_at))
        self.grains.append(following - chosen)
        self.cluster.ok("vm", "delete", name, "--yes")
        self.cluster.ok("volume", "delete", f"{name}-chain", "--yes")

    def _longest(self, written: list[str]) -> float:
        """Seconds between two lines: on a busy machine a line takes its time."""
        times = [float(line.split()[2]) for line in written]
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)

    def _read(self, name: str) -> Found:
        lines = self._sh(name, "cat /root/chain").splitlines()
        digest = "0"
        for number, line in enumerate(lines, 1):
            if line.split()[:2] != [str(number), digest]:
                raise SystemExit(f"{name}: the chain is broken at line {number}: {line}")
            digest = hashlib.sha256(f"{line}\n".encode()).hexdigest()
        volume = self._sh(name, "head -n 1 /dev/vdb | tr -d '\\0'").strip()
        return Found(lines[-1], volume, float(lines[-1].split()[2]))

    def _sh(self, vm: str, script: str) -> str:
        return self.cluster.ok("vm", "exec", vm, "--", "sh", "-c", script)

    def describe(self) -> list[Figure]:
        count = len(self.ages)
        age, grain = statistics.median(self.ages), statistics.median(self.grains)
        return [
            # One that was never there, is of another backup, or has disks of two instants, ends the run without a figure.
            Figure("instants restored, each to a state that was there, within its grain", str(count), kept=count >= 20),
            Figure("the state was so long before the instant", f"{age:.1f} s (at most {max(self.ages):.1f})"),
            Figure("grain: between two backups", f"{grain:.1f} s (at most {max(self.grains):.1f})"),
        ]


def measure() -> Measurement:
    folder, seed = Path(tempfile.mkdtemp(prefix="weft-soak-")), random.SystemRandom().randrange(1 << 16)
    cluster = lay_out(folder)
    try:
        cluster.up()
        moments = Moments(cluster, cluster.make_folder("moments"), seed)
        moments.run(BACKUPS, INSTANTS)
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    how = f"Seed {seed}: {BACKUPS} backups of a VM with a volume, {INSTANTS} instants."
    return Measurement("soak_moments", how, moments.describe())
