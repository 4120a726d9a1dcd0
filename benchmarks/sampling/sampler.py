"""``python -m benchmarks.sampling.sampler FOLDER``: measures the guests in the folder as an agent does, in the network namespace it
is started in, and prints figures as JSON."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from weft.agent.samples.files import SampleFiles
from weft.agent.samples.node import NodeToMeasure
from weft.agent.samples.sampler import Sampler
from weft.contracts.clock import SystemClock
from weft.drivers.linux.counters import ProcessCounters, WaitCounters
from weft.drivers.linux.node_counters import open_node_counters
from weft.drivers.linux.processes import inspect_process
from weft.drivers.network.bridge.netlink.link_counters import LinkCounters
from weft.drivers.runtime.qemu.devices.disk_counters import DiskCounters
from weft.kinds.parts.stream_verbs import SamplesInput
from weft.objects.identity import short_id
from weft.telemetry.samples.file import find_file

SECONDS, SETTLE_SECONDS, RUNS = 30.0, 6.0, 15
DISKS = ("root", "data")


class Runtime:
    """The drivers' counters for each guest, by its id."""

    def __init__(self, guests: list[dict[str, Any]]) -> None:
        self._guests = {f"g{number}": guest for number, guest in enumerate(guests)}

    def find(self, local: Any) -> Runtime:
        return self

    def open_counters(self, guest_id: str) -> list[Any]:
        guest = self._guests[guest_id]
        process = inspect_process(guest["pid"])
        assert process is not None
        return [ProcessCounters(process), WaitCounters(process), DiskCounters(guest["monitor"], DISKS)]


def make_state(number: int) -> Any:
    spec = SimpleNamespace(
        role="active", nics=[SimpleNamespace(uid="nic")], workload=SimpleNamespace(uid=f"workload-{number}")
    )
    guest = SimpleNamespace(state="running", shape=None, pid=number, started_at=1.0, incarnation=1)
    return SimpleNamespace(guest=guest, local=SimpleNamespace(id=f"g{number}", uid=f"allocation-{number}", spec=spec))


def make_taps(count: int) -> dict[str, str]:
    """The tap of each port; every second one is up, so that the kernel's own packets pass it."""
    ports = {short_id(f"allocation-{number}/nic"): f"tap{number}" for number in range(count)}
    lines = [f"tuntap add dev {tap} mode tap" for tap in ports.values()]
    lines += [f"link set dev {tap} up" for tap in list(ports.values())[::2]]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines).encode(), check=True)
    return ports


def resident_mb() -> float:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) / 1024
    raise KeyError("Rss")


async def run(folder: Path) -> dict[str, Any]:
    guests = json.loads((folder / "guests.json").read_text())
    importlib.import_module("weft.launch.agent.main")
    clock = SystemClock()
    table: Any = [make_state(number) for number in range(len(guests))]
    network: Any = SimpleNamespace(nic_counters=LinkCounters(make_taps(len(guests)).__getitem__))
    pools: Any = SimpleNamespace(facts=[])
    runtimes: Any = Runtime(guests)
    node = NodeToMeasure("node", lambda: open_node_counters("lo"), pools)
    samples = Sampler(SampleFiles(folder / "samples"), runtimes, table, clock, network, node)
    before_mb = resident_mb()
    keeping = asyncio.create_task(samples.keep())
    await clock.sleep(SETTLE_SECONDS)
    cpu = await _cost(clock)
    known, asked = 0, 0
    for state in table:
        given = SamplesInput(
            time_range=20.0, until=1.0, granularity=1.0, series=["cpu", "disk.data.reads", "nic0.sent"]
        )
        for one in json.loads(await samples.answer(state.local.spec.workload.uid, given))["series"]:
            asked += len(one["points"])
            known += sum(value is not None for _, value in one["points"])
    watching = asyncio.create_task(_watch(samples, table, clock))
    await clock.sleep(2.0)
    watched_cpu = await _cost(clock)
    watching.cancel()
    mb = resident_mb()
    keeping.cancel()
    uid = table[0].local.spec.workload.uid
    file = find_file(folder / "samples" / f"{short_id(uid)}.samples")
    assert file is not None
    series = len(file.layout.series)
    now = int(clock.now())
    for second in range(now - 3600, now):
        file.put(1, second, [1.0 + second % 97 + column / 7 for column in range(file.layout.columns)] * 3)
    times: dict[str, list[float]] = {"one": [], "all": []}
    all_cpu = 0.0
    for what, wanted in (("one", ["cpu"]), ("all", [])):
        for _ in range(RUNS):
            begun, worked = time.perf_counter(), time.process_time()
            await samples.answer(uid, SamplesInput(time_range=3600.0, granularity=1.0, series=wanted))
            times[what].append(time.perf_counter() - begun)
            all_cpu += (time.process_time() - worked) / RUNS if what == "all" else 0.0
    return {
        "cpu": cpu, "watched_cpu": watched_cpu, "seconds": SECONDS, "known": known, "asked": asked,
        "series": series * len(guests), "all_cpu": all_cpu, "before_mb": before_mb, "resident_mb": mb, **times,
    }  # fmt: skip


async def _cost(clock: SystemClock) -> float:
    """Cores that this process takes."""
    cpu, begun = time.process_time(), time.perf_counter()
    await clock.sleep(SECONDS)
    return (time.process_time() - cpu) / (time.perf_counter() - begun)


async def _watch(samples: Sampler, table: Any, clock: SystemClock) -> None:
    """Have somebody ask for single steps of each guest; the questions themselves cost next to nothing."""
    while True:
        for state in table:
            await samples.answer(state.local.spec.workload.uid, SamplesInput(time_range=0.3, series=["cpu"]))
        await clock.sleep(8.0)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(Path(sys.argv[1])))))
