"""VMs that begin from a booted machine of their image, against the same machines booted by bare QEMU commands; in turn.

tiny: a whole ``weft vm create --boot warm`` process, one at a time and twenty by one ``weft apply``. debian-12: with a user and a
key, from ``weft vm create`` to its end, and on to the first answer over ``weft vm ssh`` as that user. The bare side is that of
vm_create and vm_many: overlay, tap, the very command that a cold VM was started with, and the guest agent's first answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.measurement import ROOT, Figure, Measurement, spread
from benchmarks.vm_create import WEFT, Bare, record_of, weft
from benchmarks.vm_many import start_all
from weft.contracts.clock import SystemClock
from weft.drivers.runtime.qemu.probe import probe_qemu

RUNS = int(os.environ.get("WEFT_BENCH_RUNS", "15"))
DEBIAN_RUNS, MANY, MANY_RUNS = 7, 20, 3
TINY = ("--image", "tiny", "--memory", "128M")


def create(name: str, *words: str) -> float:
    begun = time.perf_counter()
    weft("vm", "create", name, *words)
    return time.perf_counter() - begun


def private_mib(name: str) -> float:
    """What the guest's QEMU has of its own, that no other process shares."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"qemu-system" in words[0] and f"guest={name}".encode() in words:
                found = re.search(r"Private_Dirty: +(\d+)", (entry / "smaps_rollup").read_text())
                return int(found[1]) / 1024 if found else 0.0
    raise SystemExit(f"no QEMU runs guest {name}")


def apply_many(names: list[str]) -> float:
    wishes = [
        {"kind": "vm", "name": name, "spec": {"image": "tiny", "memory": "128M", "cpu": 1, "boot": "warm"}}
        for name in names
    ]
    begun = time.perf_counter()
    done = subprocess.run(
        [WEFT, "apply", "-f", "-"], cwd=ROOT, input=json.dumps(wishes), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"weft apply: {done.stderr[-600:]}")
    return time.perf_counter() - begun


def log_in(name: str, key: Path) -> None:
    words = (WEFT, "vm", "ssh", name, "-l", "alice", "-i", str(key), "hostname; sudo -n true")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode or name not in done.stdout:
        raise SystemExit(f"weft vm ssh: {done.stdout}{done.stderr[-600:]}")


def measure() -> Measurement:
    folder = Path(tempfile.mkdtemp(prefix="wb-", dir="/run"))
    folder.chmod(0o711)
    warm, bare, private = list[float](), list[float](), list[float]()
    many, bare_many = list[float](), list[float]()
    running, reached, cold = list[float](), list[float](), list[float]()
    names = [f"warm-{number}" for number in range(MANY)]
    try:
        _, facts = asyncio.run(probe_qemu(folder, SystemClock()))
        assert facts is not None
        create("bench", *TINY, "--boot", "cold")
        peer = Bare(record_of("bench"), facts, folder)
        weft("vm", "delete", "bench", "--yes")
        weft("image", "warm", "tiny", "--memory", "128M")
        for _ in range(RUNS + 1):
            warm.append(create("bench", *TINY, "--boot", "warm"))
            private.append(private_mib("bench"))
            weft("vm", "delete", "bench", "--yes")
            try:
                bare.append(asyncio.run(peer.start()))
            finally:
                peer.stop()
        for _ in range(MANY_RUNS):
            many.append(apply_many(names))
            weft("vm", "delete", *names, "--yes")
            bare_many.append(asyncio.run(start_all([peer.record] * MANY, facts, folder)))
        weft("image", "warm", "tiny", "--off")
        weft("image", "build", "debian-12")
        weft("image", "warm", "debian-12", "--memory", "512M")
        key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        debian = ("--image", "debian-12", "--memory", "512M", "--user", "alice", "--ssh-key", f"{key}.pub")
        for number in range(DEBIAN_RUNS + 1):
            name = f"deb-{number}"
            took = create(name, *debian, "--boot", "warm")
            begun = time.perf_counter()
            log_in(name, key)
            running.append(took)
            reached.append(took + time.perf_counter() - begun)
            weft("vm", "delete", name, "--yes")
        took = create("deb-cold", *debian, "--boot", "cold")
        begun = time.perf_counter()
        log_in("deb-cold", key)
        cold.append(took + time.perf_counter() - begun)
    finally:
        left = [f"deb-{number}" for number in range(DEBIAN_RUNS + 1)]
        subprocess.run(
            [WEFT, "vm", "delete", "bench", "deb-cold", *left, *names, "--yes"], cwd=ROOT, capture_output=True
        )
        for image in ("tiny", "debian-12"):
            subprocess.run([WEFT, "image", "warm", image, "--off"], cwd=ROOT, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
    warm, bare, private, running, reached = warm[1:], bare[1:], private[1:], running[1:], reached[1:]
    mine, its = statistics.median(warm), statistics.median(bare)
    all_, its_all = statistics.median(many), statistics.median(bare_many)
    own, up, shell = statistics.median(private), statistics.median(running), statistics.median(reached)
    return Measurement(
        "warm",
        "VMs from a booted machine of their image (tiny 128 MiB; debian-12 512 MiB with a user and a key), alternating "
        "with bare QEMU commands that boot.",
        [
            Figure(
                "tiny: create → answers",
                spread(warm),
                "bare boot " + spread(bare),
                f"1/{its / mine:.1f}",
                "≤ 250 ms, and ≤ 1/6",
                mine <= 0.25 and mine <= its / 6,
            ),
            Figure(
                "tiny: its own memory",
                f"{own:.0f} MiB ({min(private):.0f}–{max(private):.0f}, n={len(private)})",
                goal="≤ 40 MB",
                kept=own <= 40e6 / 2**20,
            ),
            Figure(
                f"{MANY} of tiny at once → the last answers",
                spread(many, "s", 1.0, 2),
                "bare boots " + spread(bare_many, "s", 1.0, 2),
                f"1/{its_all / all_:.1f}",
                "≤ 1/5",
                all_ <= its_all / 5,
            ),
            Figure("debian-12: create → Running", spread(running, "s", 1.0, 2), goal="≤ 2 s", kept=up <= 2.0),
            Figure(
                "debian-12: create → `weft vm ssh` as the new user has answered",
                spread(reached, "s", 1.0, 2),
                f"booted cold {cold[0]:.1f} s",
                f"1/{cold[0] / shell:.1f}",
                "≤ 4 s",
                shell <= 4.0,
            ),
        ],
    )
