"""A probe of QEMU on this machine: its version, and whether KVM really works.

/dev/kvm may exist and be useless (nested, or emulated by another hypervisor), so a boot sector is run, first emulated, then
under KVM: one that doesn't end well, or takes several times as long as the emulated one, is no KVM. Starts two short-lived QEMU
processes; keeps what it found in ``probe.json`` in the run folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import os
import re
import shutil
import stat
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.runtime import RuntimeProbe
from weft.drivers.linux.processes import host_boot_id
from weft.drivers.runtime.qemu.cpu_models import OLDEST, Offer, inspect_offer
from weft.drivers.runtime.qemu.process.confinement import OPEN_FILES, choose_user, find_users, plan_confined
from weft.drivers.runtime.qemu.translate import QemuHostFacts
from weft.objects.errors import DriverFailed

PROGRAM = "qemu-system-x86_64"
INSTALL_HINT = "apt-get install -t bookworm-backports qemu-system-x86 qemu-utils seabios"
KVM = Path("/dev/kvm")
UEFI_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
UEFI_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

_DEBUG_EXIT_PORT = 0xF4
_EXIT_VALUE = 42
# mov al, 42; mov dx, 0xf4; out dx, al; hlt. QEMU's isa-debug-exit then ends with 42 * 2 + 1.
_BOOT_SECTOR = bytes([0xB0, _EXIT_VALUE, 0xBA, _DEBUG_EXIT_PORT, 0, 0xEE, 0xF4]).ljust(510, b"\0") + b"\x55\xaa"
_EMULATED_SECONDS = 30.0
WORDS = 3
KVM_PATIENCE = 5  # times what the emulated one took: even a busy host's KVM is faster than that


class Findings(msgspec.Struct, frozen=True):
    """Findings, and their circumstances: in the same ones nothing is probed again."""

    circumstances: str
    words: int  # of which making the probe is: an older one doesn't know all that is asked now
    probe: RuntimeProbe
    facts: QemuHostFacts | None


class QemuFinding:
    """The abilities of this machine's QEMU: found out once, for all drivers that share this."""

    def __init__(self, run_dir: Path, clock: Clock) -> None:
        self._run_dir, self._clock = run_dir, clock
        self._found: tuple[RuntimeProbe, QemuHostFacts | None] | None = None
        self._finding = asyncio.Lock()

    async def find(self) -> tuple[RuntimeProbe, QemuHostFacts | None]:
        """The facts are None where no guest can be started; the probe says why."""
        async with self._finding:
            if self._found is None:
                self._found = await probe_qemu(self._run_dir, self._clock)
            return self._found


async def probe_qemu(run_dir: Path, clock: Clock) -> tuple[RuntimeProbe, QemuHostFacts | None]:
    """The probe for the scheduler, and the facts for ``translate``; None where no guest can be started. Takes a second the
    first time, then it is read from the run folder until QEMU, the kernel's boot or /dev/kvm is another."""
    program = shutil.which(PROGRAM)
    if program is None:
        return _unusable("", f"{PROGRAM} is not installed: {INSTALL_HINT}"), None
    kept = run_dir / "probe.json"
    now = f"{program} {os.stat(program).st_mtime_ns} {host_boot_id()} {KVM.exists()} {UEFI_CODE.exists()}"
    with contextlib.suppress(OSError, msgspec.DecodeError):
        findings = msgspec.json.decode(kept.read_bytes(), type=Findings)
        if (findings.circumstances, findings.words) == (now, WORDS):
            return findings.probe, findings.facts
    probe, facts = await _inspect(program, run_dir, clock)
    pending = kept.with_suffix(f".{os.getpid()}")
    pending.write_bytes(msgspec.json.encode(Findings(now, WORDS, probe, facts)))
    os.replace(pending, kept)
    return probe, facts


async def _inspect(program: str, run_dir: Path, clock: Clock) -> tuple[RuntimeProbe, QemuHostFacts | None]:
    run_dir.mkdir(parents=True, exist_ok=True)
    version = await _version(program)
    text = ".".join(map(str, version))
    if version < OLDEST:
        return _unusable(
            text, f"QEMU {text} can corrupt the memory of migrating guests; QEMU 9 or newer is needed: {INSTALL_HINT}"
        ), None
    try:
        users = find_users(Path("/proc/self/uid_map").read_text())
    except DriverFailed as problem:
        return _unusable(text, f"{problem.message}: {problem.hint}"), None
    if (closed := _find_closed(run_dir)) is not None:
        return _unusable(
            text, f"users of guests can't enter {closed}: set --run-dir of the agent to a folder outside it"
        ), None
    tsc = _TscMeter(clock)
    emulated = await _run_boot_sector(program, "tcg", users, run_dir, clock, _EMULATED_SECONDS)
    if emulated is None:
        return _unusable(text, f"QEMU {text} does not run a boot sector, not even emulated: {INSTALL_HINT}"), None
    accelerator, problems = "tcg", []
    if KVM.exists():
        if await _run_boot_sector(program, "kvm", users, run_dir, clock, KVM_PATIENCE * emulated) is not None:
            accelerator = "kvm"
        else:
            problems.append("KVM is present but doesn't run guests: they are emulated (slower, everything works)")
    else:
        problems.append("KVM is absent: guests are emulated (slower, everything works); a real machine has /dev/kvm")
    facts = QemuHostFacts(
        program=program,
        users=users,
        kvm_group=_kvm_group() if accelerator == "kvm" else None,
        accelerator=accelerator,
        version=version,
        tsc_khz=tsc.khz(),
        uefi_code=str(UEFI_CODE) if UEFI_CODE.exists() else None,
        uefi_vars=str(UEFI_VARS) if UEFI_VARS.exists() else None,
    )
    try:
        offer = await inspect_offer(program, accelerator, version)
    except DriverFailed as problem:
        offer = Offer([], [])
        problems.append(
            f"{problem.message}: guests get all features of this CPU, and migrate live only to identical nodes"
        )
    found = RuntimeProbe(
        driver="qemu",
        usable=True,
        version=text,
        accelerator=accelerator,
        machines=["q35", "microvm", *offer.machines],
        cpu_models=offer.cpu_models,
        capabilities=["suspend", "exec", "console", "stats", *(["uefi"] if facts.uefi_code else [])],
        problems=problems,
        checkpoint="yes",
    )
    return found, facts


def _unusable(version: str, problem: str) -> RuntimeProbe:
    return RuntimeProbe("qemu", False, version, "", [], [], [problem])


async def _version(program: str) -> tuple[int, int, int]:
    process = await asyncio.create_subprocess_exec(program, "--version", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    found = re.search(rb"version (\d+)\.(\d+)\.(\d+)", output)
    return (int(found[1]), int(found[2]), int(found[3])) if found else (0, 0, 0)


def _find_closed(folder: Path) -> Path | None:
    """The folder at or above this one that only its owner may enter, if there is one."""
    return next((path for path in (folder, *folder.parents) if not path.stat().st_mode & stat.S_IXOTH), None)


def _kvm_group() -> int | None:
    """The group that a user must be in to open /dev/kvm; None if anyone may."""
    found = KVM.stat()
    return None if found.st_mode & stat.S_IWOTH else found.st_gid


async def _run_boot_sector(
    program: str, accelerator: str, users: tuple[int, int], run_dir: Path, clock: Clock, limit: float
) -> float | None:
    """Seconds it took, confined as a guest is; None if it did not end as it should within ``limit`` seconds."""
    image = run_dir / f"probe-{os.getpid()}.img"
    image.write_bytes(_BOOT_SECTOR)
    words = ["-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-m", "16", "-accel", accelerator]
    words += ["-drive", f"file={image},format=raw,if=floppy,readonly=on"]
    words += ["-device", f"isa-debug-exit,iobase={_DEBUG_EXIT_PORT:#x},iosize=1"]
    confined = plan_confined(
        [program, *words],
        choose_user("probe", users),
        groups=[],
        kvm_group=_kvm_group() if accelerator == "kvm" else None,
        open_files=OPEN_FILES,
    )
    began = clock.elapsed()
    nowhere = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*confined, stdin=nowhere, stdout=nowhere, stderr=nowhere)
    try:
        async with asyncio.timeout(limit):
            status = await process.wait()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        image.unlink(missing_ok=True)
    return clock.elapsed() - began if status == _EXIT_VALUE * 2 + 1 else None


class _TscMeter:
    """Measures the TSC's frequency between its making and ``khz``. /proc/cpuinfo knows it only where the clock rate is
    fixed, and with a wrong one a guest's clock runs wrong for ever. So: rdtsc, in machine code."""

    _READ_TSC = bytes(
        [0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0xC3]
    )  # rdtsc; shl rdx,32; or rax,rdx; ret

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(self._READ_TSC)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._read = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)
        self._began = self._sample()

    def khz(self) -> int:
        seconds, ticks = self._sample()
        return round((ticks - self._began[1]) / (seconds - self._began[0]) / 1000)

    def _sample(self) -> tuple[float, int]:
        """The tightest of a few: an interruption between the two clocks is measured too."""
        samples = []
        for _ in range(20):
            before = self._clock.elapsed()
            ticks = self._read()
            after = self._clock.elapsed()
            samples.append((after - before, (before + after) / 2, ticks))
        _, seconds, ticks = min(samples)
        return seconds, ticks
