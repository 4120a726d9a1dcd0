"""What replication to a second cluster loses, and how long a failover takes.

Two clusters on this machine, linked; guests write through to a second disk without a pause, and say each round that the disk has.
The line between the clusters is cut now and then. Then the first cluster is cut off and the replicas are promoted, and at last
the VMs go back, handed over. What a guest said before is compared with what its copy's disk has.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
from tests.cluster.cluster import Cluster, lay_out, until
from tests.cluster.second import THERE, cut, with_second
from tests.commands import WEFT

from benchmarks.measurement import Figure, Measurement, spread
from weft.client import Client
from weft.client.context import find_context
from weft.launch.local.down import WEST, place_second

GUESTS, RATE, RPO = 4, 5e6, 60.0
SECONDS, CUTS, CUT_SECONDS = 570, 2, 20
SLOW_RATE, BACK_SECONDS = 5e5, 10  # of the copies, before they go back
PIECE, PIECES = 256 << 10, 384  # as the guests write them
MOST_RTO = 60.0
T = TypeVar("T")
Rounds = list[tuple[float, int]]  # when the guest said that its disk has this round; the round


class Disk(msgspec.Struct, frozen=True):
    """What a guest's disk has."""

    round: int
    pieces: int
    wrong: int


class Failover(msgspec.Struct, frozen=True):
    seconds: float  # from the fault, or the order, until the guest answered
    lost_rounds: int  # that it had said
    lost_seconds: float  # from when it had said the newest one that is there until the fault
    stated_seconds: float
    disk: Disk


def measure() -> Measurement:
    folder = Path(tempfile.mkdtemp(prefix="weft-bench-"))
    folder.chmod(0o755)
    source = Path(__file__).with_name("writer.c")
    subprocess.run(["gcc", "-O2", "-static", "-o", str(folder / "writer"), str(source)], check=True)
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
        self.cluster, self.names = cluster, [f"g{number}" for number in range(GUESTS)]
        self.west = Client(find_context(folder=place_second(str(cluster.folder)), environ={}))
        self.whole: dict[str, int] = {}  # bytes of the first points
        self.ages: list[float] = []  # of the newest points, as they were each second

    def measure(self) -> Measurement:
        self._make_guests()
        with self._writing((), RATE) as said:
            until(lambda: all(rounds[-1][1] >= PIECES for rounds in said.values()), 180)
            self._replicate()
            begun, before = time.monotonic(), {name: len(rounds) for name, rounds in said.items()}
            self._run_on()
            took = time.monotonic() - begun
            rates = [(len(said[name]) - before[name]) * PIECE / took / 1e6 for name in self.names]
            shown = max(float(str(self._status(name)["rpo_seconds"])) for name in self.names)
            unplanned, both = self._fail_over(said)
        with self._writing(THERE, SLOW_RATE) as said:
            time.sleep(BACK_SECONDS)
            increments = self._each(self._replicate_back)
            planned = self._each(lambda name: self._go_back(name, said[name]))
        return self._write(rates, shown, unplanned, both, increments, planned)

    def _make_guests(self) -> None:
        east = self.cluster
        for name in self.names:
            east.ok("volume", "create", f"{name}-data", "--size", "128M")
            east.ok("vm", "create", name, "--image", "tiny", "--memory", "128M", "--volume", f"{name}-data")
            east.ok("vm", "cp", str(east.folder / "writer"), f"{name}:/root/writer")

    @contextmanager
    def _writing(self, where: tuple[str, ...], rate: float) -> Iterator[dict[str, Rounds]]:
        """What the guests say while they write. They end with their VMs."""
        said: dict[str, Rounds] = {name: [] for name in self.names}
        running = []

        def listen(process: subprocess.Popen[bytes], rounds: Rounds) -> None:
            assert process.stdout is not None
            for line in process.stdout:
                rounds.append((time.monotonic(), int(line)))

        try:
            for name in self.names:
                words = [WEFT, *where, "vm", "exec", name, "--", "/root/writer", "run", "/dev/vdb", str(int(rate))]
                process = subprocess.Popen(
                    words, cwd=self.cluster.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
                thread = threading.Thread(target=listen, args=(process, said[name]))
                thread.start()
                running.append((process, thread))
            until(lambda: all(said.values()))
            yield said
        finally:
            for process, thread in running:
                process.kill()
                process.wait()
                thread.join()

    def _each(self, work: Callable[[str], T]) -> list[T]:
        """Of all guests at once."""
        with ThreadPoolExecutor(GUESTS) as pool:
            return list(pool.map(work, self.names))

    def _status(self, name: str) -> dict[str, object]:
        found: dict[str, object] = self.cluster.object("replication", name)["status"]
        return found

    def _replicate(self) -> None:
        for name in self.names:
            self.cluster.ok("cluster", "replicate", f"vm/{name}", "--destination", WEST, "--rpo", f"{RPO:g}s")
            self.whole[name] = int(str(self._status(name)["bytes"]))

    def _run_on(self) -> None:
        """For the time of the measurement, with the line cut now and then."""
        end, cuts = time.monotonic() + SECONDS, [SECONDS * (number + 1) / (CUTS + 1) for number in range(CUTS)]
        for at in cuts:
            self._watch(end - SECONDS + at)
            with cut(self.cluster):
                self._watch(time.monotonic() + CUT_SECONDS)
        self._watch(end)

    def _watch(self, end: float) -> None:
        """Note each second how old the newest points are that the second cluster could promote."""
        while time.monotonic() < end:
            for replica in self.west.list("replica").items:
                points = replica["status"].get("points")
                if points:
                    self.ages.append(time.time() - points[-1]["taken_at"])
            time.sleep(1)

    def _check(self, name: str, *where: str) -> Disk:
        told = self.cluster.ok(*where, "vm", "exec", name, "--", "/root/writer", "check", "/dev/vdb")
        return Disk(*map(int, told.split()))

    def _fail_over(self, said: dict[str, Rounds]) -> tuple[list[Failover], float]:
        """Without a word from the first cluster. With that: how long the VM there ran beside its copy once the line was back."""
        with cut(self.cluster):
            fault = time.monotonic()
            done = self._each(lambda name: self._promote(name, said[name], fault))
        back = time.monotonic()

        def are_left() -> bool:
            vms = [self.cluster.vm(name) for name in self.names]
            return all(vm["marks"]["fenced"] and vm["status"]["phase"] == "Stopped" for vm in vms)

        until(are_left, 180)
        return done, time.monotonic() - back

    def _promote(self, name: str, rounds: Rounds, fault: float) -> Failover:
        promoted = self.cluster.run(*THERE, "replica", "promote", name, "--force")
        stated = re.search(r"from point \d+, which is (?:(\d+)m ?)?([0-9.]+)s old", promoted.stderr.decode())
        if promoted.returncode or stated is None:
            raise SystemExit(f"{name} was not promoted: {promoted.stderr.decode()}")
        disk = self._check(name, *THERE)
        seconds = time.monotonic() - fault
        before = [(at, number) for at, number in rounds if at <= fault]
        kept = max((at for at, number in before if number <= disk.round), default=before[0][0])
        lost = max(0, before[-1][1] - disk.round)
        return Failover(seconds, lost, fault - kept if lost else 0.0, 60 * int(stated[1] or 0) + float(stated[2]), disk)

    def _replicate_back(self, name: str) -> int:
        """Bytes of the first point."""
        self.cluster.ok(*THERE, "cluster", "replicate", f"vm/{name}", "--destination", "east", "--rpo", f"{RPO:g}s")
        return int(self.west.get("replication", name)["status"]["bytes"])

    def _go_back(self, name: str, rounds: Rounds) -> Failover:
        began = time.monotonic()
        self.cluster.ok(*THERE, "replication", "hand-over", name)
        promoted = self.cluster.run("replica", "promote", name)
        if promoted.returncode or b"nothing is lost" not in promoted.stderr:
            raise SystemExit(f"{name} did not go back: {promoted.stderr.decode()}")
        disk = self._check(name)
        return Failover(time.monotonic() - began, max(0, rounds[-1][1] - disk.round), 0.0, 0.0, disk)

    def _write(
        self,
        rates: list[float],
        shown: float,
        unplanned: list[Failover],
        both: float,
        increments: list[int],
        planned: list[Failover],
    ) -> Measurement:
        whole, oldest = list(self.whole.values()), max(self.ages)
        disks = [one.disk for one in (*unplanned, *planned)]
        wrong, pieces = sum(disk.wrong for disk in disks), sum(disk.pieces for disk in disks)
        rto, back = max(one.seconds for one in unplanned), max(one.seconds for one in planned)
        lost = [one.lost_seconds for one in unplanned]
        is_stated = all(one.lost_seconds <= one.stated_seconds <= RPO for one in unplanned)
        none_lost = not any(one.lost_rounds for one in planned)
        share = sum(increments) / sum(whole)
        return Measurement(
            "replication",
            f"{GUESTS} guests write up to {RATE / 1e6:g} MB/s each through to a second disk for {SECONDS} s, with an RPO of "
            f"{RPO:g} s; the line to the second cluster, on this machine, is cut {CUTS} times for {CUT_SECONDS} s. Then it is cut "
            "and all replicas are promoted; at last the VMs are handed over and go back.",
            [
                Figure("written, of each guest", spread(rates, "MB/s", 1, 1)),
                Figure(
                    "age of the newest point, at most",
                    f"{oldest:.1f} s",
                    f"weft says: {shown:.1f} s",
                    goal=f"≤ {RPO:g} s",
                    kept=max(oldest, shown) <= RPO,
                ),
                Figure(
                    "unplanned failover of all: the last guest answers after",
                    f"{rto:.1f} s",
                    goal=f"≤ {MOST_RTO:g} s",
                    kept=rto <= MOST_RTO,
                ),
                Figure(
                    "lost of what a guest had been told is on its disk",
                    spread(lost, "s", 1, 1),
                    f"weft says: {spread([one.stated_seconds for one in unplanned], 's', 1, 1)}",
                    goal="≤ what it says, ≤ the RPO",
                    kept=is_stated,
                ),
                Figure("the VMs that were cut off are stopped, after the line is back", f"{both:.1f} s"),
                Figure(
                    "the first point of the way back",
                    spread([one / 1e6 for one in map(float, increments)], "MB", 1, 1),
                    f"the whole: {spread([one / 1e6 for one in map(float, whole)], 'MB', 1, 1)}",
                    f"{share:.2f}×",
                    "what changed only",
                    share < 0.5,
                ),
                Figure(
                    "planned failback of all: lost",
                    f"{sum(one.lost_rounds for one in planned)} of {GUESTS} guests' writes",
                    goal="0",
                    kept=none_lost,
                ),
                Figure("the same: the last guest answers after", f"{back:.1f} s"),
                Figure("pieces that guests found wrong", f"{wrong} of {pieces:,}", goal="0", kept=not wrong),
            ],
        )
