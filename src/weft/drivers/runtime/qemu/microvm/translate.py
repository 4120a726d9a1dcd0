"""Translate a container's plan into its machine's, and into the configuration that the machine reads. Pure."""

from __future__ import annotations

import math

from msgspec.structs import replace

from weft.contracts.driver.container import ContainerMount, ContainerPlan
from weft.contracts.driver.host import Capacity
from weft.contracts.driver.runtime import BootKernel, ExecRequest, GuestDisk, GuestNic, GuestPlan
from weft.drivers.container.end import read_signal
from weft.drivers.container.name_files import plan_name_files
from weft.drivers.runtime.qemu.microvm.record import MicrovmPaths
from weft.drivers.runtime.qemu.translate import MOST_DISKS
from weft.objects.errors import InvalidInput

LEAST_MEMORY_BYTES = 96 << 20  # of which 27 MB are free then; with 80 MiB 11 MB are, with 64 its kernel panics
MOST_VOLUMES = MOST_DISKS["microvm"] - 2
MOST_PROCESSES = 4096
CMDLINE = "quiet loglevel=3 reboot=t panic=-1 random.trust_cpu=on"
ENTER, KILL, MARK = "/bin/enter", "/bin/kill-command", "_ENTERED_AS"
_MIB = 1 << 20
# In the order of their numbers: linux/capability.h.
CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)


def check_plan(plan: ContainerPlan) -> None:
    """Raises InvalidInput for what a machine of its own can't have."""
    what = f"container/{plan.name}"
    if not plan.process.argv or not plan.process.argv[0]:
        raise InvalidInput(f"{what}: its image names no command to run", field="command")
    if plan.memory_bytes < LEAST_MEMORY_BYTES:
        raise InvalidInput(
            f"{what}: {plan.memory_bytes >> 20} MiB of memory is too little for a microVM", field="memory",
            hint=f"give it at least {LEAST_MEMORY_BYTES >> 20} MiB: its kernel needs some of that",
        )  # fmt: skip
    if any(mount.source and not mount.file_system for mount in plan.mounts):
        raise InvalidInput(f"{what}: a microVM can't mount folders of the node", reason="notServed", field="mounts")
    if sum(bool(mount.source) for mount in plan.mounts) > MOST_VOLUMES:
        raise InvalidInput(
            f"{what}: a microVM has at most {MOST_VOLUMES} volumes", reason="notServed", field="mounts",
            hint="mount fewer, or use --isolation container",
        )  # fmt: skip
    for asked, name in ((plan.netns, "netns"), (plan.devices, "devices"), (plan.terminal, "terminal")):
        if asked:
            raise InvalidInput(f"{what}: {name} is not supported in a microVM", reason="notServed", field=name)
    words = [*plan.process.argv, *plan.process.env, plan.process.cwd, *(mount.target for mount in plan.mounts)]
    if any("\0" in word for word in words):
        raise InvalidInput(f"{what}: one of its words contains a NUL", field="command")


def plan_machine(
    plan: ContainerPlan, paths: MicrovmPaths, base: str, size_bytes: int, kernel: str, initrd: str, capacity: Capacity
) -> GuestPlan:
    """The machine; ``base`` is the file with its image, ``size_bytes`` what its root can grow to."""
    cpu = plan.cpu or capacity.cpu
    return GuestPlan(
        id=plan.id,
        uid=plan.uid,
        name=plan.name,
        incarnation=plan.incarnation,
        machine="microvm",
        cpu=cpu,
        vcpus=max(1, math.ceil(cpu)),
        memory_bytes=plan.memory_bytes // _MIB * _MIB,
        boot=BootKernel(kernel, initrd, CMDLINE),
        disks=[
            GuestDisk(str(paths.root), "qcow2", "root", size_bytes=size_bytes, base=base, base_format="raw"),
            GuestDisk(str(paths.exchange_disk), "raw", "exchange"),
            *(GuestDisk(mount.source, "raw", serial) for serial, mount in list_volumes(plan)),
        ],
        nics=[GuestNic(nic.ifname, nic.mac, nic.mtu) for nic in plan.nics],
        hostname=plan.hostname or plan.name,
        reboots=False,  # what it runs is run once; a kernel that panics before its init would do so for ever
    )


def describe_run(plan: ContainerPlan, run: str) -> list[tuple[str, str]]:
    """The records that the machine gets, as ``images/microvm/init.c`` reads them."""
    process, user = plan.process, plan.process.user
    records = [("run", run), ("hostname", plan.hostname or plan.name), ("cwd", process.cwd or "/")]
    records += [("uid", str(user.uid)), ("gid", str(user.gid)), *(("group", str(group)) for group in user.groups)]
    records += [("stop", str(read_signal(process.stop_signal))), ("pids", str(plan.pids or MOST_PROCESSES))]
    records += [("rights", f"{read_rights(plan.capabilities):x}")]
    records += [("readonly", "1")] if plan.read_only_root else []
    for nic in plan.nics:
        records.append(("nic", f"{nic.mac} {nic.address} {nic.prefix} {nic.gateway or '-'} {nic.mtu}"))
    records += [("file", f"/etc/{name} {content}") for name, content in plan_name_files(plan).items()]
    targets = {mount.target.rstrip("/") for mount in plan.mounts}
    if plan.read_only_root:
        scratch = (("/tmp", "1777"), ("/run", "755"))
        records += [("tmpfs", f"{64 << 20} {mode} rw {path}") for path, mode in scratch if path not in targets]
    serials = {mount.target: serial for serial, mount in list_volumes(plan)}
    for mount in plan.mounts:
        way = f"{'ro' if mount.read_only else 'rw'} {mount.target}"
        serial = serials.get(mount.target)
        records.append(("volume", f"{serial} {way}") if serial else ("tmpfs", f"{mount.size_bytes} 1777 {way}"))
    records += [("env", word) for word in process.env]
    return [*records, *(("arg", word) for word in process.argv)]


def list_volumes(plan: ContainerPlan) -> list[tuple[str, ContainerMount]]:
    """Its mounts that are disks, and what each is called in the machine. One that is only read may be written by the machine
    all the same: an ext4's journal must be."""
    return [(f"volume{number}", mount) for number, mount in enumerate(m for m in plan.mounts if m.source)]


def translate_exec(plan: ContainerPlan, request: ExecRequest) -> ExecRequest:
    """The command as the machine's agent is to run it: inside, as the container's user, with its environment."""
    if not request.argv:
        raise InvalidInput("the container has no command to run", field="argv")
    env = dict(word.split("=", 1) for word in plan.process.env if "=" in word)
    if request.tty:
        env.setdefault("TERM", "xterm")
    cwd = request.cwd or plan.process.cwd or "/"
    return replace(request, argv=[ENTER, cwd, *request.argv], env=env | request.env, cwd="/")


def read_rights(capabilities: list[str]) -> int:
    """Read capabilities as a mask of bits. Raises InvalidInput for a name that the kernel doesn't know."""
    mask = 0
    for name in capabilities:
        word = name.upper().removeprefix("CAP_")
        if word not in CAPABILITIES:
            raise InvalidInput(f"{name[:60]!r} is not a capability", field="capabilities")
        mask |= 1 << CAPABILITIES.index(word)
    return mask
