"""QEMU's command line for a machine that is copied, and for its copies: the same words but for where its memory is. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from weft.drivers.runtime.qemu.command_line import device_words, file_words, kernel_words, node_words, start_words
from weft.drivers.runtime.qemu.devices.ids import fdset
from weft.drivers.runtime.qemu.function.messages import GUEST_MAC
from weft.drivers.runtime.qemu.translate import QemuHostFacts

# What the kernel can do without. The clock: a machine that comes back from disk must not measure how fast it ran.
_CMDLINE = "console=ttyS0 quiet reboot=t panic=-1 random.trust_cpu=on ipv6.disable=1 cryptomgr.notests"
_EMULATED = "tsc=reliable no_timer_check mitigations=off nokaslr nopti noreplace-smp lpj=4000000"
_EMULATED_CPU = "Nehalem"  # x86-64-v2, which is what compiled Python packages ask for; later ones are slower to emulate
_LAST_SHORT_BUS = 7
_SHAPES = {
    "microvm": "microvm,acpi=on,pit=off,pic=off,rtc=off,isa-serial=on,auto-kernel-cmdline=off",
    "q35": "q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off,i8042=off",
}


class TemplateMachine(msgspec.Struct, frozen=True):
    """The machine that all copies must share, to the letter; kept with the template. Bytes; ``disks``: how many."""

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


def plan_machine(facts: QemuHostFacts, memory: int, cpu: float, disks: int) -> TemplateMachine:
    """microvm has no clock to measure the TSC by, so an emulated one gets the frequency as an option; where that isn't known,
    the machine is a q35."""
    emulated = facts.accelerator == "tcg"
    machine = "microvm" if facts.tsc_khz or not emulated else "q35"
    words = [_CMDLINE, *([_EMULATED] if emulated else [])]
    if emulated and machine == "microvm":
        words.append(f"pci=off tsc_early_khz={facts.tsc_khz}")
    vcpus = max(1, -int(-cpu // 1))
    return TemplateMachine(facts.program, facts.accelerator, machine, memory, vcpus, disks, " ".join(words))


def translate_template(machine: TemplateMachine, fds: SnapshotFds, name: str) -> list[str]:
    return _translate(machine, fds, name, share=True)


def translate_clone(machine: TemplateMachine, fds: SnapshotFds, name: str) -> list[str]:
    """It waits for a command that names what to load, and runs then."""
    return [*_translate(machine, fds, name, share=False), "-incoming", "defer"]


def _translate(machine: TemplateMachine, fds: SnapshotFds, name: str, *, share: bool) -> list[str]:
    cpu = "host" if machine.accelerator == "kvm" else _EMULATED_CPU
    memory = f"memory-backend-file,id=m,size={machine.memory},mem-path=/proc/self/fd/{fds.memory}"
    memory += ",share=on" if share else ",share=off,readonly=on,rom=off"
    words = [*start_words(machine.program, name, machine.accelerator, cpu), "-no-reboot"]
    words += ["-m", f"{machine.memory >> 10}k", "-smp", str(machine.vcpus), "-object", memory]
    words += ["-machine", f"{_SHAPES[machine.machine]},memory-backend=m"]
    words += ["-bios", "qboot.rom", *kernel_words(fds.kernel, fds.initrd, machine.cmdline)]
    for place, descriptor in enumerate(fds.disks):
        file = {"driver": "file", "filename": fdset(descriptor), "locking": "off", "read-only": True}
        node = {"driver": "raw", "node-name": f"d{place}", "read-only": True, "file": file}
        words += [*file_words(descriptor), *node_words(node)]
        words += _device(machine, "virtio-blk", place, {"drive": f"d{place}", "id": f"disk{place}"})
    nic = {"netdev": "n0", "id": "nic0", "mac": GUEST_MAC, **({"romfile": ""} if machine.machine == "q35" else {})}
    words += ["-netdev", f"tap,id=n0,fd={fds.tap}", *_device(machine, "virtio-net", 2, nic)]
    words += ["-chardev", f"socket,id=q,fd={fds.qmp}", "-mon", "chardev=q,mode=control", *file_words(fds.state)]
    if fds.console < 0:
        return [*words, "-serial", "null"]
    console = f"file,id=console,path={fdset(fds.console)},append=on"
    return [*words, *file_words(fds.console), "-chardev", console, "-serial", "chardev:console"]


def _device(machine: TemplateMachine, name: str, place: int, properties: Mapping[str, str | int]) -> list[str]:
    """Each at a place of its own: the kernel names disks in the order in which it finds them."""
    return device_words(machine.machine, name, _LAST_SHORT_BUS - place, f"pcie.0,addr={place + 2:#x}", properties)
