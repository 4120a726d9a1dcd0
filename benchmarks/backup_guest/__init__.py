"""How long a guest's fdatasync takes while the guest is backed up to a slow repository.

A guest writes 4 KiB and syncs them, again and again; in every second turn a backup of it is made meanwhile, into a bucket that
takes 1 MB in a second. The turn begins before the backup does, so the moment of its snapshot is part of it.
"""

from __future__ import annotations

import io
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

import msgspec
from tests.cluster.cluster import Cluster, lay_out
from tests.unit.backup.bucket import Bucket, Handler

from benchmarks.measurement import Figure, Measurement

TURNS, SECONDS = 3, 20
BYTES_PER_SECOND, PIECE = 1e6, 64 << 10
RANDOM_MIB = 32  # new for each backup: it lasts longer than its turn
MOST_RATIO, MOST_STALL_SECONDS = 1.5, 1.5


class SlowBody(io.RawIOBase):
    """What a client sends, no faster than the bucket takes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._file.readline(size)

    def read(self, size: int = -1, /) -> bytes:
        pieces = []
        while size > 0 and (piece := self._file.read(min(size, PIECE))):
            pieces.append(piece)
            size -= len(piece)
            time.sleep(len(piece) / BYTES_PER_SECOND)
        return b"".join(pieces)


class SlowHandler(Handler):
    def setup(self) -> None:
        super().setup()
        self.rfile = SlowBody(self.rfile)  # type: ignore[assignment]


class Turn(msgspec.Struct, frozen=True):
    """Milliseconds, but for the number of writes."""

    count: int
    median: float
    p99: float
    longest: float


def measure() -> Measurement:
    folder = Path(tempfile.mkdtemp(prefix="weft-bench-"))
    folder.chmod(0o755)
    program = folder / "fsync"
    source = Path(__file__).with_name("fsync.c")
    subprocess.run(["gcc", "-O2", "-static", "-o", str(program), str(source)], check=True)
    cluster = lay_out(folder)
    try:
        cluster.up()
        return _measure(cluster, program)
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)


def _measure(cluster: Cluster, program: Path) -> Measurement:
    bucket = Bucket(locks=False, address=cluster.host_address, handler=SlowHandler)
    try:
        words = ("--access-key", "key", "--secret-key-stdin")
        cluster.ok("backuprepository", "create", "slow", "--url", bucket.url, *words, stdin=b"secret\n")
        cluster.ok("vm", "create", "app", "--image", "tiny", "--memory", "256M")
        cluster.ok("vm", "cp", str(program), "app:/root/fsync")
        _run(cluster, 2)
        plain, busy = list[Turn](), list[Turn]()
        for number in range(TURNS):
            plain.append(_run(cluster, SECONDS))
            busy.append(_run_beside(cluster, f"b{number}"))
    finally:
        bucket.close()
    ratio = statistics.median(one.p99 for one in busy) / statistics.median(one.p99 for one in plain)
    longest = max(one.longest for one in busy) / 1000
    return Measurement(
        "backup_guest",
        (__doc__ or "").split("\n\n")[1].strip().replace("\n", " ") + f" {TURNS} turns of {SECONDS} s each, in turn.",
        [
            Figure("fdatasync, p50", _spread(busy, "median"), f"without a backup: {_spread(plain, 'median')}"),
            Figure(
                "fdatasync, p99",
                _spread(busy, "p99"),
                f"without a backup: {_spread(plain, 'p99')}",
                f"{ratio:.2f}×",
                f"≤ {MOST_RATIO}×",
                ratio <= MOST_RATIO,
            ),
            Figure(
                "the longest one",
                f"{longest:.2f} s",
                f"without a backup: {max(one.longest for one in plain) / 1000:.2f} s",
                goal=f"≤ {MOST_STALL_SECONDS} s",
                kept=longest <= MOST_STALL_SECONDS,
            ),
            Figure("writes in a turn", _spread(busy, "count", ""), f"without a backup: {_spread(plain, 'count', '')}"),
        ],
    )


def _run(cluster: Cluster, seconds: int) -> Turn:
    said = cluster.ok("vm", "exec", "app", "--", "/root/fsync", "/root/file", str(seconds), timeout=120)
    count, *times = map(int, said.split())
    return Turn(count, *(one / 1000 for one in times))


def _run_beside(cluster: Cluster, backup: str) -> Turn:
    fill = f"dd if=/dev/urandom of=/root/new bs=1M count={RANDOM_MIB}; sync"
    cluster.ok("vm", "exec", "app", "--", "sh", "-c", fill)
    began = time.monotonic()
    cluster.ok("backup", "create", "vm/app", "--to", "slow", "--name", backup, "--detach")
    turn = _run(cluster, SECONDS)
    phase = cluster.object("backup", backup)["status"]["phase"]
    if phase != "Copying":
        raise SystemExit(f"{backup} was {phase} after {time.monotonic() - began:.0f} s, so the guest ran without it")
    cluster.ok("wait", f"backup/{backup}", "--for=phase=Ready", "--timeout", "300s", timeout=320)
    return turn


def _spread(turns: list[Turn], name: str, unit: str = " ms") -> str:
    found = sorted(getattr(one, name) for one in turns)
    return f"{statistics.median(found):.4g}{unit} ({found[0]:.4g}–{found[-1]:.4g})"
