"""A container with a machine of its own from `start` of the driver to its running process: against the same machine booted by
hand, and against the same container through crun. In turn, in one run.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import msgspec

from benchmarks.container_create import make_layer
from benchmarks.measurement import ROOT, Figure, Measurement, spread
from weft.contracts.clock import SystemClock
from weft.contracts.driver.container import ContainerPlan, ContainerProcess
from weft.contracts.driver.host import Capacity, Host
from weft.drivers.runtime.oci.driver import OciDriver
from weft.drivers.runtime.qemu.devices.inherited_fds import open_inherited_fds, plan_inherited_fds
from weft.drivers.runtime.qemu.image_disk import ImageDisks, ensure_overlay
from weft.drivers.runtime.qemu.machine_shape import plan_frame
from weft.drivers.runtime.qemu.microvm.driver import MicrovmDriver
from weft.drivers.runtime.qemu.microvm.exchange_disk import RUNNING, make_exchange_disk, read_head, write_config
from weft.drivers.runtime.qemu.microvm.record import MicrovmPaths
from weft.drivers.runtime.qemu.microvm.translate import describe_run, plan_machine
from weft.drivers.runtime.qemu.probe import probe_qemu
from weft.drivers.runtime.qemu.translate import GuestPaths, QemuHostFacts, translate_guest
from weft.images.microvm.build import ensure_microvm

RUNS = 9
RATIO, MORE_SECONDS, ALL_SECONDS = 1.3, 0.060, 5.0
PATIENCE_SECONDS = 60.0
LOOK_SECONDS = 0.002
_RUN = "by-hand"


def make_plan(name: str, layer: Path) -> ContainerPlan:
    return ContainerPlan(
        id=name, uid=str(uuid.uuid5(uuid.NAMESPACE_DNS, name)), name=name, incarnation=1, layers=[str(layer)], cpu=1.0,
        memory_bytes=128 << 20,
        process=ContainerProcess(["/bin/sh", "-c", "while :; do sleep 0.1; done"]), capabilities=["CAP_CHOWN"],
    )  # fmt: skip


async def await_process(disk: Path) -> float:
    """When the machine said that the container's process runs."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (head := read_head(disk)) is None or head.state != RUNNING:
        if time.monotonic() > deadline:
            raise SystemExit(f"no process within {PATIENCE_SECONDS:.0f} s")
        await asyncio.sleep(LOOK_SECONDS)
    return time.monotonic()


async def run_by_hand(host: Host, facts: QemuHostFacts, microvm_dir: Path, base: str, plan: ContainerPlan) -> float:
    """Seconds from QEMU's start, with its disks made before, confined by nobody and written down nowhere."""
    folder = Path(host.state_dir, "hand")
    folder.mkdir(parents=True)
    paths, own = MicrovmPaths(folder), GuestPaths(run=folder, state=folder)
    await ensure_overlay(paths.root, base)
    make_exchange_disk(paths.exchange_disk)
    write_config(paths.exchange_disk, describe_run(plan, _RUN))
    kernel, initrd = str(microvm_dir / "kernel"), str(microvm_dir / "initrd")
    machine = plan_machine(plan, paths, base, os.stat(base).st_size, kernel, initrd, host.capacity)
    frame = plan_frame(machine, host.capacity.cpu, host.capacity.memory_bytes)
    with open_inherited_fds(plan_inherited_fds(machine, own)) as handed:
        words = translate_guest(machine, frame, own, facts, handed)
        began = time.monotonic()
        with subprocess.Popen(words, pass_fds=tuple(handed.values()), stdout=subprocess.DEVNULL) as process:
            took = await await_process(paths.exchange_disk) - began
            process.kill()
    shutil.rmtree(folder)
    return took


async def run_microvm(driver: MicrovmDriver, host: Host, plan: ContainerPlan) -> tuple[float, float]:
    """Seconds until its process runs, and those of a start of the driver's alone."""
    began = time.monotonic()
    await driver.start(plan)
    started = time.monotonic() - began
    took = await await_process(Path(host.state_dir, "microvm", "containers", plan.id, "exchange-disk")) - began
    await driver.stop(plan.id, grace_seconds=0)
    await driver.remove(plan.id)
    return took, started


async def run_shared(driver: OciDriver, plan: ContainerPlan) -> float:
    began = time.monotonic()
    await driver.start(plan)
    took = time.monotonic() - began
    await driver.stop(plan.id, grace_seconds=0)
    await driver.remove(plan.id)
    return took


async def compare(folder: Path) -> list[Figure]:
    host = Host(
        node="n1", node_uid="bench", state_dir=str(folder / "state"), run_dir=str(folder / "run"), link_prefix="wb",
        underlay_address="127.0.0.1", underlay_link="lo", cgroup=f"weft-bench-{os.getpid()}/microvm",
        capacity=Capacity(cpu=2, memory_bytes=4 << 30, disk_bytes=1 << 30),
    )  # fmt: skip
    microvm_dir, layer = ensure_microvm(ROOT / ".weft" / "cache"), make_layer(folder / "layer")
    microvm, shared = MicrovmDriver(host, microvm_dir), OciDriver(host, runtime="crun")
    (folder / "probe").mkdir(mode=0o755)
    _, facts = await probe_qemu(folder / "probe", SystemClock())
    if facts is None or not (await microvm.probe()).usable or not (await shared.probe()).usable:
        raise SystemExit("needs QEMU and crun")
    began = time.monotonic()
    base = await ImageDisks(folder / "roots").ensure_root([str(layer)])
    made = time.monotonic() - began
    by_hand, wholes, starts, besides = [], [], [], []
    for run in range(RUNS + 1):
        alone = await run_by_hand(host, facts, microvm_dir, base, make_plan(f"hand-{run}", layer))
        whole, start = await run_microvm(microvm, host, make_plan(f"own-{run}", layer))
        beside = await run_shared(
            shared, msgspec.structs.replace(make_plan(f"crun-{run}", layer), memory_bytes=64 << 20)
        )
        if run:  # the first of each warms up
            by_hand.append(alone)
            wholes.append(whole)
            starts.append(start)
            besides.append(beside)
    await microvm.close()
    await shared.close()
    middle, hand, crun = (statistics.median(values) for values in (wholes, by_hand, besides))
    return [
        Figure(
            "create to process running, in a machine of its own", spread(wholes), f"QEMU by hand {spread(by_hand)}",
            f"{middle / hand:.2f}", f"≤ {RATIO} × + {MORE_SECONDS * 1000:.0f} ms, < {ALL_SECONDS:.0f} s",
            middle <= RATIO * hand + MORE_SECONDS and max(wholes) < ALL_SECONDS,
        ),
        Figure("of that until the driver's start is back", spread(starts)),
        Figure("beside one that shares the node's kernel", spread(wholes), f"crun {spread(besides)}", f"{middle / crun:.1f}"),
        Figure("its image made a disk, once (busybox)", spread([made])),
    ]  # fmt: skip


def measure() -> Measurement:
    folder = Path(tempfile.mkdtemp(prefix="weft-bench-"))
    folder.chmod(0o755)
    try:
        figures = asyncio.run(compare(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["sync"], check=False)
    return Measurement(
        "container_enclosed",
        "The drivers alone (no agent, no API), one container at a time, image here as a disk; QEMU by hand has the same words, its "
        "disks made before, no user of its own, no control group and no record. Emulated CPU, 128 MiB.",
        figures,
    )
