"""The agent's container images: their sizes, whether a second build gives the same bytes, and whether the agent of each
architecture joins a server and runs a VM for a minute.

The images are built from Debian and the package index. Each agent runs in the unpacked layers of its production image; those of
other architectures under qemu-user, whose programs come with Debian's qemu-user-static. That runs only the program that it is
given, so the node's key is made outside, and the VM is a fake driver's. A board was never seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.connection import Connection
from benchmarks.fabric import make_image, post
from benchmarks.fabric.enrolment import enrol
from benchmarks.fabric_server import FabricServer, running_server
from benchmarks.measurement import ROOT, Figure, Measurement
from weft.images.node.build import ARCHITECTURES, PRODUCTION, STATE, build_node_images

EMULATORS = {"amd64": "qemu-x86_64-static", "arm64": "qemu-aarch64-static", "riscv64": "qemu-riscv64-static"}
MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
RUN_SECONDS = 60.0
PATIENCE_SECONDS = 240.0
VMS = "/v1/projects/default/vms"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}  # as in the image
OPTIONS = (
    "--runtime", "fake", "--network", "fake", "--volume", "fake", "--container-runtime", "none", "--functions", "none",
    "--run-dir", "/tmp/run", "--no-devices",
    "--underlay-address", "127.0.0.1", "--underlay-link", "lo",
)  # fmt: skip


class Outcome(msgspec.Struct):
    ready_seconds: float  # from the agent's start
    restarts: int
    resident: int  # bytes; of an emulated one with its emulator


def read_blob(layout: Path, descriptor: dict[str, Any]) -> bytes:
    blob: Path = layout / "blobs" / descriptor["digest"].replace(":", "/")
    return blob.read_bytes()


def read_manifests(layout: Path, name: str) -> dict[str, dict[str, Any]]:
    """The manifests of the image ``name``, by architecture."""
    index = msgspec.json.decode((layout / "index.json").read_bytes())
    (entry,) = [one for one in index["manifests"] if one["annotations"]["org.opencontainers.image.ref.name"] == name]
    manifests = msgspec.json.decode(read_blob(layout, entry))["manifests"]
    return {one["platform"]["architecture"]: msgspec.json.decode(read_blob(layout, one)) for one in manifests}


def unpack(layout: Path, manifest: dict[str, Any], root: Path) -> None:
    root.mkdir()
    for layer in manifest["layers"]:
        words = ["tar", "--extract", "--gzip", "--numeric-owner", f"--directory={root}"]
        subprocess.run(words, input=read_blob(layout, layer), check=True)


@contextlib.contextmanager
def running_agent(root: Path, architecture: str, state: Path, name: str) -> Iterator[int]:
    """The agent of a node whose folder is ``state``, in the unpacked image ``root``; its pid."""
    start = ["/usr/bin/python3", "/usr/local/bin/weft"]
    if architecture != MACHINES.get(platform.machine()):
        emulator = shutil.which(EMULATORS[architecture])
        if emulator is None:
            raise SystemExit(f"no {EMULATORS[architecture]}: apt-get install qemu-user-static")
        shutil.copy(emulator, root / "emulator")
        start = ["/emulator", *start]
    script = (
        f'mount --bind "$1" "$2{STATE}"; mount --rbind /dev "$2/dev"; mount -t proc proc "$2/proc"; '
        'root=$2; shift 2; exec chroot "$root" "$@"'
    )
    words = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-ec",
        script,
        "sh",
        str(state),
        str(root),
        *start,
    ]
    port = 18_445 + list(ARCHITECTURES).index(architecture)
    words += ["agent", name, "--state", STATE, "--echo-port", str(port), *OPTIONS]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=ENVIRONMENT)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def measure_resident(pid: int) -> int:
    """Of the only child."""
    child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
    pages = int(Path(f"/proc/{child}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def wait_phase(admin: Connection, path: str, phase: str) -> dict[str, Any]:
    begun = time.monotonic()
    while True:
        status, body = await admin.request("GET", path)
        found: dict[str, Any] = msgspec.json.decode(body) if status == 200 else {"status": {}}
        if found["status"].get("phase") == phase:
            return found
        if time.monotonic() - begun > PATIENCE_SECONDS:
            raise SystemExit(f"{path} is not {phase} after {PATIENCE_SECONDS:.0f} s: {body[:500]!r}")
        await asyncio.sleep(0.5)


async def run(server: FabricServer, root: Path, architecture: str, folder: Path) -> Outcome:
    name = f"edge-{architecture}"
    (state,) = await enrol(server.context, [name], folder)
    admin = await Connection.open(server.context)
    begun = time.monotonic()
    with running_agent(root, architecture, state, name) as pid:
        await wait_phase(admin, f"/v1/nodes/{name}", "Ready")
        ready = time.monotonic() - begun
        spec = {"image": "none", "cpu": 1, "memory": "64M", "networks": [], "node": name}
        await post(admin, VMS, {"name": name, "spec": spec}, 201)
        before = await wait_phase(admin, f"{VMS}/{name}", "Running")
        await asyncio.sleep(RUN_SECONDS)
        after = await wait_phase(admin, f"{VMS}/{name}", "Running")
        if after["status"].get("boot_id") != before["status"].get("boot_id"):
            raise SystemExit(f"{name}: the VM was started again")
        resident = measure_resident(pid)
    admin.close()
    return Outcome(ready, after["status"].get("restarts", 0), resident)


async def prepare(server: FabricServer) -> None:
    admin = await Connection.open(server.context)
    image = {"name": "none", "spec": {"url": f"file://{make_image(server.folder)}"}}
    await post(admin, "/v1/projects/default/images", image, 201)
    await wait_phase(admin, "/v1/projects/default/images/none", "Available")
    admin.close()


def provide_layout() -> tuple[Path, bool]:
    """What ``make images`` builds, of the present source; and whether its amd64, built again, is the same bytes."""
    layout = ROOT / "dist" / "agent"
    build_node_images(layout, lambda what: print(what, file=sys.stderr))
    with tempfile.TemporaryDirectory(prefix="images-", dir=ROOT / ".weft") as name:
        again = Path(name) / "again"
        build_node_images(again, lambda what: None, ["amd64"])
        same = read_manifests(again, PRODUCTION)["amd64"] == read_manifests(layout, PRODUCTION)["amd64"]
    return layout, same


async def run_all(server: FabricServer, roots: dict[str, Path], folder: Path) -> list[Outcome]:
    await prepare(server)
    return await asyncio.gather(*[run(server, root, name, folder) for name, root in roots.items()])


def measure() -> Measurement:
    (ROOT / ".weft").mkdir(exist_ok=True)
    layout, same = provide_layout()
    manifests = read_manifests(layout, PRODUCTION)
    with (
        tempfile.TemporaryDirectory(prefix="images-", dir=ROOT / ".weft") as name,
        running_server() as server,
    ):
        roots = {architecture: Path(name) / architecture for architecture in ARCHITECTURES}
        for architecture, root in roots.items():
            unpack(layout, manifests[architecture], root)
        outcomes = asyncio.run(run_all(server, roots, Path(name) / "nodes"))
    figures = [Figure("amd64 built twice", "the same bytes" if same else "other bytes", goal="the same", kept=same)]
    for architecture, outcome in zip(ARCHITECTURES, outcomes, strict=True):
        size = sum(layer["size"] for layer in manifests[architecture]["layers"])
        figures.append(
            Figure(
                f"{architecture}: agent Ready, and a VM for {RUN_SECONDS:.0f} s",
                f"image {size / 1e6:.0f} MB; Ready after {outcome.ready_seconds:.1f} s, {outcome.restarts} restarts, "
                f"{outcome.resident / 1e6:.0f} MB resident",
                goal="runs",
                kept=True,
            )
        )
    return Measurement(
        "edge_images",
        "Images of the agent as `make images` builds them. Each agent runs in the layers of its production image, with fake "
        "drivers, all three at once: amd64 as it is, the others under qemu-user (their memory is with the emulator's). No board "
        "was tried.",
        figures,
    )
