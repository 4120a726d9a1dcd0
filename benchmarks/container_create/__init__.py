"""A container from `start` of the driver to a running process, against the bare runtime with the same configuration and a root
that lies there ready, or `ctr run` where containerd holds it; and how long after its process has ended a stop is over. In turn,
in one run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.measurement import Figure, Measurement, spread
from weft.contracts.clock import SystemClock
from weft.contracts.driver.container import ContainerPlan, ContainerProcess
from weft.contracts.driver.host import Capacity, Host
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.container.name_files import plan_name_files
from weft.drivers.runtime.oci.driver import OciDriver
from weft.drivers.runtime.oci.mount_namespace import run_in_mount_namespace
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.probe import probe_oci
from weft.drivers.runtime.oci.runtime import Runtime, find_programs
from weft.drivers.runtime.oci.translate import OciHostFacts, Users, translate_container
from weft.drivers.runtime.oci.user_namespace import FIRST_USER

RUNS = 15
RATIO, MORE_SECONDS, ALL_SECONDS, STOP_SECONDS = 1.3, 0.060, 1.0, 0.100
PATIENCE_SECONDS = 60.0
BUSYBOX = "/bin/busybox"
_POLITE = "trap 'exit 0' TERM; while :; do sleep 0.01; done"


def make_layer(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, folder / "bin")
    for name in ("sh", "sleep"):
        (folder / "bin" / name).symlink_to("busybox")
    return folder


def make_plan(name: str, layer: Path) -> ContainerPlan:
    process = ContainerProcess(["/bin/sh", "-c", _POLITE])
    return ContainerPlan(
        id=name, uid=name, name=name, incarnation=1, layers=[str(layer)], process=process, cpu=1.0,
        memory_bytes=64 << 20, capabilities=["CAP_CHOWN"], disk_bytes=1 << 30,
    )  # fmt: skip


def lay_out(facts: OciHostFacts, folder: Path, plan: ContainerPlan, cgroup: str) -> ContainerPaths:
    """A bundle whose root lies there ready, its files the container's users'."""
    paths = ContainerPaths(run=folder / plan.id, state=folder / plan.id)
    shutil.copytree(plan.layers[0], paths.root, symlinks=True)
    for path in [paths.root, *paths.root.rglob("*")]:
        os.chown(path, FIRST_USER, FIRST_USER, follow_symlinks=False)
    paths.files.mkdir()
    for name, text in plan_name_files(plan).items():
        (paths.files / name).write_text(text)
    config = translate_container(plan, paths, facts, cgroup=f"{cgroup}/{plan.id}", users=Users(FIRST_USER), devices=[])
    paths.config.write_bytes(msgspec.json.encode(config))
    return paths


async def run_bare(runtime: Runtime, facts: OciHostFacts, folder: Path, plan: ContainerPlan, cgroup: str) -> float:
    """Seconds until `run --detach` has come back: then the process runs."""
    paths = lay_out(facts, folder, plan, cgroup)
    words = ["sh", "-c", 'exec "$@" </dev/null >/dev/null 2>&1', "sh"]
    words += runtime.words("run", "--detach", "--bundle", str(paths.run), plan.id)
    began = time.monotonic()
    said = await run_in_mount_namespace(words, runtime.hidden, timeout_seconds=PATIENCE_SECONDS)
    took = time.monotonic() - began
    if said.status != 0:
        raise SystemExit(f"the bare {runtime.name} failed with {said.status}")
    await runtime.delete(plan.id)
    return took


async def run_ctr(address: str, facts: OciHostFacts, folder: Path, plan: ContainerPlan, cgroup: str) -> float:
    """The same through containerd by its own program."""
    paths = lay_out(facts, folder, plan, cgroup)
    ctr = ["ctr", "-a", address, "-n", "bench"]

    async def say(*words: str) -> None:
        said = await run_in_mount_namespace([*ctr, *words], [], timeout_seconds=PATIENCE_SECONDS)
        if said.status != 0:
            raise SystemExit(f"ctr {words[0]} failed: {said.err}")

    began = time.monotonic()
    await say("run", "--detach", "--null-io", "--config", str(paths.config), plan.id)
    took = time.monotonic() - began
    await say("task", "delete", "--force", plan.id)
    await say("container", "delete", plan.id)
    return took


@contextlib.contextmanager
def start_containerd(folder: Path) -> Iterator[str]:
    """One of this run's own; its address."""
    folder.mkdir(parents=True)
    address = str(folder / "s")
    (folder / "config.toml").write_text(
        f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{address}"\n[ttrpc]\naddress = "{folder}/t"\n'
    )
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(["containerd", "-c", str(folder / "config.toml")], stdout=log, stderr=log) as process,
    ):
        try:
            while subprocess.run(["ctr", "-a", address, "version"], capture_output=True, check=False).returncode:
                if process.poll() is not None:
                    raise SystemExit((folder / "log").read_text()[-1000:])
                time.sleep(0.05)
            yield address
        finally:
            process.terminate()


async def run_driven(driver: OciDriver, plan: ContainerPlan) -> tuple[float, float]:
    """Seconds of the start, and of the stop after the process had ended."""
    began = time.monotonic()
    facts = await driver.start(plan)
    started = time.monotonic() - began
    await asyncio.sleep(0.2)  # it has set its trap
    assert facts.pid is not None
    with open(os.pidfd_open(facts.pid)) as gone:
        over = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(gone.fileno(), lambda: over.done() or over.set_result(time.monotonic()))
        await driver.stop(plan.id, grace_seconds=PATIENCE_SECONDS)
        ended = time.monotonic()
        asyncio.get_running_loop().remove_reader(gone.fileno())
        if not over.done():
            raise SystemExit("the stop was over before its process")
    await driver.remove(plan.id)
    return started, ended - over.result()


async def compare(name: str, folder: Path, containerd: str = "") -> list[Figure]:
    """``name``: crun or runc; with ``containerd``, the address of one, that is what holds them."""
    host = Host(
        node="n1", node_uid="bench", state_dir=str(folder / "state"), run_dir=str(folder / "run"), link_prefix="wb",
        underlay_address="127.0.0.1", underlay_link="lo", cgroup=f"weft-bench-{os.getpid()}/{name}",
        capacity=Capacity(cpu=2, memory_bytes=4 << 30, disk_bytes=1 << 30),
    )  # fmt: skip
    driver = OciDriver(host, runtime=name, containerd=containerd)
    groups = ControlGroups(host.cgroup)
    found = await probe_oci(folder / "run" / "containers", groups, SystemClock(), name)
    if found.runtime is None or found.facts is None:
        raise SystemExit("; ".join(found.probe.problems))
    layer = make_layer(folder / "layer")
    bare, starts, stops = [], [], []
    for run in range(RUNS + 1):
        plan = make_plan(f"bare-{run}", layer)
        if containerd:
            alone = await run_ctr(containerd, found.facts, folder, plan, host.cgroup)
        else:
            alone = await run_bare(found.runtime, found.facts, folder, plan, host.cgroup)
        start, stop = await run_driven(driver, make_plan(f"driven-{run}", layer))
        if run:  # the first of each warms up
            bare.append(alone)
            starts.append(start)
            stops.append(stop)
    await driver.close()
    groups.remove_parents()
    middle, most = sorted(starts)[RUNS // 2], RATIO * sorted(bare)[RUNS // 2] + MORE_SECONDS
    over = middle / sorted(bare)[RUNS // 2]
    name, alone_is = ("containerd", "ctr run") if containerd else (name, f"{name} run")
    return [
        Figure(
            f"{name}: create to running", spread(starts), f"{alone_is} {spread(bare)}", f"{over:.2f}",
            f"≤ {RATIO} × + {MORE_SECONDS * 1000:.0f} ms, < 1 s", middle <= most and max(starts) < ALL_SECONDS,
        ),
        Figure(
            f"{name}: stop, after its process ended", spread(stops), goal=f"< {STOP_SECONDS * 1000:.0f} ms",
            kept=sorted(stops)[RUNS // 2] < STOP_SECONDS,
        ),
    ]  # fmt: skip


def measure() -> Measurement:
    figures = []
    for program in find_programs(None):
        folder = Path(tempfile.mkdtemp(prefix="weft-bench-"))
        folder.chmod(0o711)
        try:
            figures += asyncio.run(compare(Path(program).name, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run(["sync"], check=False)
    if shutil.which("containerd") and shutil.which("runc"):
        folder = Path(tempfile.mkdtemp(prefix="weft-bench-"))
        folder.chmod(0o711)
        try:
            with start_containerd(folder / "containerd") as address:
                figures += asyncio.run(compare("runc", folder, address))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return Measurement(
        "container_create",
        "The driver alone (no agent, no API), image unpacked, users of its own: `start` to a running process, durable record, "
        "overlay root, the disk it writes on and shim included, beside the bare runtime (or `ctr run`) on a root that is there; "
        "one container at a time.",
        figures,
    )
