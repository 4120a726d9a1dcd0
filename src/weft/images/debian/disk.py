"""The disk of debian-12: a GPT with GRUB for BIOS and for UEFI, and the root file system, made without mounting anything.

weft itself boots the bundle's kernel directly; firmware boots the same kernel through GRUB from the root's /boot.
"""

from __future__ import annotations

import struct
from pathlib import Path

from weft.images.debian.root import ROOT_LABEL
from weft.images.parts import run

SECTOR = 512
MIB = 1 << 20
DISK_BYTES = 4 << 30
_CORE_AT, _EFI_AT, _ROOT_AT = 1 * MIB, 2 * MIB, 10 * MIB
_ROOT_BYTES = DISK_BYTES - _ROOT_AT - MIB  # the last one holds the table's copy
_IDS = "77656674-6465-6269-8000-00000000000{}"
_GRUB = Path("/usr/lib/grub")
_MODULES = (
    "part_gpt",
    "ext2",
    "normal",
    "linux",
    "search",
    "search_label",
    "configfile",
    "serial",
    "terminal",
    "echo",
    "all_video",
)
_FIND_ROOT = f"search --label {ROOT_LABEL} --set root\nconfigfile ($root)/boot/grub/grub.cfg\n"
# A machine that boots by firmware shows the kernel on the screen and on the serial line.
GRUB_CONFIG = """\
serial --unit=0
terminal_output console serial
set timeout=0
menuentry Debian {
  linux /boot/vmlinuz quiet console=tty0 console=ttyS0
  initrd /boot/initrd
}
"""


def write_disk(root: Path, target: Path, work: Path) -> None:
    """The tree ``root`` as a bootable qcow2 at ``target``."""
    raw = work / "disk.raw"
    with open(raw, "wb") as file:
        file.truncate(DISK_BYTES)
    table = [
        f"label: gpt\nlabel-id: {_IDS.format(0)}",
        _partition(_CORE_AT, _EFI_AT - _CORE_AT, "21686148-6449-6E6F-744E-656564454649", "bios", 1),
        _partition(_EFI_AT, _ROOT_AT - _EFI_AT, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "efi", 2),
        _partition(_ROOT_AT, _ROOT_BYTES, "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "root", 3),
    ]
    run(["sfdisk", "-q", "--no-reread", str(raw)], "make the partitions", text="\n".join(table) + "\n")
    run(
        ["mkfs.ext4", "-q", "-F", "-b", "4096", "-L", ROOT_LABEL, "-U", _IDS.format(4), "-m", "1", "-J", "size=16",
         "-E", f"offset={_ROOT_AT},lazy_itable_init=0,lazy_journal_init=0,assume_storage_prezeroed=1,root_owner=0:0",
         "-d", str(root), str(raw), f"{_ROOT_BYTES // 1024}k"],
        "make the root file system",
    )  # fmt: skip
    _write_bios_loader(raw, work)
    _write_efi_loader(raw, work)
    run(
        ["qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", str(raw),
         str(target)],
        "write the disk",
    )  # fmt: skip
    raw.unlink()


def _partition(start: int, size: int, type_: str, name: str, number: int) -> str:
    return f"start={start // SECTOR}, size={size // SECTOR}, type={type_}, name={name}, uuid={_IDS.format(number)}"


def _write_bios_loader(raw: Path, work: Path) -> None:
    """GRUB's boot sector into the MBR, its core into the BIOS partition; both hold the core's place."""
    core = bytearray(_make_grub("i386-pc", ("biosdisk", *_MODULES), work))
    core += bytes(-len(core) % SECTOR)
    first = _CORE_AT // SECTOR
    struct.pack_into("<QH", core, 500, first + 1, len(core) // SECTOR - 1)
    boot = bytearray((_GRUB / "i386-pc/boot.img").read_bytes())
    struct.pack_into("<Q", boot, 0x5C, first)
    with open(raw, "r+b") as file:
        file.write(boot[:440])
        file.seek(_CORE_AT)
        file.write(core)


def _write_efi_loader(raw: Path, work: Path) -> None:
    loader = work / "BOOTX64.EFI"
    loader.write_bytes(_make_grub("x86_64-efi", ("fat", *_MODULES), work))
    place = f"{raw}@@{_EFI_AT}"
    sectors = str((_ROOT_AT - _EFI_AT) // SECTOR)
    run(
        ["mformat", "-i", place, "-T", sectors, "-h", "16", "-s", "63", "-N", "77656674", "-v", "EFI", "::"],
        "make the EFI partition",
    )
    run(["mmd", "-i", place, "::/EFI", "::/EFI/BOOT"], "fill the EFI partition")
    run(["mcopy", "-i", place, str(loader), "::/EFI/BOOT/BOOTX64.EFI"], "fill the EFI partition")


def _make_grub(platform: str, modules: tuple[str, ...], work: Path) -> bytes:
    early, out = work / "early.cfg", work / f"grub-{platform}"
    early.write_text(_FIND_ROOT)
    run(
        ["grub-mkimage", "-O", platform, "-o", str(out), "-p", "/boot/grub", "-c", str(early), *modules],
        f"make GRUB for {platform}",
    )
    return out.read_bytes()
