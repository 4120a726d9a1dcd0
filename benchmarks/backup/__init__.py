"""Backups of a disk, whole and after 1 % has changed, against ``qemu-img convert -c`` to qcow2 with zstd: seconds and bytes.

The disk is 1 GiB, a quarter of it used: half text that compresses, half random bytes. Nothing is encrypted by qemu-img."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.measurement import Figure, Measurement
from weft.backup.key import RepositoryKey
from weft.backup.repository import Repository
from weft.contracts.clock import SystemClock

SIZE = 1 << 30
PIECE = 64 << 10
USED = 4096  # chunks, a quarter of the disk
CHANGED = 164  # chunks, 1 % of it
MB = 1e6

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


def back_up(repo: Repository, disk: Path, changes: Ranges, previous: str | None) -> tuple[str, float, int]:
    """Its id, seconds, and the bytes that it added."""
    descriptor = os.open(disk, os.O_RDONLY)
    began = time.perf_counter()
    try:
        with repo.write(previous=previous) as writer:
            on = "root" if previous else None
            writer.disk("root", SIZE, lambda at, length: os.pread(descriptor, length, at), changes, on)
            made = writer.publish(kind="vm", name="bench")
    finally:
        os.close(descriptor)
    return made.id, time.perf_counter() - began, made.stored_bytes


def convert(source: Path, target: Path, *options: str) -> tuple[float, int]:
    began = time.perf_counter()
    subprocess.run(["qemu-img", "convert", *options, str(source), str(target)], check=True)
    return time.perf_counter() - began, target.stat().st_blocks * 512


def measure() -> Measurement:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk, compressed = folder / "disk.raw", folder / "disk.qcow2"
        with disk.open("wb") as file:
            file.truncate(SIZE)
        (folder / "repository").mkdir()
        clock, key = SystemClock(), RepositoryKey.generate()
        with Repository.create(f"dir://{folder}/repository", key, clock=clock, cache=folder / "cache") as repo:
            full, seconds, stored = back_up(repo, disk, write(disk, list(range(USED)), 1), None)
            packed = ("-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd")
            peer, peer_stored = convert(disk, compressed, *packed)
            changes = write(disk, random.Random(3).sample(range(USED), CHANGED), 2)
            made, less, added = back_up(repo, disk, changes, full)
            again, again_stored = convert(disk, folder / "again.qcow2", *packed)
            began = time.perf_counter()
            with repo.read(made) as reader:
                reader.export("root", folder / "restored.raw")
            restore = time.perf_counter() - began
            peer_restore, _ = convert(compressed, folder / "peer.raw", "-O", "raw")
            subprocess.run(["cmp", disk, folder / "restored.raw"], check=True)
    return Measurement(
        "backup",
        f"A disk of 1 GiB with {USED * PIECE / MB:.0f} MB used, page cache warm, into a folder, encrypted and synced to the disk; "
        "the peer is qemu-img with zstd, without encryption and without syncing. An increment is 1 % of what is used, "
        "scattered; the peer has no increments and converts everything.",
        [
            _row("full backup", (seconds, stored), (peer, peer_stored)),
            _row("increment of 1 %", (less, added), (again, again_stored)),
            Figure(
                "restore to a raw file", f"{restore:.2f} s", f"{peer_restore:.2f} s", f"{restore / peer_restore:.2f}"
            ),
        ],
    )


def _row(what: str, ours: tuple[float, int], peer: tuple[float, int]) -> Figure:
    return Figure(
        what,
        f"{ours[0]:.2f} s, {ours[1] / MB:.1f} MB",
        f"{peer[0]:.2f} s, {peer[1] / MB:.1f} MB",
        f"{ours[0] / peer[0]:.2f} time, {ours[1] / peer[1]:.2f} bytes",
    )
