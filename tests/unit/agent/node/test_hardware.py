"""What an agent finds its machine to be made of, from trees like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from weft.agent.node.hardware import find_gpus, find_storage, inspect_hardware, read_nvidia
from weft.contracts.driver.host import Capacity, Host
from weft.kinds.node import Gpu

# As nvidia-smi --query-gpu=pci.bus_id,name,memory.total --format=csv,noheader,nounits prints them.
TWO = "00000000:3B:00.0, NVIDIA H200, 143771\n00000000:86:00.0, Tesla V100-SXM2-32GB, 32768\n"
UNKNOWN = "00000000:3B:00.0, NVIDIA GB10, [N/A]\n00000000:86:00.0, GRID K1, [Not Supported]\n"
COMPLAINT = "Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error\nNo devices were found\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def put_pci(root: Path, address: str, class_: str, vendor: str = "0x10de", **files: str) -> None:
    for name, text in {"class": class_, "vendor": vendor, "device": "0x2335", **files}.items():
        write(root / "bus/pci/devices" / address / name, text)


def put_disk(root: Path, folder: Path, path: str, rotational: str, partition: str = "") -> None:
    """The disk at ``path`` below devices/ has the folder's file system, on a partition of it or whole."""
    disk = root / "devices" / path
    write(disk / "queue/rotational", rotational)
    device = disk / partition if partition else disk
    device.mkdir(exist_ok=True)
    stand_on(root, folder, device)


def stand_on(root: Path, folder: Path, device: Path) -> None:
    number = os.stat(folder).st_dev
    link = root / "dev/block" / f"{os.major(number)}:{os.minor(number)}"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(device)


def make_host(state: Path, sysfs: Path, *, devices: bool = True) -> Host:
    return Host("n1", "u", str(state), "/run/x", "w", "127.0.0.1", "lo", "weft/x", Capacity(1, 1, 1), 4789, True,
                str(sysfs), devices)  # fmt: skip


def test_gpus_are_those_on_the_bus_with_what_their_driver_says_of_them(tmp_path: Path) -> None:
    put_pci(tmp_path, "0000:86:00.0", "0x030200")
    put_pci(tmp_path, "0000:3b:00.0", "0x030200")
    put_pci(tmp_path, "0000:af:00.0", "0x038000", "0x1002", mem_info_vram_total="34342961152", product_name="MI100")
    put_pci(tmp_path, "0000:04:00.0", "0x030000", "0x102b")  # a server's console
    put_pci(tmp_path, "0000:05:00.0", "0x010802")
    assert find_gpus(tmp_path, TWO) == [
        Gpu("NVIDIA H200", 143771 * 2**20, "0000:3b:00.0"),
        Gpu("Tesla V100-SXM2-32GB", 32 * 2**30, "0000:86:00.0"),
        Gpu("MI100", 34342961152, "0000:af:00.0"),
    ]


def test_a_gpu_whose_driver_is_not_there_is_one_still(tmp_path: Path) -> None:
    put_pci(tmp_path, "0000:3b:00.0", "0x030200")
    assert find_gpus(tmp_path, "") == [Gpu("NVIDIA 2335", 0, "0000:3b:00.0")]


@pytest.mark.parametrize(
    ("listing", "memory"), [(TWO, [143771 * 2**20, 32 * 2**30]), (UNKNOWN, [0, 0]), (COMPLAINT, []), ("", [])]
)
def test_what_nvidia_smi_cannot_tell_is_left_out(listing: str, memory: list[int]) -> None:
    assert [gpu.memory for gpu in read_nvidia(listing)] == memory


@pytest.mark.parametrize(
    ("path", "rotational", "partition", "kind"),
    [
        ("pci/nvme/nvme0n1", "0", "nvme0n1p2", "nvme"),
        ("pci/ata1/block/sda", "0", "sda1", "ssd"),
        ("pci/ata1/block/sdb", "1", "", "hdd"),
    ],
)
def test_storage_is_what_the_state_folder_lies_on(
    tmp_path: Path, path: str, rotational: str, partition: str, kind: str
) -> None:
    put_disk(tmp_path, tmp_path, path, rotational, partition)
    assert find_storage(tmp_path, str(tmp_path)) == kind


def test_of_several_disks_below_one_file_system_the_slowest_counts(tmp_path: Path) -> None:
    raid = tmp_path / "devices/virtual/block/md0"
    (raid / "slaves").mkdir(parents=True)
    for name, rotational in (("nvme0n1", "0"), ("sda", "1")):
        disk = tmp_path / "devices/pci" / name
        write(disk / "queue/rotational", rotational)
        (raid / "slaves" / name).symlink_to(disk)
    stand_on(tmp_path, tmp_path, raid)
    assert find_storage(tmp_path, str(tmp_path)) == "hdd"


def test_an_unknown_disk_is_told_as_none(tmp_path: Path) -> None:
    assert find_storage(tmp_path, str(tmp_path)) == ""


def test_the_rest_is_counted_where_the_kernel_tells_of_it(tmp_path: Path) -> None:
    write(tmp_path / "class/tpm/tpm0/tpm_version_major", "2")
    put_pci(tmp_path, "0000:18:00.0", "0x020000", "0x8086", sriov_totalvfs="63")
    put_pci(tmp_path, "0000:18:00.1", "0x020000", "0x8086", sriov_totalvfs="64")
    put_pci(tmp_path, "0000:3b:00.0", "0x030200")
    for node in ("node0", "node1", "power"):
        (tmp_path / "devices/system/node" / node).mkdir(parents=True)
    found = inspect_hardware(make_host(tmp_path, tmp_path))
    assert (found.tpm, found.sriov, found.numa, len(found.gpus)) == ("2.0", 127, 2, 1)
    assert found.arch


def test_devices_of_one_machine_are_not_counted_by_each_of_its_nodes(tmp_path: Path) -> None:
    put_pci(tmp_path, "0000:3b:00.0", "0x030200")
    put_pci(tmp_path, "0000:18:00.0", "0x020000", "0x8086", sriov_totalvfs="63")
    found = inspect_hardware(make_host(tmp_path, tmp_path, devices=False))
    assert (found.gpus, found.sriov) == ([], 0)
