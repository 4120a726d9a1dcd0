"""Which of a machine's GPUs a guest can get, and who may open the file that gives it; from trees like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from weft.drivers.runtime.qemu.devices.vfio import find_kept, find_obstacle, give_devices, take_back_devices
from weft.objects.errors import DriverFailed

GPU, SOUND, BRIDGE = "0000:3b:00.0", "0000:3b:00.1", "0000:3a:00.0"


def put_device(root: Path, address: str, class_: str, driver: str = "", group: str = "") -> None:
    device = root / "bus/pci/devices" / address
    device.mkdir(parents=True)
    (device / "class").write_text(f"{class_}\n")
    if driver:
        (root / "bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to(root / "bus/pci/drivers" / driver)
    if group:
        members = root / "kernel/iommu_groups" / group / "devices"
        members.mkdir(parents=True, exist_ok=True)
        (members / address).symlink_to(device)
        (device / "iommu_group").symlink_to(members.parent)


def test_a_gpu_that_waits_at_vfio_with_all_of_its_group_can_be_had(tmp_path: Path) -> None:
    put_device(tmp_path, GPU, "0x030200", "vfio-pci", "14")
    put_device(tmp_path, SOUND, "0x040300", "vfio-pci", "14")
    put_device(tmp_path, BRIDGE, "0x060400", "pcieport", "14")
    assert find_obstacle(tmp_path, GPU) == ""
    assert find_kept(tmp_path) == {}


@pytest.mark.parametrize(
    ("driver", "group", "sound", "told"),
    [
        ("nvidia", "14", "", "it is bound to nvidia, not to vfio-pci; driverctl set-override 0000:3b:00.0 vfio-pci"),
        ("", "14", "", "it is bound to no driver, not to vfio-pci; driverctl"),
        ("vfio-pci", "", "", "the machine's IOMMU is off; switch it on"),
        ("vfio-pci", "14", "snd_hda_intel", "its IOMMU group also has 0000:3b:00.1, which is bound to snd_hda_intel; driverctl"),
    ],
)  # fmt: skip
def test_what_keeps_a_gpu_is_told_with_what_to_do(
    tmp_path: Path, driver: str, group: str, sound: str, told: str
) -> None:
    put_device(tmp_path, GPU, "0x030200", driver, group)
    put_device(tmp_path, SOUND, "0x040300", sound, group)
    assert find_kept(tmp_path)[GPU].startswith(told)
    with pytest.raises(DriverFailed) as refused:
        give_devices("web", [GPU], tmp_path, os.getuid(), tmp_path)
    assert refused.value.message == f"vm/web can't get GPU {GPU}: {told.partition('; ')[0]}"
    assert (refused.value.hint or "").startswith(told.partition("; ")[2])


def test_only_the_guests_user_may_open_the_file_of_its_group(tmp_path: Path) -> None:
    put_device(tmp_path, GPU, "0x030200", "vfio-pci", "14")
    with pytest.raises(DriverFailed, match=r"14: No such file"):
        give_devices("web", [GPU], tmp_path, os.getuid(), tmp_path)
    file = tmp_path / "14"
    file.touch(0o666)
    give_devices("web", [GPU], tmp_path, os.getuid(), tmp_path)
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (os.getuid(), 0o600)


@pytest.mark.skipif(os.getuid() != 0, reason="giving files to users needs root")
def test_a_file_that_was_given_is_roots_again_afterwards(tmp_path: Path) -> None:
    put_device(tmp_path, GPU, "0x030200", "vfio-pci", "14")
    (tmp_path / "14").touch()
    give_devices("web", [GPU], tmp_path, 4711, tmp_path)
    assert ((tmp_path / "14").stat().st_uid, (tmp_path / "14").stat().st_gid) == (4711, 4711)
    take_back_devices([GPU], tmp_path, tmp_path)
    assert ((tmp_path / "14").stat().st_uid, (tmp_path / "14").stat().st_gid) == (0, 0)
