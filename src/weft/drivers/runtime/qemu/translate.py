"""Translate a guest's plan into QEMU's command line. Pure: the same plan on the same machine gives the same words.

Every device has a fixed id and a fixed place on its bus, because a saved or migrating guest must find each device where it
was, and a device plugged in later must not shift its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from weft.contracts.driver.runtime import BootDisk, BootKernel, GuestDisk, GuestNic, GuestPlan
from weft.drivers.runtime.qemu.command_line import device_words, file_words, kernel_words, node_words, start_words
from weft.drivers.runtime.qemu.devices.ids import (
    describe_disk,
    disk_id,
    disk_node,
    disk_properties,
    fdset,
    file_names,
    given_name,
    key_id,
    key_name,
    nic_id,
    nic_name,
    nic_properties,
)
from weft.drivers.runtime.qemu.machine_shape import BLOCK_BYTES, Frame
from weft.objects.errors import InvalidInput

MEMORY_ID, BOOT_MEMORY_ID, PORT_ID = "vmem", "ram", "port"
RAM = "ram"  # among the inherited descriptors
AGENT_PORT, WEFT_AGENT_ID = "weft.agent.0", "agent-port"
QEMU_AGENT_PORT, QEMU_AGENT_ID = "org.qemu.guest_agent.0", "qemu-agent-port"
MOST_DISKS = {"microvm": 8, "q35": 18}
MOST_NICS = 8
MOST_DEVICES = 8  # each in a root port of its own, all of these in one slot

# Slots on pcie.0, and buses of microvm.
_FIRST_DISK, _FIRST_NIC, _SCSI, _SCREEN, _MEMORY, _HOST, _FIRST_PORT = 0x4, 0xC, 0x14, 0x15, 0x16, 0x17, 0x18
_PORTS_PER_SLOT = 8
_HOST_CHASSIS = 200  # beyond those of other ports
_LAST_MMIO_BUS = 23
_SOCKET_PATH_BYTES = 107

# An emulated CPU has no use for mitigations, and each of these spares it time; no_timer_check because a busy host can
# fail the kernel's own check of its timer, which then panics.
_EMULATED_CMDLINE = "tsc=reliable no_timer_check mitigations=off nopti nokaslr noreplace-smp cryptomgr.notests"
# Memory that comes later is used at once, and no memory is set aside for devices that can't reach it: there are no such devices.
_GROWING_CMDLINE = "memhp_default_state=online memory_hotplug.online_policy=auto-movable swiotlb=noforce"


class QemuHostFacts(msgspec.Struct, frozen=True):
    """Facts on which the command line depends besides the plan; from ``probe``."""

    program: str
    accelerator: str  # "kvm" or "tcg"
    version: tuple[int, int, int]
    tsc_khz: int  # of the host, which is the guest's too when it is emulated
    users: tuple[int, int]  # the first of the users that guests run as, and how many
    kvm_group: int | None = None  # who may open /dev/kvm
    uefi_code: str | None = None
    uefi_vars: str | None = None


class GuestPaths(msgspec.Struct, frozen=True):
    """Places of one guest's things: ``run`` for sockets and pidfile, ``state`` for what outlives a reboot."""

    run: Path
    state: Path

    @property
    def qmp(self) -> Path:
        return self.run / "qmp"

    @property
    def counters_qmp(self) -> Path:
        """A second monitor, that counts: who reads counters never waits behind other commands."""
        return self.run / "qmp2"

    @property
    def console(self) -> Path:
        return self.run / "console"

    @property
    def agent(self) -> Path:
        return self.run / "agent"

    @property
    def qemu_agent(self) -> Path:
        return self.run / "qga"

    @property
    def screen(self) -> Path:
        return self.run / "vnc"

    def migration_socket(self, name: Literal["incoming", "incoming-disks", "outgoing", "outgoing-disks"]) -> Path:
        """The socket where QEMU itself waits for a guest that migrates here, or for its disks; and, under a name that the source's
        QEMU may reach, what it sends to."""
        return self.run / name

    @property
    def pid(self) -> Path:
        return self.run / "pid"

    @property
    def console_log(self) -> Path:
        return self.state / "console.log"

    @property
    def qemu_log(self) -> Path:
        return self.state / "qemu.log"

    @property
    def record(self) -> Path:
        return self.state / "guest.json"

    @property
    def taken(self) -> Path:
        """Names the migration whose guest may have run here, before the record does."""
        return self.state / "taken"

    @property
    def memory(self) -> Path:
        return self.state / "memory"

    @property
    def memory_pending(self) -> Path:
        return self.state / "memory.pending"

    @property
    def uefi_vars(self) -> Path:
        return self.state / "uefi-vars.fd"


def translate_guest(
    plan: GuestPlan,
    frame: Frame,
    paths: GuestPaths,
    facts: QemuHostFacts,
    fds: Mapping[str, int],
    *,
    incoming: bool = False,
) -> list[str]:
    """The command that runs this guest inside ``frame``. ``fds``: the descriptors that QEMU inherits, by name. Raises
    InvalidInput for a plan QEMU could not run."""
    check_plan(plan, paths)
    words = start_words(facts.program, f"guest={plan.name}", facts.accelerator, _cpu(frame, facts))
    words += ["-uuid", frame.uuid or plan.uid, "-machine", _machine(plan, frame)]
    words += _size(plan, frame, fds, incoming=incoming)
    words += _boot(plan, frame, facts, fds)
    words += _socket("qmp", fds, "-mon", "chardev=qmp,mode=control")
    words += _socket("qmp2", fds, "-mon", "chardev=qmp2,mode=control")
    words += _socket("console", fds, "-serial", "chardev:console", log="console-log")
    words += _ports(frame)
    words += _devices(plan, frame, fds)
    if plan.screen:
        words += ["-vnc", f"unix:{paths.screen}", "-device", f"VGA,bus=pcie.0,addr={_SCREEN:#x},id=screen"]
    fixed = [disk for disk in plan.disks if disk_id(disk) not in frame.ports]
    for disk in plan.disks:
        words += _disk(plan, frame, fixed.index(disk) if disk in fixed else 0, disk, fds)
    for index, nic in enumerate(plan.nics):
        words += _nic(plan, frame, index, nic, fds)
    words += _host_devices(plan.devices)
    words += ["-pidfile", str(paths.pid), "-msg", "timestamp=on"]
    words += [] if plan.reboots else ["-no-reboot"]
    return [*words, "-incoming", "defer", "-S"] if incoming else words  # it runs on command


def check_plan(plan: GuestPlan, paths: GuestPaths) -> None:
    serials = [disk.serial for disk in plan.disks]
    if plan.machine == "microvm" and not isinstance(plan.boot, BootKernel):
        raise InvalidInput(
            f"vm/{plan.name}: machine microvm boots a kernel directly, but this image has none",
            field="machine", hint="use machine q35",
        )  # fmt: skip
    if plan.devices and (plan.machine != "q35" or len(plan.devices) > MOST_DEVICES):
        raise InvalidInput(
            f"vm/{plan.name}: only machine q35 takes GPUs, and at most {MOST_DEVICES}",
            field="machine" if plan.machine != "q35" else "gpus",
        )
    most = MOST_DISKS[plan.machine]
    if len(plan.disks) > most or len(plan.nics) > MOST_NICS:
        raise InvalidInput(
            f"vm/{plan.name}: machine {plan.machine} has at most {most} disks and {MOST_NICS} NICs",
            field="volumes" if len(plan.disks) > most else "networks",
        )
    if len(set(serials)) != len(serials) or not all(
        re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,19}", s) for s in serials
    ):
        raise InvalidInput(f"vm/{plan.name}: disk serials must differ and be 1-20 of A-Z a-z 0-9 . _ -: {serials}")
    if len(str(paths.console).encode()) > _SOCKET_PATH_BYTES:
        raise InvalidInput(
            f"vm/{plan.name}: socket path {paths.console} is longer than {_SOCKET_PATH_BYTES} bytes",
            hint="start the agent with a shorter --run-dir",
        )


def _machine(plan: GuestPlan, frame: Frame) -> str:
    if plan.machine == "microvm":
        return "microvm,acpi=on,rtc=on,isa-serial=on,ioapic2=on,auto-kernel-cmdline=off"
    type_ = f"pc-q35-{frame.version}" if frame.version else "q35"
    return f"{type_},usb=off,vmport=off,smbus=off,sata=off,hpet=off,i8042={'on' if plan.screen else 'off'}"


def _cpu(frame: Frame, facts: QemuHostFacts) -> str:
    if frame.cpu_model in ("", "host", "max"):
        return "host" if facts.accelerator == "kvm" else "max"
    # A named one is had in full or not at all: a guest that found less than its next node has could not come back.
    return f"{frame.cpu_model},enforce"


def _boot(plan: GuestPlan, frame: Frame, facts: QemuHostFacts, fds: Mapping[str, int]) -> list[str]:
    boot = plan.boot
    if isinstance(boot, BootKernel):
        words = ["console=ttyS0", boot.cmdline, *(["pci=off"] if plan.machine == "microvm" else [])]
        if facts.accelerator == "tcg":
            # microvm has no clock to measure the TSC by, and q35's measures wrong while the host is busy.
            words += [_EMULATED_CMDLINE, f"tsc_early_khz={facts.tsc_khz}"]
        if frame.pluggable_bytes:
            words.append(_GROWING_CMDLINE)
        words.append(f"weft.hostname={plan.hostname or plan.name}")
        if plan.identity is not None:
            words.append(f"weft.identity={plan.identity.machine_id}")
        # qboot does only what a kernel needs; SeaBIOS takes longer, and on microvm it lays its ACPI tables under the
        # end of the initial RAM disk.
        firmware = [] if plan.devices else ["-bios", "qboot.rom"]  # qboot gives devices behind ports no addresses
        return [*firmware, *kernel_words(fds["kernel"], fds["initrd"], " ".join(words))]
    if boot.firmware == "uefi":
        return _uefi(plan, facts, fds)
    return []


def _uefi(plan: GuestPlan, facts: QemuHostFacts, fds: Mapping[str, int]) -> list[str]:
    if facts.uefi_code is None:
        raise InvalidInput(
            f"vm/{plan.name}: this node has no UEFI firmware", field="firmware", hint="apt-get install ovmf"
        )
    code = {"driver": "file", "filename": facts.uefi_code, "node-name": "uefi-code", "read-only": True}
    own = {"driver": "file", "filename": fdset(fds["uefi-vars"]), "node-name": "uefi-vars"}
    words = [*file_words(fds["uefi-vars"]), *node_words(code), *node_words(own)]
    return [*words, "-machine", "pflash0=uefi-code,pflash1=uefi-vars"]


def _socket(name: str, fds: Mapping[str, int], option: str, value: str, *, log: str | None = None) -> list[str]:
    words, chardev = [], f"socket,id={name},fd={fds[name]},server=on,wait=off"
    if log is not None:
        words += file_words(fds[log])
        chardev += f",logfile={fdset(fds[log])},logappend=on"
    return [*words, "-chardev", chardev, option, value]


def _devices(plan: GuestPlan, frame: Frame, fds: Mapping[str, int]) -> list[str]:
    words = ["-object", "rng-random,id=rng0,filename=/dev/urandom"]
    words += _device(plan, "virtio-rng", 1, None, {"rng": "rng0", "id": "rng"})
    reporting = "off" if frame.maps_ram else "on"
    balloon = {"id": "balloon", "deflate-on-oom": "on", "free-page-reporting": reporting}
    words += _device(plan, "virtio-balloon", 2, None, balloon)
    words += _device(plan, "virtio-serial", 3, None, {"id": "serial"})
    if plan.has_agent:
        words += _agent_port("agent", fds, AGENT_PORT, WEFT_AGENT_ID)
    if has_qemu_port(plan):
        words += _agent_port("qga", fds, QEMU_AGENT_PORT, QEMU_AGENT_ID)
    if any(disk.cdrom for disk in plan.disks):
        words += _device(plan, "virtio-scsi", _SCSI, None, {"id": "scsi"})
    return words


def has_qemu_port(plan: GuestPlan) -> bool:
    """Whether there is a port for qemu-guest-agent: also for an image that doesn't name its agents."""
    return plan.qemu_agent or not plan.has_agent


def _agent_port(name: str, fds: Mapping[str, int], port: str, id_: str) -> list[str]:
    return _socket(name, fds, "-device", f"virtserialport,bus=serial.0,chardev={name},name={port},id={id_}")


def _size(plan: GuestPlan, frame: Frame, fds: Mapping[str, int], *, incoming: bool) -> list[str]:
    memory = f"{frame.memory_bytes >> 10}k"
    cpus = str(frame.vcpus) if frame.most_vcpus <= frame.vcpus else f"{frame.vcpus},maxcpus={frame.most_vcpus}"
    backend = f"memory-backend-ram,id={BOOT_MEMORY_ID},size={memory}"
    if plan.ram:
        how = "share=off,readonly=on,rom=off" if incoming else "share=on"
        backend = f"memory-backend-file,id={BOOT_MEMORY_ID},size={memory},mem-path=/proc/self/fd/{fds[RAM]},{how}"
    if not frame.pluggable_bytes:
        named = ["-object", backend, "-machine", f"memory-backend={BOOT_MEMORY_ID}"] if plan.ram else []
        return [*named, "-smp", cpus, "-m", memory]
    more = frame.pluggable_bytes
    # An emulated machine forgets what was written while it migrates in any block of memory but the first (QEMU 10.0: its
    # physical_memory_sync_dirty_bitmap resets the CPUs' caches for the block at address 0), and objects come first.
    device = f"virtio-mem-pci,id={MEMORY_ID},memdev={MEMORY_ID}0,requested-size={frame.plugged_bytes},"
    return [
        *("-object", backend),
        *("-machine", f"memory-backend={BOOT_MEMORY_ID}"),
        *("-smp", cpus, "-m", f"size={memory},maxmem={(frame.memory_bytes + more) >> 10}k"),
        *("-object", f"memory-backend-ram,id={MEMORY_ID}0,size={more},reserve=off"),
        *("-device", f"{device}block-size={BLOCK_BYTES},bus=pcie.0,addr={_MEMORY:#x}"),
    ]


def _disk(plan: GuestPlan, frame: Frame, index: int, disk: GuestDisk, fds: Mapping[str, int]) -> list[str]:
    files = {name: fds[name] for name in file_names(disk)}
    words = ["-object", f"secret,id={key_id(disk)},file=/proc/self/fd/{fds[key_name(disk)]}"] if disk.key else []
    words += [word for descriptor in files.values() for word in file_words(descriptor)] if disk.rbd is None else []
    given = {name: given_name(disk, descriptor, descriptor) for name, descriptor in files.items()}
    words += node_words(describe_disk(disk, given))
    # A disk put into the drive is there to be booted.
    turn = 0 if disk.cdrom else plan.disks.index(disk) + 1
    more = {"bootindex": str(turn)} if isinstance(plan.boot, BootDisk) else {}
    if disk.cdrom:
        drive = {"drive": disk_node(disk.serial), "serial": disk.serial, "id": f"cd-{disk.serial}", **more}
        device = ",".join(["scsi-cd,bus=scsi.0", *(f"{key}={value}" for key, value in drive.items())])
        return [*words, "-device", device]
    place = frame.ports.get(disk_id(disk))
    return words + _device(plan, "virtio-blk", _FIRST_DISK + index, place, {**disk_properties(disk), **more})


def _nic(plan: GuestPlan, frame: Frame, index: int, nic: GuestNic, fds: Mapping[str, int]) -> list[str]:
    more = {"romfile": ""} if plan.machine == "q35" else {}
    place, properties = frame.ports.get(nic_id(nic)), nic_properties(nic)
    device = _device(plan, "virtio-net", _FIRST_NIC + index, place, {**properties, **more})
    return ["-netdev", f"tap,id={properties['netdev']},fd={fds[nic_name(nic)]}", *device]


def _device(plan: GuestPlan, name: str, place: int, port: int | None, properties: Mapping[str, str | int]) -> list[str]:
    pci = f"pcie.0,addr={place:#x}" if port is None else f"{PORT_ID}{port}"
    return device_words(plan.machine, name, _LAST_MMIO_BUS - place, pci, properties)


def _ports(frame: Frame) -> list[str]:
    words = []
    for port in range(frame.port_count):
        slot, function = divmod(port, _PORTS_PER_SLOT)
        place = f"addr={_FIRST_PORT + slot:#x}.{function}" + (",multifunction=on" if function == 0 else "")
        words += ["-device", f"pcie-root-port,id={PORT_ID}{port},chassis={port},bus=pcie.0,{place}"]
    return words


def _host_devices(addresses: list[str]) -> list[str]:
    words = []
    for index, address in enumerate(addresses):
        port = f"id=host{index},chassis={_HOST_CHASSIS + index},bus=pcie.0,addr={_HOST:#x}.{index}"
        words += ["-device", f"pcie-root-port,{port}" + (",multifunction=on" if index == 0 else "")]
        words += ["-device", f"vfio-pci,host={address},id=gpu{index},bus=host{index}"]
    return words
