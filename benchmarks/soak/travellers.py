"""The guests that move: each writes its memory and its disks, notices what is lost, and answers whoever asks it."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.cluster.cluster import ROOT, Cluster

from benchmarks.soak.callers import Caller

PAGES_PER_SECOND = 3000  # of each writer: 12 MB/s
BULK_MIB = 8  # that is on disk and stays as it is
VOLUME_MIB = 64
PATIENCE_SECONDS = 300.0
SHARED = "shared"


class Broken(Exception):
    """A promise about a guest was broken."""


class Kind(NamedTuple):
    """A guest to make; ``writers`` are the verifier's kinds of load, which write half of its memory among them."""

    name: str
    image: str
    memory_mib: int
    cpu: int
    writers: str
    volume: bool = False
    pool: str = ""


KINDS = (
    Kind("counter", "tiny", 160, 1, "c"),
    Kind("noise", "tiny", 160, 1, "r", volume=True),
    Kind("text", "tiny", 160, 2, "tc", volume=True),
    Kind("common", "tiny", 160, 1, "c", volume=True, pool=SHARED),
    Kind("debian", "debian-12", 512, 2, "rt", volume=True),
)


def build_programs(folder: Path) -> dict[str, bytes]:
    """The two that run in the guests, by name."""
    sources = {
        "verifier": ROOT / "tests" / "host" / "verifier.c",
        "echo-back": Path(__file__).with_name("echo.c"),
    }
    for name, source in sources.items():
        subprocess.run(["gcc", "-O2", "-static", "-s", "-o", str(folder / name), str(source)], check=True)
    return {name: (folder / name).read_bytes() for name in sources}


class Traveller:
    """One guest in the cluster, with who asks it."""

    def __init__(self, cluster: Cluster, kind: Kind, programs: dict[str, bytes]) -> None:
        self.cluster, self.kind, self.name = cluster, kind, kind.name
        self._programs, self._digest, self._owes = programs, "", list[int]()
        self.port = cluster.free_port()

    def create(self) -> None:
        pool = ("--pool", self.kind.pool) if self.kind.pool else ()
        words = ["--image", self.kind.image, "--memory", f"{self.kind.memory_mib}M", "--cpu", str(self.kind.cpu), *pool]
        if self.kind.volume:
            self.cluster.ok("create", "volume", f"{self.name}-data", "--size", f"{VOLUME_MIB}M", *pool)
            words += ["--volume", f"{self.name}-data"]
        words += ["--publish", f"{self.port}:7", "--grace", "60s", "--timeout", "1500s"]
        self.cluster.ok("vm", "create", self.name, *words, timeout=1530)
        for name, program in self._programs.items():
            self.run(f"cat > /root/{name}; chmod +x /root/{name}", stdin=program)
        for disk in self._bulk():
            self.run(f"dd if=/dev/urandom of={disk} bs=1M {self._where('seek', disk)} 2>/dev/null; sync")
        self._digest = self._read_bulk()
        self.begin()
        self.caller = Caller(self.name, self.port)
        self.caller.go_on()

    def begin(self) -> None:
        """Its programs, after each boot."""
        self.run("/root/echo-back 7 >/dev/null 2>&1 </dev/null &")
        writers = self.kind.writers
        share = self.kind.memory_mib // 2 // len(writers)
        for number, load in enumerate(writers):
            counter = "/dev/vdb" if self.kind.volume and number == 0 else f"/root/counter.{number}"
            words = f"/root/verifier {share} {PAGES_PER_SECOND} {counter} /dev/shm/verdict.{number} {load}"
            self.run(f"{words} >/dev/null 2>&1 </dev/null &")
        self._owes = [1 for _ in writers]

    def run(self, script: str, *, stdin: bytes | None = None) -> str:
        return self.cluster.ok("vm", "exec", self.name, "--", "sh", "-c", script, stdin=stdin).strip()

    def look(self) -> list[int]:
        """The rounds that each of its writers has made; raises Broken where one has lost anything."""
        verdicts = [f"/dev/shm/verdict.{number}" for number in range(len(self.kind.writers))]
        said = self.run("; ".join(f"cat {name} 2>/dev/null || echo rounds=0 bad=0" for name in verdicts)).splitlines()
        found = [re.fullmatch(r"rounds=(\d+) bad=0", line) for line in said]
        if len(found) != len(verdicts) or not all(found):
            raise Broken(f"{self.name} has lost what it wrote: {said}")
        return [int(one[1]) for one in found if one is not None]

    def owe_rounds(self) -> None:
        """Of what was begun before a move one round ends after it, and the next one was made there from begin to end."""
        self._owes = [rounds + 2 for rounds in self.look()]

    def settle(self) -> None:
        """Wait for the rounds that it owes, all of them whole."""
        began = time.monotonic()
        while True:
            rounds = self.look()
            if all(made >= owed for made, owed in zip(rounds, self._owes, strict=True)):
                return
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise Broken(f"{self.name} makes no rounds any more: {rounds}, not {self._owes}")
            time.sleep(1.0)

    def check_disks(self) -> None:
        """What was put on its disks at first is there, read from the disks themselves."""
        if (digest := self._read_bulk()) != self._digest:
            raise Broken(f"{self.name}'s disks hold something else: {digest} for {self._digest}")

    def check_counters(self, rounds: list[int]) -> None:
        """After a boot: what was synced last is no older than what was seen before it."""
        for number, least in enumerate(rounds):
            counter = "/dev/vdb" if self.kind.volume and number == 0 else f"/root/counter.{number}"
            said = self.run(f"dd if={counter} bs=8 count=1 2>/dev/null | od -An -tu8")
            if int(said) < least:
                raise Broken(f"{self.name}: {counter} says {said}, and had synced {least}")

    def read_boot_id(self) -> str:
        return self.run("cat /proc/sys/kernel/random/boot_id")

    def see(self) -> dict[str, Any]:
        return dict(self.cluster.vm(self.name)["status"])

    def allocations(self) -> list[dict[str, Any]]:
        found = self.cluster.json("allocation", "list")["items"]
        return [item for item in found if item["spec"]["workload"]["name"] == self.name]

    def delete(self) -> None:
        self.caller.close()
        self.cluster.ok("vm", "delete", self.name, "--yes")
        if self.kind.volume:
            self.cluster.ok("delete", "volume", f"{self.name}-data", "--yes")

    def _bulk(self) -> list[str]:
        return ["/root/bulk", *(["/dev/vdb"] if self.kind.volume else [])]

    def _where(self, word: str, disk: str) -> str:
        return f"count={BULK_MIB}" + (f" {word}=1" if disk == "/dev/vdb" else "")

    def _read_bulk(self) -> str:
        read = "; ".join(f"dd if={disk} bs=1M {self._where('skip', disk)} 2>/dev/null" for disk in self._bulk())
        return self.run(f"echo 3 > /proc/sys/vm/drop_caches; ({read}) | sha256sum").split()[0]
