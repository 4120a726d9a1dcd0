"""Many VMs at once, against the same QEMU commands started bare at once: what the machine itself takes for that.

weft's side is one ``weft apply`` of them all, from the start of that process to its end, which is when the last guest has
answered. The bare side makes an overlay and a tap for each, starts the very commands that weft used (other folders), and
waits for all the same answers. In turn; ``WEFT_BENCH_VMS`` says how many.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measurement import ROOT, Figure, Measurement, spread
from benchmarks.vm_create import WEFT, Bare, record_of, weft
from weft.contracts.clock import SystemClock
from weft.drivers.runtime.qemu.probe import probe_qemu
from weft.drivers.runtime.qemu.record import GuestRecord
from weft.drivers.runtime.qemu.translate import QemuHostFacts

VMS = int(os.environ.get("WEFT_BENCH_VMS", "20"))
RUNS = 5
NAMES = [f"many-{number}" for number in range(VMS)]


def apply_all() -> float:
    """Seconds from the start of the command to the last guest's answer."""
    spec = {"image": "tiny", "memory": "128M", "cpu": 1}
    wishes = [{"kind": "vm", "name": name, "spec": spec} for name in NAMES]
    begun = time.perf_counter()
    done = subprocess.run(
        [WEFT, "apply", "-f", "-"], cwd=ROOT, input=json.dumps(wishes), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"weft apply: {done.stderr[-600:]}")
    return time.perf_counter() - begun


def delete_all() -> None:
    subprocess.run([WEFT, "vm", "delete", *NAMES, "--yes"], cwd=ROOT, capture_output=True)


async def start_all(records: Sequence[GuestRecord], facts: QemuHostFacts, folder: Path) -> float:
    """Seconds until the last of the bare guests has answered."""
    begun = time.perf_counter()
    peers = []
    for number, record in enumerate(records):
        own = folder / str(number)
        own.mkdir()
        own.chmod(0o711)
        peers.append(Bare(record, facts, own, f"weftbench{number}"))
    try:
        await asyncio.gather(*(peer.start() for peer in peers))
        return time.perf_counter() - begun
    finally:
        for peer in peers:
            peer.stop()
            peer.folder.rmdir()


def measure() -> Measurement:
    ours: list[float] = []
    bare: list[float] = []
    folder = Path(tempfile.mkdtemp(prefix="wb-", dir="/run"))
    folder.chmod(0o711)
    try:
        _, facts = asyncio.run(probe_qemu(folder, SystemClock()))
        assert facts is not None
        weft("node", "list")
        for _ in range(RUNS):
            ours.append(apply_all())
            records = [record_of(name) for name in NAMES]
            delete_all()
            bare.append(asyncio.run(start_all(records, facts, folder)))
    finally:
        delete_all()
        shutil.rmtree(folder, ignore_errors=True)
    mine, its = statistics.median(ours), statistics.median(bare)
    return Measurement(
        "vm_many",
        f"{VMS} VMs of image tiny at once, a core and 128 MiB each, alternating with the same QEMU commands run bare at "
        "once, without limits.",
        [
            Figure(
                f"{VMS} wishes → the last guest answers",
                spread(ours, "s", 1.0, 2),
                "bare " + spread(bare, "s", 1.0, 2),
                f"{mine / its:.2f}× ({mine - its:+.2f} s)",
                "≤ 1.10×",
                mine <= 1.10 * its,
            )
        ],
    )
