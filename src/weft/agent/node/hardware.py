"""This machine's hardware, for placement: GPUs, the disks below its state folder, TPM, virtual functions, NUMA nodes.

Read once from sysfs (``Host.sysfs``), and for NVIDIA's GPUs from nvidia-smi. Unknown facts stay empty; people can set them as
labels, which win in any case."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from weft.contracts.driver.host import Host
from weft.kinds.node import Gpu

MIB = 1024 * 1024
_MAKERS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}  # others' only draw a server's console
_DISPLAY, _NETWORK = "0x03", "0x02"  # how the PCI classes begin
_NVIDIA_QUERY = ("--query-gpu=pci.bus_id,name,memory.total", "--format=csv,noheader,nounits")
_NVIDIA_SECONDS = 20.0  # a driver that no process keeps loaded takes some
_STORAGE = ("hdd", "ssd", "nvme")  # the slowest first
_DEPTH = 4  # devices that stand on others: a file system on LVM on RAID on partitions


class Hardware(msgspec.Struct, frozen=True):
    """See the fields of NodeReport."""

    arch: str = ""
    gpus: list[Gpu] = []
    storage: str = ""
    tpm: str = ""
    sriov: int = 0
    numa: int = 0


def inspect_hardware(host: Host) -> Hardware:
    """The hardware now; takes seconds if a GPU's driver has to load."""
    root = Path(host.sysfs)
    cards = _find_pci(root, _NETWORK) if host.devices else []
    return Hardware(
        arch=platform.machine(),
        gpus=find_gpus(root, list_nvidia()) if host.devices else [],
        storage=find_storage(root, host.state_dir),
        tpm=_find_tpm(root),
        sriov=sum(_number(card / "sriov_totalvfs") for card in cards),
        numa=len(list(root.glob("devices/system/node/node[0-9]*"))),
    )


def list_nvidia() -> str:
    """nvidia-smi's list of GPUs as CSV; empty without nvidia-smi, or if it can't reach its driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *_NVIDIA_QUERY], capture_output=True, text=True, timeout=_NVIDIA_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def find_gpus(root: Path, nvidia: str) -> list[Gpu]:
    """The GPUs on the PCI bus, in the order of their addresses; ``nvidia`` is nvidia-smi's list."""
    listed = {gpu.address: gpu for gpu in read_nvidia(nvidia)}
    found = []
    for device in _find_pci(root, _DISPLAY):
        maker = _MAKERS.get(_read(device / "vendor"))
        if maker is not None:
            model = _read(device / "product_name") or f"{maker} {_read(device / 'device').removeprefix('0x')}"
            plain = Gpu(model.strip(), _number(device / "mem_info_vram_total"), device.name)
            found.append(listed.get(device.name, plain))
    return found


def read_nvidia(listing: str) -> list[Gpu]:
    """The GPUs in a listing of nvidia-smi (address, name, memory in MiB; ``[N/A]`` and the like if unknown). Other lines, such as
    warnings, are skipped."""
    found = []
    for line in listing.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 3 or cells[0].count(":") != 2:
            continue
        domain, bus, place = cells[0].lower().split(":")
        memory = int(cells[2]) * MIB if cells[2].isdecimal() else 0
        found.append(Gpu(cells[1], memory, f"{domain[-4:]}:{bus}:{place}"))
    return found


def find_storage(root: Path, folder: str) -> str:
    """The kind of disk that holds the folder's file system: nvme, ssd or hdd; the slowest of several; empty if the kernel knows
    no disk for it: memory, or another machine."""
    number = os.stat(folder).st_dev
    device = root / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
    kinds = set(_find_disks(device.resolve(), _DEPTH)) if device.exists() else set()
    return next((kind for kind in _STORAGE if kind in kinds), "")


def _find_disks(device: Path, depth: int) -> Iterator[str]:
    """The kinds of disks below a block device."""
    below = sorted(device.glob("slaves/*"))
    if below:
        for path in below if depth else ():
            yield from _find_disks(path.resolve(), depth - 1)
        return
    disk = device if (device / "queue").is_dir() else device.parent  # a partition's folder lies in its disk's
    match _read(disk / "queue" / "rotational"):
        case "1":
            yield "hdd"
        case "0":
            yield "nvme" if disk.name.startswith("nvme") else "ssd"


def _find_tpm(root: Path) -> str:
    for device in sorted(root.glob("class/tpm/tpm[0-9]*")):
        return "1.2" if _read(device / "tpm_version_major") == "1" else "2.0"
    return ""


def _find_pci(root: Path, class_: str) -> list[Path]:
    return [device for device in sorted(root.glob("bus/pci/devices/*")) if _read(device / "class").startswith(class_)]


def _number(path: Path) -> int:
    text = _read(path)
    return int(text) if text.isdecimal() else 0


def _read(path: Path) -> str:
    """The text of a kernel's file; empty if it is missing or can't be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
