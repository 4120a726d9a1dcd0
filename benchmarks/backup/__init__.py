"""Backups of a disk, whole and after 1 % has changed, and their restore, beside ``qemu-img`` with qcow2 and zstd.

The disk is 1 GiB, a quarter of it used: half text that compresses, half random bytes. Nothing is encrypted by qemu-img. A restore
to a pool goes the way that a node's agent takes: the worker reads the repository and writes a qcow2 file over NBD."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.backup.peers import PEERS, Rival, find_peers, measure_size
from benchmarks.measurement import Figure, Measurement
from weft.backup.key import RepositoryKey
from weft.backup.process.job import Job, JobDisk
from weft.backup.process.worker import UID, BackupWorker
from weft.backup.repository import Repository
from weft.contracts.clock import SystemClock
from weft.drivers.volume.directory.qemu_img import describe_chain
from weft.drivers.volume.disk_server import serve_disk

SIZE = 1 << 30
PIECE = 64 << 10
USED = 4096  # chunks, a quarter of the disk
CHANGED = 164  # chunks, 1 % of it
MB = 1e6

UID_OF_BENCH = "bench"
ROUNDS = 5

Ranges = list[tuple[int, int, bool]]


def fill(chance: random.Random, number: int) -> bytes:
    if number % 2:
        return chance.randbytes(PIECE)
    return b"".join(b"%d %d line of a log\n" % (number, chance.getrandbits(20)) for _ in range(2600))[:PIECE].ljust(
        PIECE
    )


def write(path: Path, numbers: list[int], seed: int) -> Ranges:
    """Fill chunks of the disk; the ranges that have changed."""
    chance = random.Random(seed)
    with path.open("r+b") as disk:
        for number in sorted(numbers):
            disk.seek(number * 4 * PIECE)
            disk.write(fill(chance, number))
    return [(number * 4 * PIECE, PIECE, False) for number in sorted(numbers)]


def back_up(
    repo: Repository, disk: Path, changes: Ranges, previous: str | None, uid: str = ""
) -> tuple[str, float, int]:
    """Its id, seconds, and the bytes that it added."""
    descriptor = os.open(disk, os.O_RDONLY)
    began = time.perf_counter()
    try:
        with repo.write(previous=previous) as writer:
            on = "root" if previous else None
            writer.disk("root", SIZE, lambda at, length: os.pread(descriptor, length, at), changes, on)
            made = writer.publish(kind="vm", name="bench", labels={UID: uid})
    finally:
        os.close(descriptor)
    return made.id, time.perf_counter() - began, made.stored_bytes


def convert(source: Path, target: Path, *options: str) -> tuple[float, int]:
    began = time.perf_counter()
    subprocess.run(["qemu-img", "convert", *options, str(source), str(target)], check=True)
    return time.perf_counter() - began, target.stat().st_blocks * 512


def convert_durably(source: Path, target: Path, form: str) -> float:
    """Seconds until the disk has it, as it has what weft restores."""
    began = time.perf_counter()
    convert(source, target, "-O", form)
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return time.perf_counter() - began


def evict(disk: Path) -> None:
    """From the page cache."""
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read_changed(disk: Path, changes: Ranges) -> float:
    """Seconds in which QEMU's own tool reads these ranges."""
    asked = [word for at, length, _ in changes for word in ("-c", f"read {at} {length}")]
    began = time.perf_counter()
    subprocess.run(["qemu-io", "-r", "-f", "raw", *asked, str(disk)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def fetch(job: Job, target: Path) -> float:
    """Seconds for a restore into a pool's file."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(target), str(SIZE)], check=True)

    async def run() -> float:
        async with serve_disk(describe_chain([(str(target), "qcow2")]), read_only=False) as socket:
            began = time.perf_counter()
            there = msgspec.structs.replace(job, act="fetch", disks=[JobDisk("root", socket, SIZE)])
            await asyncio.to_thread(BackupWorker(there, SystemClock(), lambda _: None).run)
            return time.perf_counter() - began

    return asyncio.run(run())


def answer(job: Job) -> float:
    """Seconds from the start of a server's process until a machine has read the first block from it."""
    began, name = time.perf_counter(), f"weft-bench-{os.getpid()}"
    there = msgspec.structs.replace(job, act="serve", serve_at=name, serve_to=[os.getuid()])
    words = [sys.executable, "-m", "weft.backup.process.worker"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(msgspec.json.encode(there))
        process.stdin.close()
        process.stdout.readline()
        at = {"type": "unix", "path": name, "abstract": True}
        disk = json.dumps({"driver": "nbd", "server": at, "export": "root"})
        subprocess.run(
            ["qemu-io", "-r", "-c", f"read 0 {PIECE}", f"json:{disk}"], check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - began
        process.kill()
    return seconds


class Round(msgspec.Struct, frozen=True):
    """Seconds and bytes of one pass over everything, ours and the peer's."""

    full: tuple[float, int]
    peer_full: tuple[float, int]
    less: tuple[float, int]
    peer_less: tuple[float, int]
    read: float
    cold: float
    cold_read: float
    restore: float
    peer_restore: float
    fetch: float
    peer_fetch: float
    durable_peer_restore: float
    durable_peer_fetch: float
    answer: float


def run_once() -> Round:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk, compressed = folder / "disk.raw", folder / "disk.qcow2"
        with disk.open("wb") as file:
            file.truncate(SIZE)
        (folder / "repository").mkdir()
        clock, secret = SystemClock(), os.urandom(32)
        key = RepositoryKey(secret)
        with Repository.create(f"dir://{folder}/repository", key, clock=clock, cache=folder / "cache") as repo:
            full, seconds, stored = back_up(repo, disk, write(disk, list(range(USED)), 1), None)
            packed = ("-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd")
            peer, peer_stored = convert(disk, compressed, *packed)
            changes = write(disk, random.Random(3).sample(range(USED), CHANGED), 2)
            made, less, added = back_up(repo, disk, changes, full)
            read = read_changed(disk, changes)
            changes = write(disk, random.Random(5).sample(range(USED), CHANGED), 4)
            evict(disk)
            made, cold, _ = back_up(repo, disk, changes, made, UID_OF_BENCH)
            evict(disk)
            cold_read = read_changed(disk, changes)
            again, again_stored = convert(disk, folder / "again.qcow2", *packed)
            began = time.perf_counter()
            with repo.read(made) as reader:
                reader.export("root", folder / "restored.raw")
            restore = time.perf_counter() - began
            subprocess.run(["cmp", disk, folder / "restored.raw"], check=True)
            again_packed = folder / "again.qcow2"
            peer_restore, _ = convert(again_packed, folder / "peer.raw", "-O", "raw")
            peer_fetch, _ = convert(again_packed, folder / "peer.qcow2", "-O", "qcow2")
            durable = [convert_durably(again_packed, folder / f"durable.{form}", form) for form in ("raw", "qcow2")]
            place = f"dir://{folder}/repository"
            job = Job("fetch", place, secret.hex(), str(folder / "cache"), backup=UID_OF_BENCH)
            fetched = fetch(job, folder / "fetched.qcow2")
            subprocess.run(["qemu-img", "compare", "-q", disk, folder / "fetched.qcow2"], check=True)
            answered = answer(job)
    return Round(
        *((seconds, stored), (peer, peer_stored), (less, added), (again, again_stored)),
        *(read, cold, cold_read, restore, peer_restore, fetched, peer_fetch, *durable, answered),
    )


def write_programs(path: Path) -> Ranges:
    """Fill the same chunks with this machine's programs and libraries, each from a multiple of 4 KiB on, as on a file system."""
    content = bytearray()
    for place in ("/usr/bin", "/usr/lib"):
        for file in sorted(Path(place).rglob("*")):
            if len(content) >= USED * PIECE:
                break
            if file.is_file() and not file.is_symlink():
                content += file.read_bytes()
                content += bytes(-len(content) % 4096)
    with path.open("r+b") as disk:
        for number in range(len(content[: USED * PIECE]) // PIECE):
            disk.seek(number * 4 * PIECE)
            disk.write(content[number * PIECE : (number + 1) * PIECE])
    return [(0, SIZE, False)]


def compare_bytes(of: str, fill_disk: Callable[[Path], Ranges]) -> list[Figure]:
    """What the whole disk, a clone of it and 1 % changed take up in all, beside each peer that is installed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk = folder / "disk.raw"
        with disk.open("wb") as file:
            file.truncate(SIZE)
        changes = fill_disk(disk)
        (folder / "repository").mkdir()
        place, key = f"dir://{folder}/repository", RepositoryKey(os.urandom(32))
        rivals = [Rival(peer, folder) for peer in find_peers()]
        with Repository.create(place, key, clock=SystemClock(), cache=folder / "cache") as repo:
            full, _, _ = back_up(repo, disk, changes, None)
            back_up(repo, disk, changes, None)  # a clone: another VM with the same disk
            for rival in rivals:
                rival.store("full")
                rival.store("clone")
            changed = write(disk, random.Random(3).sample(range(USED), CHANGED), 2)
            _, seconds, _ = back_up(repo, disk, changed, full)
            for rival in rivals:
                rival.store("changed")
        ours = measure_size(folder / "repository")
        return [_compare_stored(of, rival, ours, seconds) for rival in rivals] + [
            Figure(
                f"bytes stored of {of}, beside {peer}", f"{ours / MB:.1f} MB", goal=f"skipped: {peer} is not installed"
            )
            for peer in PEERS
            if peer not in find_peers()
        ]


def _compare_stored(of: str, rival: Rival, ours: int, seconds: float) -> Figure:
    stored = rival.stored()
    ratio = ours / stored.bytes
    return Figure(
        f"a disk of {of}, a clone and 1 % changed: bytes stored, and seconds of the last, beside {rival.name}",
        f"{ours / MB:.1f} MB, {seconds:.2f} s",
        f"{stored.bytes / MB:.1f} MB, {stored.seconds:.2f} s",
        f"{ratio:.2f} bytes",
        "<= 1.0",
        ratio <= 1.0,
    )


def measure() -> Measurement:
    rounds = [run_once() for _ in range(ROUNDS)]

    def median(name: str) -> Any:
        return sorted(getattr(one, name) for one in rounds)[ROUNDS // 2]

    def compare(what: str, name: str, peer: str, goal: float) -> Figure:
        ratio = median(name)[0] / median(peer) if name == "less" else median(name) / median(peer)
        ours = median(name)[0] if name == "less" else median(name)
        return Figure(what, f"{ours:.2f} s", f"{median(peer):.2f} s", f"{ratio:.2f}", f"<= {goal}", ratio <= goal)

    return Measurement(
        "backup",
        f"A disk of 1 GiB with {USED * PIECE / MB:.0f} MB used, page cache warm, into a folder, encrypted and synced to the disk; "
        "the peer is qemu-img with zstd, without encryption and without syncing. An increment is 1 % of what is used, "
        f"scattered; the peer has no increments and converts everything. Medians of {ROUNDS} rounds, in turn.",
        [
            _row("full backup", median("full"), median("peer_full")),
            _row("increment of 1 %", median("less"), median("peer_less")),
            compare("increment of 1 %, beside qemu-io that only reads it", "less", "read", 1.1),
            compare("the same, with none of it in the page cache", "cold", "cold_read", 1.1),
            compare("restore to a raw file", "restore", "peer_restore", 1.2),
            compare("the same, the peer synced to the disk, too", "restore", "durable_peer_restore", 1.2),
            compare("restore to a pool, over NBD", "fetch", "peer_fetch", 1.2),
            compare("the same, the peer synced to the disk, too", "fetch", "durable_peer_fetch", 1.2),
            Figure(
                "instant restore: first block, with the start of the server",
                f"{median('answer'):.2f} s",
                goal="<= 2 s",
                kept=bool(median("answer") <= 2),
            ),
            *compare_bytes("programs and libraries", write_programs),
            *compare_bytes("lines of logs and random bytes", lambda disk: write(disk, list(range(USED)), 1)),
        ],
    )


def _row(what: str, ours: tuple[float, int], peer: tuple[float, int]) -> Figure:
    return Figure(
        what,
        f"{ours[0]:.2f} s, {ours[1] / MB:.1f} MB",
        f"{peer[0]:.2f} s, {peer[1] / MB:.1f} MB",
        f"{ours[0] / peer[0]:.2f} time, {ours[1] / peer[1]:.2f} bytes",
    )
