"""The host's PCI devices that guests get: whether a guest can have one, and the file by which its QEMU uses it.

A device can be had through VFIO where the machine's IOMMU separates it from all others, and the driver vfio-pci holds it; the
administrator binds it there, since that takes it from its user. Reads sysfs; gives and takes back the files of IOMMU groups in
/dev/vfio.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from weft.objects.errors import DriverFailed

DRIVER = "vfio-pci"
GROUPS = Path("/dev/vfio")
_DISPLAY, _BRIDGE = "0x03", "0x06"  # how the PCI classes begin; bridges go with whatever lies behind them


def find_kept(sysfs: Path) -> dict[str, str]:
    """The display devices that no guest can get, by address, and why."""
    devices = [path for path in sorted(_device(sysfs, "").glob("*")) if _class(path).startswith(_DISPLAY)]
    return {path.name: obstacle for path in devices if (obstacle := find_obstacle(sysfs, path.name))}


def find_obstacle(sysfs: Path, address: str) -> str:
    """Why a guest can't get this device, and what to do; empty if it can."""
    device = _device(sysfs, address)
    if not device.is_dir():
        return "the device doesn't exist"
    if not (device / "iommu_group").exists():
        return "the machine's IOMMU is off; switch it on in the firmware and boot with intel_iommu=on (Intel) iommu=pt"
    if (driver := _driver(device)) != DRIVER:
        return f"{_bound(driver)}, not to {DRIVER}; driverctl set-override {address} {DRIVER}, then restart the agent"
    for other in sorted((device / "iommu_group" / "devices").glob("*")):
        driver = _driver(other)
        if driver not in (DRIVER, "") and not _class(other).startswith(_BRIDGE):
            return (
                f"its IOMMU group also has {other.name}, which is bound to {driver}; "
                f"driverctl set-override {other.name} {DRIVER}, then restart the agent"
            )
    return ""


def give_devices(name: str, addresses: Iterable[str], sysfs: Path, user: int, groups: Path = GROUPS) -> None:
    """Let ``user``, and nobody else, open the files of these devices. Raises DriverFailed for a device that can't be had."""
    for address in addresses:
        obstacle = find_obstacle(sysfs, address)
        if obstacle:
            raise DriverFailed(
                f"vm/{name} can't get GPU {address}: {obstacle.partition('; ')[0]}",
                hint=obstacle.partition("; ")[2] or None,
                details={"step": "launch"},
            )
        file = groups / _group(sysfs, address)
        try:
            os.chown(file, user, user)
            file.chmod(0o600)
        except OSError as problem:
            raise DriverFailed(
                f"vm/{name} can't get GPU {address}: {file}: {problem.strerror}",
                hint="modprobe vfio-pci",
                details={"step": "launch"},
            ) from None


def take_back_devices(addresses: Iterable[str], sysfs: Path, groups: Path = GROUPS) -> None:
    """The files of these devices are root's alone again."""
    for address in addresses:
        file = groups / _group(sysfs, address)
        if file.is_char_device() or groups != GROUPS:
            os.chown(file, 0, 0)


def _device(sysfs: Path, address: str) -> Path:
    return sysfs / "bus" / "pci" / "devices" / address


def _driver(device: Path) -> str:
    link = device / "driver"
    return link.resolve().name if link.exists() else ""


def _bound(driver: str) -> str:
    return f"it is bound to {driver}" if driver else "it is bound to no driver"


def _group(sysfs: Path, address: str) -> str:
    return (_device(sysfs, address) / "iommu_group").resolve().name


def _class(device: Path) -> str:
    try:
        return (device / "class").read_text().strip()
    except OSError:
        return ""
