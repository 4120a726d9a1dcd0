"""QEMU's command line for a machine that is copied, and for its copies: the same words but for where its memory is. Pure."""

from __future__ import annotations

import json

import msgspec

from weft.drivers.runtime.qemu.devices.ids import fdset
from weft.drivers.runtime.qemu.function.messages import GUEST_MAC
from weft.drivers.runtime.qemu.translate import SANDBOX, TRANSLATION_CACHE_MIB, Facts

# What the kernel can do without. The clock: a machine that comes back from disk must not measure how fast it ran.
_CMDLINE = "console=ttyS0 quiet reboot=t panic=-1 random.trust_cpu=on ipv6.disable=1 cryptomgr.notests"
_EMULATED = "tsc=reliable no_timer_check mitigations=off nokaslr nopti noreplace-smp lpj=4000000"
_EMULATED_CPU = "Nehalem"  # x86-64-v2, which is what compiled Python packages ask for; later ones are slower to emulate
_LAST_SHORT_BUS = 7


class Machine(msgspec.Struct, frozen=True):
    """What its copies must have in common, to the letter; kept with the template. Bytes; ``disks``: how many."""

    program: str
    accelerator: str
    machine: str  # microvm or q35
    memory: int
    vcpus: int
    disks: int
    cmdline: str


class SnapshotFds(msgspec.Struct, frozen=True):
    """Descriptors that QEMU is given: it may open nothing by name."""

    qmp: int
    tap: int
    memory: int
    state: int
    kernel: int
    initrd: int
    disks: list[int]
    console: int = -1


def plan_machine(facts: Facts, memory: int, cpu: float, disks: int) -> Machine:
    """microvm has no clock to measure the TSC by, so an emulated one must be told; where that isn't known, q35."""
    emulated = facts.accelerator == "tcg"
    machine = "microvm" if facts.tsc_khz or not emulated else "q35"
    words = [_CMDLINE, *([_EMULATED] if emulated else [])]
    if emulated and machine == "microvm":
        words.append(f"pci=off tsc_early_khz={facts.tsc_khz}")
    vcpus = max(1, -int(-cpu // 1))
    return Machine(facts.program, facts.accelerator, machine, memory, vcpus, disks, " ".join(words))


def translate_template(machine: Machine, fds: SnapshotFds, name: str) -> list[str]:
    return _translate(machine, fds, name, share=True)


def translate_clone(machine: Machine, fds: SnapshotFds, name: str) -> list[str]:
    """It waits to be told what to load, and runs then."""
    return [*_translate(machine, fds, name, share=False), "-incoming", "defer"]


def _translate(machine: Machine, fds: SnapshotFds, name: str, *, share: bool) -> list[str]:
    size = f"{machine.memory >> 10}k"
    memory = f"memory-backend-file,id=m,size={machine.memory},mem-path=/proc/self/fd/{fds.memory}"
    memory += ",share=on" if share else ",share=off,readonly=on,rom=off"
    words = [
        machine.program,
        "-name",
        name,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-sandbox",
        SANDBOX,
    ]
    words += [*_accelerator(machine), "-m", size, "-smp", str(machine.vcpus), "-object", memory]
    if machine.machine == "microvm":
        words += [
            "-machine",
            "microvm,acpi=on,pit=off,pic=off,rtc=off,isa-serial=on,auto-kernel-cmdline=off,memory-backend=m",
        ]
    else:
        words += ["-machine", "q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off,i8042=off,memory-backend=m"]
    words += [
        "-bios",
        "qboot.rom",
        "-kernel",
        f"/proc/self/fd/{fds.kernel}",
        "-initrd",
        f"/proc/self/fd/{fds.initrd}",
    ]
    words += ["-append", machine.cmdline]
    for place, descriptor in enumerate(fds.disks):
        file = {"driver": "file", "filename": fdset(descriptor), "locking": "off", "read-only": True}
        node = {"driver": "raw", "node-name": f"d{place}", "read-only": True, "file": file}
        words += ["-add-fd", f"fd={descriptor},set={descriptor}", "-blockdev", json.dumps(node, separators=(",", ":"))]
        words += ["-device", _device(machine, "virtio-blk", place, f"drive=d{place},id=disk{place}")]
    words += ["-netdev", f"tap,id=n0,fd={fds.tap}"]
    nic = f"netdev=n0,id=nic0,mac={GUEST_MAC}" + (",romfile=" if machine.machine == "q35" else "")
    words += ["-device", _device(machine, "virtio-net", 2, nic)]
    words += ["-chardev", f"socket,id=q,fd={fds.qmp}", "-mon", "chardev=q,mode=control"]
    words += ["-add-fd", f"fd={fds.state},set={fds.state}"]
    if fds.console < 0:
        return [*words, "-serial", "null"]
    words += ["-add-fd", f"fd={fds.console},set={fds.console}"]
    return [*words, "-chardev", f"file,id=console,path={fdset(fds.console)},append=on", "-serial", "chardev:console"]


def _accelerator(machine: Machine) -> list[str]:
    if machine.accelerator == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", f"tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}", "-cpu", _EMULATED_CPU]


def _device(machine: Machine, name: str, place: int, properties: str) -> str:
    """Each at a place of its own: the kernel names disks in the order in which it finds them."""
    if machine.machine == "microvm":
        return f"{name}-device,bus=virtio-mmio-bus.{_LAST_SHORT_BUS - place},{properties}"
    return f"{name}-pci,bus=pcie.0,addr={place + 2:#x},{properties}"
