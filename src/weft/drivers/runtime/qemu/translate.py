"""From a guest's plan to QEMU's command line. Pure: the same plan on the same machine gives the same words.

Every device has a fixed id and a fixed place on its bus, because a saved or moving guest must find each device where it
was, and a device plugged in later must not move its neighbours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.runtime import BootDisk, BootKernel, GuestDisk, GuestNic, GuestPlan
from weft.objects.errors import InvalidInput

AGENT_PORT, WEFT_AGENT_ID = "weft.agent.0", "agent-port"
QEMU_AGENT_PORT, QEMU_AGENT_ID = "org.qemu.guest_agent.0", "qemu-agent-port"
HOTPLUG_PORTS = 4  # a root port costs an emulated boot about 10 ms
TRANSLATION_CACHE_MIB = 128  # QEMU's default grows to 1 GiB of a long-running emulated guest
MOST_DISKS = 8
MOST_NICS = 8

_FIRST_DISK, _FIRST_NIC, _SCSI, _SCREEN, _FIRST_PORT = (
    0x4,
    0xC,
    0x14,
    0x15,
    0x18,
)  # slots on pcie.0, and buses of microvm
_LAST_MMIO_BUS = 23
_SOCKET_PATH_BYTES = 107
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# An emulated CPU has no use for mitigations, and each of these spares it time; no_timer_check because a busy host can
# fail the kernel's own check of its timer, which then panics.
_EMULATED_CMDLINE = "tsc=reliable no_timer_check mitigations=off nopti nokaslr noreplace-smp cryptomgr.notests"


class Facts(msgspec.Struct, frozen=True):
    """What the command line depends on besides the plan; from ``probe``."""

    program: str
    accelerator: str  # "kvm" or "tcg"
    version: tuple[int, int, int]
    tsc_khz: int  # of the host, which is the guest's too when it is emulated
    users: tuple[int, int]  # the first of the users that guests run as, and how many
    kvm_group: int | None = None  # who may open /dev/kvm
    uefi_code: str | None = None
    uefi_vars: str | None = None


class GuestPaths(msgspec.Struct, frozen=True):
    """Where one guest's things are: ``run`` for sockets and pidfile, ``state`` for what outlives a reboot."""

    run: Path
    state: Path

    @property
    def qmp(self) -> Path:
        return self.run / "qmp"

    @property
    def rescue_qmp(self) -> Path:
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
    def memory(self) -> Path:
        return self.state / "memory"

    @property
    def memory_pending(self) -> Path:
        return self.state / "memory.pending"

    @property
    def uefi_vars(self) -> Path:
        return self.state / "uefi-vars.fd"


def translate_guest(
    plan: GuestPlan, paths: GuestPaths, facts: Facts, handed: Mapping[str, int], *, incoming: bool = False
) -> list[str]:
    """The command that runs this guest. ``handed``: the descriptors it is given, by name. Raises InvalidInput for a plan
    QEMU could not run."""
    check_plan(plan, paths)
    words = [facts.program, "-name", f"guest={plan.name}", "-uuid", plan.uid]
    words += ["-nodefaults", "-no-user-config", "-display", "none"]
    words += ["-sandbox", _SANDBOX]
    words += ["-machine", _machine(plan), *_accelerator(facts)]
    words += ["-smp", str(plan.vcpus), "-m", f"{plan.memory_bytes >> 10}k"]
    words += _boot(plan, facts, handed)
    words += _socket("qmp", handed, "-mon", "chardev=qmp,mode=control")
    words += _socket("qmp2", handed, "-mon", "chardev=qmp2,mode=control")
    words += _socket("console", handed, "-serial", "chardev:console", log="console-log")
    words += _devices(plan, handed)
    if plan.screen:
        words += ["-vnc", f"unix:{paths.screen}", "-device", f"VGA,bus=pcie.0,addr={_SCREEN:#x},id=screen"]
    for index, disk in enumerate(plan.disks):
        words += _disk(plan, index, disk, handed)
    for index, nic in enumerate(plan.nics):
        words += _nic(plan, index, nic, handed)
    if plan.machine == "q35":
        words += _hotplug_ports()
    words += ["-pidfile", str(paths.pid), "-msg", "timestamp=on"]
    return [*words, "-incoming", "defer"] if incoming else words


def disk_node(disk: GuestDisk) -> str:
    """The name of a disk's block node in QEMU's monitor."""
    return f"disk-{disk.serial}"


def disk_name(disk: GuestDisk) -> str:
    """What a disk's file is called among the descriptors handed over."""
    return f"disk {disk.serial}"


def base_name(disk: GuestDisk) -> str:
    """The same for the image it is a clone of."""
    return f"base of {disk.serial}"


def nic_name(nic: GuestNic) -> str:
    """The same for a NIC's tap."""
    return f"tap {nic.ifname}"


def describe_disk(disk: GuestDisk, file: str, base_file: str | None) -> dict[str, Any]:
    """The block node of a disk for QEMU. Its backing is always said, so that its header is not asked."""
    node: dict[str, Any] = {
        "driver": disk.format,
        "node-name": disk_node(disk),
        "discard": "unmap",
        "read-only": disk.read_only,
        "file": {"driver": "file", "filename": file},
    }
    if disk.format == "qcow2":
        node["backing"] = None
    if base_file is not None:
        base = {"driver": disk.base_format, "file": {"driver": "file", "filename": base_file}, "read-only": True}
        node["backing"] = base | ({"backing": None} if disk.base_format == "qcow2" else {})
    return node


def check_plan(plan: GuestPlan, paths: GuestPaths) -> None:
    serials = [disk.serial for disk in plan.disks]
    if plan.machine == "microvm" and not isinstance(plan.boot, BootKernel):
        raise InvalidInput(
            f"VM {plan.name}: machine microvm boots a kernel directly, and this image has none",
            field="machine", hint="use machine q35",
        )  # fmt: skip
    if len(plan.disks) > MOST_DISKS or len(plan.nics) > MOST_NICS:
        raise InvalidInput(f"VM {plan.name}: QEMU guests have at most {MOST_DISKS} disks and {MOST_NICS} NICs")
    if len(set(serials)) != len(serials) or not all(
        re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,19}", s) for s in serials
    ):
        raise InvalidInput(f"VM {plan.name}: disk serials must differ and be 1-20 of A-Z a-z 0-9 . _ -: {serials}")
    if len(str(paths.console).encode()) > _SOCKET_PATH_BYTES:
        raise InvalidInput(
            f"VM {plan.name}: socket path {paths.console} is longer than {_SOCKET_PATH_BYTES} bytes",
            hint="give the node a shorter run folder",
        )


def _machine(plan: GuestPlan) -> str:
    if plan.machine == "microvm":
        return "microvm,acpi=on,rtc=on,isa-serial=on,ioapic2=on,auto-kernel-cmdline=off"
    return f"q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off,i8042={'on' if plan.screen else 'off'}"


def _accelerator(facts: Facts) -> list[str]:
    if facts.accelerator == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", f"tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}", "-cpu", "max"]


def _boot(plan: GuestPlan, facts: Facts, handed: Mapping[str, int]) -> list[str]:
    boot = plan.boot
    if isinstance(boot, BootKernel):
        words = ["console=ttyS0", boot.cmdline, *(["pci=off"] if plan.machine == "microvm" else [])]
        if facts.accelerator == "tcg":
            # microvm has no clock to measure the TSC by, and q35's measures wrong while the host is busy.
            words += [_EMULATED_CMDLINE, f"tsc_early_khz={facts.tsc_khz}"]
        words.append(f"weft.hostname={plan.hostname or plan.name}")
        # qboot does only what a kernel needs; SeaBIOS takes longer, and on microvm it lays its ACPI tables under the
        # end of the initial RAM disk.
        kernel, initrd = (f"/proc/self/fd/{handed[name]}" for name in ("kernel", "initrd"))
        return ["-bios", "qboot.rom", "-kernel", kernel, "-initrd", initrd, "-append", " ".join(words)]
    if boot.firmware == "uefi":
        return _uefi(plan, facts, handed)
    return []


def _uefi(plan: GuestPlan, facts: Facts, handed: Mapping[str, int]) -> list[str]:
    if facts.uefi_code is None:
        raise InvalidInput(
            f"VM {plan.name}: this node has no UEFI firmware", field="firmware", hint="apt-get install ovmf"
        )
    code = {"driver": "file", "filename": facts.uefi_code, "node-name": "uefi-code", "read-only": True}
    own = {"driver": "file", "filename": fdset(handed["uefi-vars"]), "node-name": "uefi-vars"}
    words = [*_add(handed["uefi-vars"]), "-blockdev", _json(code), "-blockdev", _json(own)]
    return [*words, "-machine", "pflash0=uefi-code,pflash1=uefi-vars"]


def fdset(number: int) -> str:
    """QEMU's name for a file it was given open in set ``number``."""
    return f"/dev/fdset/{number}"


def _add(descriptor: int) -> list[str]:
    return ["-add-fd", f"fd={descriptor},set={descriptor}"]


def _socket(name: str, handed: Mapping[str, int], option: str, value: str, *, log: str | None = None) -> list[str]:
    words, chardev = [], f"socket,id={name},fd={handed[name]},server=on,wait=off"
    if log is not None:
        words += _add(handed[log])
        chardev += f",logfile={fdset(handed[log])},logappend=on"
    return [*words, "-chardev", chardev, option, value]


def _devices(plan: GuestPlan, handed: Mapping[str, int]) -> list[str]:
    words = ["-object", "rng-random,id=rng0,filename=/dev/urandom"]
    words += ["-device", _device(plan, "virtio-rng", 1, rng="rng0", id="rng")]
    balloon = {"id": "balloon", "deflate-on-oom": "on", "free-page-reporting": "on"}
    words += ["-device", _device(plan, "virtio-balloon", 2, **balloon)]
    words += ["-device", _device(plan, "virtio-serial", 3, id="serial")]
    if plan.has_agent:
        words += _agent_port("agent", handed, AGENT_PORT, WEFT_AGENT_ID)
    if has_qemu_port(plan):
        words += _agent_port("qga", handed, QEMU_AGENT_PORT, QEMU_AGENT_ID)
    if any(disk.cdrom for disk in plan.disks):
        words += ["-device", _device(plan, "virtio-scsi", _SCSI, id="scsi")]
    return words


def has_qemu_port(plan: GuestPlan) -> bool:
    """Whether there is a port for qemu-guest-agent: also for an image that says nothing of its agents."""
    return plan.qemu_agent or not plan.has_agent


def _agent_port(name: str, handed: Mapping[str, int], port: str, id_: str) -> list[str]:
    return _socket(name, handed, "-device", f"virtserialport,bus=serial.0,chardev={name},name={port},id={id_}")


def _disk(plan: GuestPlan, index: int, disk: GuestDisk, handed: Mapping[str, int]) -> list[str]:
    own, base = handed[disk_name(disk)], handed.get(base_name(disk))
    words = [*_add(own), *(_add(base) if base is not None else [])]
    node = describe_disk(disk, fdset(own), fdset(base) if base is not None else None)
    place = 0 if disk.cdrom else index + 1  # whoever puts something into the drive wants to boot it
    more = {"bootindex": str(place)} if isinstance(plan.boot, BootDisk) else {}
    if disk.cdrom:
        drive = {"drive": disk_node(disk), "serial": disk.serial, "id": f"cd-{disk.serial}", **more}
        device = ",".join(["scsi-cd,bus=scsi.0", *(f"{key}={value}" for key, value in drive.items())])
        return [*words, "-blockdev", _json(node), "-device", device]
    device = _device(
        plan,
        "virtio-blk",
        _FIRST_DISK + index,
        drive=disk_node(disk),
        serial=disk.serial,
        id=f"blk-{disk.serial}",
        **more,
    )
    return [*words, "-blockdev", _json(node), "-device", device]


def _nic(plan: GuestPlan, index: int, nic: GuestNic, handed: Mapping[str, int]) -> list[str]:
    more = {"romfile": ""} if plan.machine == "q35" else {}
    device = _device(
        plan, "virtio-net", _FIRST_NIC + index, netdev=f"net{index}", mac=nic.mac, host_mtu=str(nic.mtu),
        id=f"nic{index}", **more,
    )  # fmt: skip
    return ["-netdev", f"tap,id=net{index},fd={handed[nic_name(nic)]}", "-device", device]


def _device(plan: GuestPlan, name: str, place: int, **properties: str) -> str:
    if plan.machine == "microvm":
        # The kernel finds the highest bus first, and names disks and NICs in the order it finds them.
        kind, bus = f"{name}-device", f"bus=virtio-mmio-bus.{_LAST_MMIO_BUS - place}"
    else:
        kind, bus = f"{name}-pci", f"bus=pcie.0,addr={place:#x}"
    return ",".join([kind, bus, *(f"{key}={value}" for key, value in properties.items())])


def _hotplug_ports() -> list[str]:
    words = []
    for port in range(HOTPLUG_PORTS):
        place = f"addr={_FIRST_PORT:#x}.{port}" + (",multifunction=on" if port == 0 else "")
        words += ["-device", f"pcie-root-port,id=port{port},chassis={port},bus=pcie.0,{place}"]
    return words


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
