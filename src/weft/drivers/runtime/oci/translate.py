"""A plan as an OCI runtime configuration (config.json). Pure.

Source: the OCI runtime specification 1.0, config-linux.md. What a runtime does by itself (the common device nodes, their
control) isn't repeated here.
"""

from __future__ import annotations

import os
import stat as stats
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.driver.container import ContainerMount, ContainerPlan, ContainerProcess
from weft.contracts.driver.runtime import ExecRequest
from weft.drivers.container.name_files import HOSTNAME, HOSTS, RESOLV_CONF
from weft.drivers.linux.seccomp import Profile, translate_seccomp
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.user_namespace import USERS_EACH
from weft.objects.errors import InvalidInput

PERIOD_MICROSECONDS = 100_000
MOST_PROCESSES = 4096
OPEN_FILES, MOST_OPEN_FILES = 1024, 1 << 20
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Files below /proc and /sys that show or change the host.
MASKED_PATHS = [
    *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug"),
    *("/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/proc/interrupts", "/proc/kallsyms"),
    *("/sys/firmware", "/sys/devices/virtual/powercap", "/sys/kernel/debug", "/sys/kernel/security", "/sys/module"),
]
TIGHT = ["nosuid", "noexec", "nodev"]
NO_DEVICES: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
READ_ONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


class OciHostFacts(msgspec.Struct, frozen=True):
    """Facts about this node. ``machine`` as uname has it; ``swap_limits``: the kernel can limit memory and swap together;
    ``open_files``: the hard limit that nobody here can pass; ``cgroup_version``: 1 or 2."""

    machine: str
    profile: Profile
    swap_limits: bool
    open_files: int
    cgroup_version: int
    users: tuple[int, int] = (0, 0)


class Traits(msgspec.Struct, frozen=True):
    """Differences between containers and functions' instances: what a stranger's code may have, and which program holds and limits
    it. The defaults are a container's."""

    most_open_files: int = MOST_OPEN_FILES
    dumps_core: bool = True
    oom_score: int = 0  # 1000: the first to go when the node lacks memory
    shared_memory_bytes: int = 64 << 20
    device_bytes: int = 64 << 20  # of /dev
    whole_system: bool = (
        True  # /sys, /run, its control group, message queues, and files with its name and its name servers
    )
    own_network: bool = True  # False: that of the thread which starts the runtime
    own_limits: bool = True  # False: a control group around the one that is named has them
    mounts_volumes: bool = True  # False: they lie where the plan says
    seccomp: dict[str, Any] | None = None  # made ready; None: by the node's profile and the plan's capabilities


CONTAINER = Traits()
INSTANCE = Traits(
    most_open_files=OPEN_FILES,
    dumps_core=False,
    oom_score=1000,
    shared_memory_bytes=32 << 20,
    device_bytes=64 << 10,
    whole_system=False,
    own_network=False,
    own_limits=False,
    mounts_volumes=False,
)


class Users(msgspec.Struct, frozen=True):
    """A container's users: ``first`` is its root; ``namespace`` is the path of one that they are mapped in, "": a new one."""

    first: int
    namespace: str = ""


class Device(msgspec.Struct, frozen=True):
    path: str
    kind: str  # c or b
    major: int
    minor: int


def translate_container(
    plan: ContainerPlan,
    paths: ContainerPaths,
    facts: OciHostFacts,
    *,
    cgroup: str,
    users: Users | None,
    devices: list[Device],
    traits: Traits = CONTAINER,
) -> dict[str, Any]:
    """``cgroup``: its path below each controller's mount. ``users`` None: the node's own."""
    linux: dict[str, Any] = {
        "namespaces": _namespaces(plan, users, traits),
        "cgroupsPath": f"/{cgroup.strip('/')}",
        "resources": translate_resources(plan, facts, devices) if traits.own_limits else {"devices": NO_DEVICES},
        "maskedPaths": MASKED_PATHS,
        "readonlyPaths": READ_ONLY_PATHS,
        "seccomp": traits.seccomp or translate_seccomp(facts.profile, facts.machine, plan.capabilities),
        "devices": [_device_node(device) for device in devices],
        "rootfsPropagation": "private",
    }
    if users is not None:
        mapping = [{"containerID": 0, "hostID": users.first, "size": USERS_EACH}]
        linux["uidMappings"] = linux["gidMappings"] = mapping
    return {
        "ociVersion": "1.0.2",
        "process": translate_process(plan, facts, terminal=plan.terminal, traits=traits),
        "root": {"path": str(paths.root), "readonly": plan.read_only_root},
        "hostname": plan.hostname or plan.name,
        "mounts": _mounts(plan, paths, traits, shifted=users is not None and traits.mounts_volumes),
        "linux": linux,
    }


def translate_process(
    plan: ContainerPlan, facts: OciHostFacts, *, terminal: bool = False, traits: Traits = CONTAINER
) -> dict[str, Any]:
    process = plan.process
    caps = plan.capabilities
    held = caps if process.user.uid == 0 else []  # as the kernel has it for a program of another user than root
    limit = min(facts.open_files, traits.most_open_files)
    limits = [{"type": "RLIMIT_NOFILE", "soft": min(OPEN_FILES, limit), "hard": limit}]
    limits += [] if traits.dumps_core else [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    return {
        "terminal": terminal,
        "user": {"uid": process.user.uid, "gid": process.user.gid, "additionalGids": process.user.groups},
        "args": process.argv,
        "env": complete_environment(process, terminal),
        "cwd": process.cwd or "/",
        "capabilities": {
            "bounding": caps,
            "effective": held,
            "permitted": held,
            "inheritable": [],
            "ambient": [],
        },
        "rlimits": limits,
        "noNewPrivileges": True,
        **({"oomScoreAdj": traits.oom_score} if traits.oom_score else {}),
    }


def translate_exec(plan: ContainerPlan, facts: OciHostFacts, request: ExecRequest) -> dict[str, Any]:
    """The process of a command beside the container's own, as the same user."""
    if not request.argv:
        raise InvalidInput("the container has no command to run", field="argv")
    process = translate_process(plan, facts, terminal=request.tty)
    env = dict(word.split("=", 1) for word in process["env"])
    if request.tty:
        env.setdefault("TERM", "xterm")
    env.update(request.env)
    return process | {
        "args": request.argv,
        "env": [f"{name}={value}" for name, value in env.items()],
        "cwd": request.cwd or process["cwd"],
        **({"consoleSize": {"height": request.rows, "width": request.columns}} if request.has_size else {}),
    }


def complete_environment(process: ContainerProcess, terminal: bool) -> list[str]:
    names = {word.split("=", 1)[0] for word in process.env}
    env = [word if "=" in word else f"{word}=" for word in process.env]
    if "PATH" not in names:
        env.insert(0, DEFAULT_PATH)
    if "HOME" not in names:
        env.append(f"HOME={process.user.home}")
    if terminal and "TERM" not in names:
        env.append("TERM=xterm")
    return env


def translate_resources(plan: ContainerPlan, facts: OciHostFacts, devices: list[Device]) -> dict[str, Any]:
    """The same words for both versions of control groups: a runtime translates them for version 2."""
    memory: dict[str, Any] = {"limit": plan.memory_bytes}
    if facts.swap_limits:
        memory["swap"] = plan.memory_bytes  # memory and swap together: none
    rules = list(NO_DEVICES)
    rules.extend(
        {"allow": True, "type": device.kind, "major": device.major, "minor": device.minor, "access": "rw"}
        for device in devices
    )
    return {
        "cpu": translate_cpu(plan.cpu),
        "memory": memory,
        "pids": {"limit": plan.pids or MOST_PROCESSES},
        "devices": rules,
    }


def translate_cpu(cpu: float) -> dict[str, int]:
    """Weight as that of a busy process for each core; 0 cores: no limit, and the weight of one."""
    shares = min(262_144, max(2, round(1024 * (cpu or 1))))
    if not cpu:
        return {"shares": shares}
    return {"shares": shares, "quota": max(1000, int(cpu * PERIOD_MICROSECONDS)), "period": PERIOD_MICROSECONDS}


def inspect_devices(paths: list[str]) -> list[Device]:
    """The device nodes of this host by those paths. Raises InvalidInput for one that is none."""
    found = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise InvalidInput(f"device {path}: {error.strerror}", field="devices") from error
        kind = "c" if stats.S_ISCHR(status.st_mode) else "b" if stats.S_ISBLK(status.st_mode) else ""
        if not kind:
            raise InvalidInput(f"{path} is not a device", field="devices", hint="use a mount for a directory or file")
        found.append(Device(path, kind, os.major(status.st_rdev), os.minor(status.st_rdev)))
    return found


def volume_source(paths: ContainerPaths, number: int, mount: ContainerMount, *, shifted: bool) -> str:
    return str(paths.mounts / f"v{number}") if shifted or mount.file_system else mount.source


def sysfs_source(paths: ContainerPaths) -> Path:
    """A sysfs of the container's network namespace, which a user namespace that doesn't own it can't mount by itself."""
    return paths.mounts / "sys"


def needs_sysfs(plan: ContainerPlan, first_user: int | None) -> bool:
    return bool(plan.netns) and first_user is not None


def _namespaces(plan: ContainerPlan, users: Users | None, traits: Traits) -> list[dict[str, str]]:
    found: list[dict[str, str]] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]
    if traits.own_network:
        found.append({"type": "network", "path": plan.netns} if plan.netns else {"type": "network"})
    if users is not None:
        found.append({"type": "user", "path": users.namespace} if users.namespace else {"type": "user"})
    return found


def _mounts(plan: ContainerPlan, paths: ContainerPaths, traits: Traits, *, shifted: bool) -> list[dict[str, Any]]:
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    found = [
        _mount("/proc", "proc", "proc", TIGHT),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", f"size={traits.device_bytes}"]),
        _mount("/dev/pts", "devpts", "devpts", pts),
        _mount("/dev/shm", "tmpfs", "shm", [*TIGHT, "mode=1777", f"size={traits.shared_memory_bytes}"]),
    ]
    if traits.whole_system:
        found += _system_mounts(plan, paths, shifted=shifted)
    for number, mount in enumerate(plan.mounts):
        access = "ro" if mount.read_only else "rw"
        if not mount.source:
            size = [f"size={mount.size_bytes}"] if mount.size_bytes else []
            found.append(_mount(mount.target, "tmpfs", "tmpfs", ["nosuid", "nodev", "mode=1777", *size, access]))
        else:
            source = volume_source(paths, number, mount, shifted=shifted)
            found.append(_mount(mount.target, "bind", source, ["bind", "private", "nosuid", "nodev", access]))
    return found


def _system_mounts(plan: ContainerPlan, paths: ContainerPaths, *, shifted: bool) -> list[dict[str, Any]]:
    sys: dict[str, Any] = _mount("/sys", "sysfs", "sysfs", [*TIGHT, "ro"])
    if shifted and plan.netns:
        sys = _mount("/sys", "bind", str(sysfs_source(paths)), ["bind", *TIGHT, "ro"])
    found = [
        _mount("/dev/mqueue", "mqueue", "mqueue", TIGHT),
        sys,
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*TIGHT, "relatime", "ro"]),
    ]
    targets = {mount.target.rstrip("/") for mount in plan.mounts}
    if plan.read_only_root:
        for target, mode in (("/tmp", "1777"), ("/run", "755")):
            if target not in targets:
                found.append(_mount(target, "tmpfs", "tmpfs", ["nosuid", "nodev", f"mode={mode}", "size=65536k"]))
    return found + [
        _mount(f"/etc/{name}", "bind", str(paths.files / name), ["bind", *TIGHT, "ro"])
        for name in (HOSTS, HOSTNAME, RESOLV_CONF)
        if f"/etc/{name}" not in targets
    ]


def _mount(target: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": options}


def _device_node(device: Device) -> dict[str, Any]:
    return {"path": device.path, "type": device.kind, "major": device.major, "minor": device.minor, "fileMode": 0o666}
