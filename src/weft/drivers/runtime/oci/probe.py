"""The runtime that runs containers on this node, found by running one: a program of a few bytes, with all that a container has.

crun is tried before runc, since it starts in half the time; a node may name one. Starts short-lived containers; keeps what it
found in ``probe-oci.json`` in the run folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import resource
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.container import ContainerPlan, ContainerProcess
from weft.contracts.driver.runtime import RuntimeProbe
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.container.name_files import plan_name_files
from weft.drivers.linux.namespace_thread import leave_mounts, run_in_own_thread
from weft.drivers.linux.processes import host_boot_id
from weft.drivers.linux.seccomp import read_profile
from weft.drivers.runtime.oci.checkpoint.probe import CAPABILITY, CRIU, find_checkpoint_problem
from weft.drivers.runtime.oci.conmon import shim
from weft.drivers.runtime.oci.mount_namespace import read_hidden
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.rootfs.overlay import Root, make_folders, mount_root
from weft.drivers.runtime.oci.runtime import PROGRAMS, Runtime, find_programs, read_error
from weft.drivers.runtime.oci.translate import OciHostFacts, Users, translate_container
from weft.drivers.runtime.oci.user_namespace import choose_first_user, find_ranges, open_mapping
from weft.objects.errors import DriverFailed, WeftError

DRIVER = "oci"
PROBE = "probe-"  # and the number of the process that tries
WORDS = 3
TRIAL_SECONDS = 30
EXIT_CODE = 42
_CODE = {
    "x86_64": (62, bytes([0xBF, EXIT_CODE, 0, 0, 0, 0xB8, 60, 0, 0, 0, 0x0F, 0x05])),  # exit(42)
    "aarch64": (183, struct.pack("<III", 0xD2800000 | EXIT_CODE << 5, 0xD2800BA8, 0xD4000001)),
}


class Findings(msgspec.Struct, frozen=True):
    """``program`` is the runtime to use; empty where none works. In the same ``circumstances`` nothing is tried again."""

    circumstances: str
    probe: RuntimeProbe
    program: str
    users: tuple[int, int]


class FoundRuntime(msgspec.Struct, frozen=True):
    probe: RuntimeProbe
    runtime: Runtime | None
    facts: OciHostFacts | None


async def probe_oci(
    run_dir: Path, groups: ControlGroups, clock: Clock, wanted: str | None, *, by_conmon: bool = True
) -> FoundRuntime:
    """The probe for the scheduler, and the facts that containers are started with; None where none can be started.
    ``by_conmon``: conmon holds them."""
    programs = find_programs(wanted)
    missing = [f"{name} is not installed: apt-get install {name}" for name in [wanted] if name and not programs]
    if not programs:
        return report_unusable(missing or [f"no container runtime is installed: apt-get install {PROGRAMS[0]}"])
    if by_conmon and shutil.which(shim.PROGRAM) is None:
        return report_unusable([f"{shim.PROGRAM} is not installed: {shim.INSTALL_HINT}"])
    run_dir.mkdir(parents=True, exist_ok=True)
    if (closed := _find_closed(run_dir)) is not None:
        return report_unusable(
            [f"users of containers can't enter {closed}: set --run-dir of the agent to a folder outside it"]
        )
    try:
        facts = read_node_facts(groups)
    except DriverFailed as problem:
        return report_unusable([problem.message])
    hidden = read_hidden()
    asked = [*programs, *([criu] if (criu := shutil.which(CRIU)) is not None else [])]
    now = " ".join(
        [host_boot_id(), groups.parent, str(WORDS), *(f"{path} {os.stat(path).st_mtime_ns}" for path in asked)]
    )
    kept = run_dir / "probe-oci.json"
    with contextlib.suppress(OSError, msgspec.DecodeError):
        findings = msgspec.json.decode(kept.read_bytes(), type=Findings)
        if findings.circumstances == now and findings.program:
            runtime = Runtime(findings.program, run_dir / "runtime", hidden)
            return FoundRuntime(findings.probe, runtime, msgspec.structs.replace(facts, users=findings.users))
    found = await _try_all(programs, run_dir, groups, facts, hidden, clock)
    if found.runtime is not None and found.facts is not None:
        pending = kept.with_suffix(f".{os.getpid()}")
        pending.write_bytes(msgspec.json.encode(Findings(now, found.probe, found.runtime.program, found.facts.users)))
        pending.replace(kept)
    return found


def make_program(machine: str) -> bytes:
    """Pure. The smallest ELF program that ends with a code of its own, for this machine. Raises DriverFailed."""
    if machine not in _CODE:
        raise DriverFailed(f"containers on {machine} are not supported", details={"step": "probe"})
    number, code = _CODE[machine]
    base, size = 0x400000, 64 + 56 + len(_CODE[machine][1])
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 2, number, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


def make_trial(name: str, folder: Path, machine: str, *, user_namespace: bool = False) -> ContainerPlan:
    """A container that ends with EXIT_CODE at once; its image lies in ``folder``. Raises DriverFailed, OSError."""
    layer = folder / "layer"
    layer.mkdir(parents=True, exist_ok=True)
    program = layer / "probe"
    program.write_bytes(make_program(machine))
    program.chmod(0o755)
    return ContainerPlan(
        id=name,
        uid=name,
        name=name,
        incarnation=1,
        layers=[str(layer)],
        process=ContainerProcess(["/probe"]),
        cpu=1.0,
        memory_bytes=64 << 20,
        user_namespace=user_namespace,
    )


async def _try_all(
    programs: list[str], run_dir: Path, groups: ControlGroups, facts: OciHostFacts, hidden: list[str], clock: Clock
) -> FoundRuntime:
    problems: list[str] = []
    for program in programs:
        runtime = Runtime(program, run_dir / "runtime", hidden)
        for users in dict.fromkeys([facts.users, (0, 0)]):
            tried = msgspec.structs.replace(facts, users=users)
            problem = await _try(runtime, run_dir, groups, tried, clock)
            if problem is None:
                version = await _read_version(program)
                if not users[1]:
                    problems.append(
                        "containers have no user namespace of their own on this node: their root user is the node's"
                    )
                lack = await find_checkpoint_problem(runtime)
                probe = _usable(runtime.name, version, problems, lack, shifted=bool(users[1]))
                return FoundRuntime(probe, runtime, tried)
            how = "" if users[1] else ", nor with the node's own users"
            problems.append(f"{runtime.name} can't run a container on this node{how}: {problem}")
    return report_unusable(problems)


async def _try(runtime: Runtime, run_dir: Path, groups: ControlGroups, facts: OciHostFacts, clock: Clock) -> str | None:
    """Run one with ``runtime``; returns what failed, or None."""
    name = f"{PROBE}{os.getpid()}"
    paths = ContainerPaths(run=run_dir / name, state=run_dir / name / "state")
    try:
        first_user = choose_first_user(name, facts.users, ()) if facts.users[1] else None
        make_folders(paths)
        plan = make_trial(name, paths.run, facts.machine, user_namespace=first_user is not None)
        for file, text in plan_name_files(plan).items():
            (paths.files / file).write_text(text)
        users = Users(first_user) if first_user is not None else None
        config = translate_container(plan, paths, facts, cgroup=groups.path(name), users=users, devices=[])
        paths.config.write_bytes(msgspec.json.encode(config))
        return await run_in_own_thread(lambda: _run(runtime, plan, paths, first_user))
    except WeftError as error:
        return error.message
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    finally:
        await runtime.delete(name)
        await groups.clear(name, clock)
        groups.remove_parents()
        await asyncio.to_thread(shutil.rmtree, paths.run, True)


def _run(runtime: Runtime, plan: ContainerPlan, paths: ContainerPaths, first_user: int | None) -> str | None:
    mapping = open_mapping(first_user) if first_user is not None else None
    try:
        leave_mounts(runtime.hidden)
        mount_root(Root(plan, paths, first_user, mapping))
        words = runtime.words("run", "--bundle", str(paths.run), plan.id)
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, timeout=TRIAL_SECONDS, check=False
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"it took longer than {TRIAL_SECONDS} s"
    finally:
        if mapping is not None:
            os.close(mapping)
    return None if done.returncode == EXIT_CODE else read_error(done.stderr.decode(errors="replace"))


def read_node_facts(groups: ControlGroups) -> OciHostFacts:
    """The facts that containers are started with on this node. Raises DriverFailed."""
    return OciHostFacts(
        machine=platform.machine(),
        profile=read_profile(),
        swap_limits=groups.limits_swap(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        cgroup_version=groups.version,
        users=find_ranges(Path("/proc/self/uid_map").read_text()),
    )


def read_machine_facts(groups: ControlGroups) -> OciHostFacts:
    """Read the facts as for containers on the node's own kernel; their users, and how their memory is limited, are the machine's.
    Raises DriverFailed."""
    return msgspec.structs.replace(read_node_facts(groups), users=(0, 0), swap_limits=False)


def _usable(name: str, version: str, problems: list[str], lack: str, *, shifted: bool) -> RuntimeProbe:
    return RuntimeProbe(
        driver=DRIVER,
        usable=True,
        version=f"{name} {version}",
        accelerator="",
        machines=[],
        capabilities=[
            "exec",
            "stats",
            "log",
            *(["user-namespace"] if shifted else []),
            *([CAPABILITY] if not lack else []),
        ],
        problems=problems,
        kinds=("container",),
        isolations=("process", "container"),
        checkpoint=lack or "yes",
    )


def report_unusable(problems: list[str], driver: str = DRIVER) -> FoundRuntime:
    return FoundRuntime(RuntimeProbe(driver, False, "", "", [], [], problems, kinds=("container",)), None, None)


async def _read_version(program: str) -> str:
    process = await asyncio.create_subprocess_exec(program, "--version", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    words = output.decode(errors="replace").split()
    return words[2] if len(words) > 2 else ""


def _find_closed(folder: Path) -> Path | None:
    """The folder at or above this one that only its owner may enter, if there is one."""
    return next((path for path in (folder, *folder.parents) if not path.stat().st_mode & stat.S_IXOTH), None)
