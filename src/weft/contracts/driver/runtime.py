"""The runtime driver contract: few verbs that start, watch and end guests, plus small optional protocols.

A driver may be killed at any moment and made anew: all it knows of a guest stands in ``Host.run_dir``/``state_dir`` and
in the world. Every verb may be repeated. A driver ends only guests that it is told to end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol, TypeVar, runtime_checkable

import msgspec

PlanT_contra = TypeVar("PlanT_contra", contravariant=True)  # of a VM a GuestPlan, of a container a ContainerPlan

GuestState = Literal["absent", "starting", "running", "paused", "suspended", "stopped", "failed"]


class BootKernel(msgspec.Struct, frozen=True, tag="kernel"):
    """Boot this kernel directly; paths on this node."""

    kernel: str
    initrd: str
    cmdline: str


class BootDisk(msgspec.Struct, frozen=True, tag="disk"):
    """Boot from the first disk through firmware."""

    firmware: Literal["bios", "uefi"] = "bios"


class GuestDisk(msgspec.Struct, frozen=True):
    """A disk as the guest sees it; ``serial`` (≤ 20 characters) is how the guest can name it. ``base`` is the image file
    it is a clone of: what the disk's own header says of it is never believed, since the guest's machine can write it."""

    path: str
    format: Literal["qcow2", "raw"]
    serial: str
    read_only: bool = False
    size_bytes: int = 0  # what the guest is to see of it; 0: what there is
    base: str | None = None
    base_format: Literal["qcow2", "raw"] = "qcow2"
    cdrom: bool = False


class GuestNic(msgspec.Struct, frozen=True):
    """A NIC on tap ``ifname`` that the network driver has made."""

    ifname: str
    mac: str
    mtu: int


class GuestPlan(msgspec.Struct, frozen=True):
    """Everything a runtime needs to start one guest; ``id`` is the allocation's 10-character short id.

    ``cpu`` is cores (may be a fraction: a limit), ``vcpus`` what the guest sees. ``has_agent`` says the image ships a
    weft guest agent, ``qemu_agent`` a qemu-guest-agent, so readiness and exec can be had. ``devices`` are PCI addresses of the
    host's devices that become the guest's. ``cpu_model`` is one of the probe's; "" is all there is. A machine that doesn't
    ``reboots`` ends where it would start over, as after a panic of its kernel. ``has_process``: it is there for one process,
    and its agent tells how that is; no other guest is listened to about one.
    """

    id: str
    uid: str
    name: str
    incarnation: int
    machine: Literal["q35", "microvm"]
    cpu: float
    vcpus: int
    memory_bytes: int
    boot: BootKernel | BootDisk
    disks: list[GuestDisk]
    nics: list[GuestNic]
    has_agent: bool = True
    qemu_agent: bool = False
    hostname: str = ""
    screen: bool = False
    devices: list[str] = []
    cpu_model: str = ""
    reboots: bool = True
    has_process: bool = False


class GuestShape(msgspec.Struct, frozen=True):
    """What a machine has, and the most it can get while it runs; ``disks``: serial → bytes, ``nics``: their MACs."""

    cpu: float
    memory_bytes: int
    disks: dict[str, int]
    nics: list[str]
    most_cpu: float
    most_memory_bytes: int
    has_slots: bool = False  # for disks and NICs that come and go
    free_slots: int = 0


class ProcessFacts(msgspec.Struct, frozen=True):
    """How the one process is that a machine is there for, as the machine says: how often it has ended by itself since the boot,
    and its last exit code then (128 + its signal)."""

    runs: bool
    ends: int = 0
    code: int | None = None


class GuestFacts(msgspec.Struct, frozen=True):
    """What is true of one guest now. ``boot_id`` is the guest kernel's own, when its agent has said it."""

    id: str
    uid: str
    name: str
    incarnation: int
    state: GuestState
    ready: bool | None = None  # True: the agent answered; None: has no agent, can't know
    boot_id: str | None = None
    pid: int | None = None
    started_at: float | None = None  # unix seconds by this node's clock; for display only
    reason: str | None = None  # why failed or stopped: "guestPoweredOff", "killed", …
    message: str | None = None
    accelerator: str | None = None
    shape: GuestShape | None = None  # of a machine that runs; None: can't be told
    exit_code: int | None = (
        None  # of a process that has ended: a container's, or the one that its machine was there for
    )
    process: ProcessFacts | None = None  # of a machine that runs; None: it isn't there for one, or hasn't said yet


class RuntimeProbe(msgspec.Struct, frozen=True):
    """What this driver can do here. ``problems`` are sentences with a remedy; not ``usable`` means no guest starts. ``kept``
    are the host's GPUs that can't become a guest's, by PCI address: why, and what to do about it. One that can cut GPUs up
    has the capability ``gpu-shares``. ``cpu_models`` are what CPUs guests can have, best first; the first is all there is,
    and two of the same name are the same CPU. Of ``machines``, TYPE@VERSION is one that can be built as that version did.
    ``kinds`` of workload are what it runs; of those that can be isolated in more than one way, ``isolations`` are its ways.
    ``checkpoint``: ``yes`` if it could save containers as they run and take them up elsewhere, else why not; empty: it has none
    that could be."""

    driver: str
    usable: bool
    version: str
    accelerator: str
    machines: list[str]
    capabilities: list[str]
    problems: list[str]
    kept: dict[str, str] = {}
    cpu_models: list[str] = []
    kinds: tuple[str, ...] = ("vm",)
    isolations: tuple[str, ...] = ()
    checkpoint: str = ""


class RuntimeDriver(Protocol[PlanT_contra]):
    """A guest is whatever it runs: a machine by a GuestPlan, a container by a ContainerPlan."""

    name: str

    async def probe(self) -> RuntimeProbe: ...

    async def start(self, plan: PlanT_contra) -> GuestFacts:
        """Start (or, if it was suspended, resume) the guest; already running is fine. Returns once the machine runs,
        which may be before the guest is ready. Leaves nothing behind when it fails. Raises DriverFailed."""

    async def stop(self, guest_id: str, *, grace_seconds: float) -> None:
        """Ask the guest to shut down, then force it after ``grace_seconds`` (0: at once). Not running is fine."""

    async def inspect(self, guest_id: str) -> GuestFacts:
        """Facts now; state ``absent`` if the driver knows no such guest."""

    async def recover(self) -> list[GuestFacts]:
        """Find every guest of this node again after a restart of the agent, adopt the live ones, and tell all."""

    async def remove(self, guest_id: str) -> None:
        """Forget a guest that does not run: its run files and saved memory. Disks are not the runtime's."""

    async def changed(self) -> None:
        """Return when any guest's facts may have changed (ready, ended, …). Spurious returns are fine."""

    async def close(self) -> None:
        """Let go of connections; guests go on."""


@runtime_checkable
class TakesNamespace(Protocol):
    """A driver of containers in machines of their own that finds their NICs in a network namespace (``ContainerPlan.netns``), as
    those on the node's kernel have them, and hands them to the machine itself."""

    takes_namespace: Literal[True]


@runtime_checkable
class CanSuspend(Protocol):
    async def suspend(self, guest_id: str) -> None:
        """Save memory and devices durably, then end the machine. Killed half-way: the guest either still runs or is
        fully suspended, never neither."""


class Carries(Protocol):
    """A suspended guest goes to another node as one file, which holds all of it but its volumes and its image."""

    async def pack(self, guest_id: str) -> str:
        """Write that file, and give back its path. Raises IllegalTransition for a guest that isn't suspended, DriverFailed."""

    async def expect(self, guest_id: str) -> str:
        """The path that the file of one that comes is to be written to."""

    async def unpack(self, guest_id: str, uid: str, incarnation: int) -> None:
        """What has come there is this guest, suspended here. Repeated is fine. Raises DriverFailed."""


@runtime_checkable
class CanCarry(CanSuspend, Protocol):
    carrying: Carries


@runtime_checkable
class CanAdjust(Protocol[PlanT_contra]):
    async def adjust(self, plan: PlanT_contra) -> GuestFacts:
        """Give a running guest the CPUs, memory, disks and NICs of ``plan``, as far as it is short of them or has too many;
        what it has already stays as it is. Killed half-way: the next one goes on. Raises InvalidInput (``restartNeeded``)
        for what can't be had while it runs, DriverFailed (``guestHolds``) when the guest doesn't let something go."""


class ExecRequest(msgspec.Struct, frozen=True):
    argv: list[str]
    env: dict[str, str] = {}
    cwd: str = ""
    tty: bool = False


class ExecChunk(msgspec.Struct, frozen=True):
    """A piece of output (``stdout``/``stderr``), or the end (``exit``: ``code``, or ``signal`` if killed by one). Of a session
    that is kept also ``taken``: how much of its stdin the command has taken in all."""

    channel: Literal["stdout", "stderr", "exit", "taken"]
    data: bytes = b""
    code: int | None = None
    signal: int | None = None
    taken: int = 0


class ExecSession(Protocol):
    """One command in a guest. Output is pulled (so a slow reader slows the command, not its neighbours)."""

    async def write(self, data: bytes) -> None:
        """Send stdin; waits while the guest's window is full."""

    async def close_stdin(self) -> None: ...

    def output(self) -> AsyncIterator[ExecChunk]:
        """Chunks in order per channel; ends after the ``exit`` chunk."""

    async def close(self) -> None:
        """Hang up: the command gets SIGHUP if it still runs."""


@runtime_checkable
class CanResize(Protocol):
    """An ExecSession with a terminal whose size may change."""

    async def resize(self, rows: int, columns: int) -> None: ...


@runtime_checkable
class CanKill(Protocol):
    """An ExecSession whose command can be made to end."""

    async def kill(self) -> None:
        """SIGKILL, if it still runs; returns when it doesn't."""


DETACHED, SESSION_LOST = "sessionDetached", "sessionLost"  # reasons of Unavailable: to be gone on with, or not any more


class SessionMark(msgspec.Struct, frozen=True):
    """How far someone has come with an exec session that outlives the connection to its guest. ``key``: 32 hexadecimal digits
    that name it; ``run``: of the guest's agent that has it, empty for one that is to begin; bytes of output that have arrived."""

    key: str
    run: str = ""
    stdout: int = 0
    stderr: int = 0


class SessionStanding(msgspec.Struct, frozen=True):
    """How far the guest has come with it. ``run``: as in the mark, empty for a guest that keeps no sessions; bytes of stdin that
    are there, and that the command has taken; whether stdin's end is there."""

    run: str = ""
    received: int = 0
    taken: int = 0
    ended: bool = False


@runtime_checkable
class KeptSession(Protocol):
    """An ExecSession that the guest keeps while nobody is connected to it. Its output raises Unavailable (``sessionDetached``)
    when the connection is lost and the session isn't."""

    standing: SessionStanding

    def acknowledge(self, stdout: int, stderr: int) -> None:
        """So many bytes have arrived since its beginning where they are wanted: the guest need not keep them."""

    async def let_go(self) -> None:
        """Leave it to the next caller; the guest ends it if none comes."""


@runtime_checkable
class CanExec(Protocol):
    async def exec(self, guest_id: str, request: ExecRequest, mark: SessionMark | None = None) -> ExecSession:
        """Start a command in a ready guest; with ``mark``, one that is kept if the guest can (a KeptSession), or go on with it.
        Raises Unavailable while the guest's agent doesn't answer, and (``sessionLost``) when the guest has it no more."""


class PrintedBy(msgspec.Struct, frozen=True, array_like=True):
    """By ``at`` (seconds since 1970) a guest had printed so many bytes since its first boot."""

    printed: int
    at: float


class Printed(msgspec.Struct, frozen=True):
    """What a guest printed on its console; ``start``: how many bytes it had printed before, on whichever node. ``times``: when, as
    far as that is known."""

    start: int
    data: bytes = b""
    times: tuple[PrintedBy, ...] = ()


@runtime_checkable
class HasConsole(Protocol):
    def console_log(self, guest_id: str) -> str:
        """Path of the file that keeps what the guest printed."""

    def console_socket(self, guest_id: str) -> str:
        """Path of the unix socket that is the guest's serial line; it serves one client at a time."""


class PrintedBefore(Protocol):
    """What guests printed before what their console logs have: on other nodes, or too long ago."""

    def start(self, guest_id: str) -> int:
        """How many bytes it printed before those in its log. Changes after the log, where both do."""

    def times(self, guest_id: str) -> list[PrintedBy]:
        """When it printed what it did, oldest first, to within some seconds; empty where nobody has looked."""

    def add(self, guest_id: str, printed: Printed) -> None:
        """It printed that on another node: what the log has of it is passed over. Only while the guest stands still here. Raises
        OSError."""


@runtime_checkable
class CountsPrinted(HasConsole, Protocol):
    """Whose console logs go with their guests."""

    printed: PrintedBefore


@runtime_checkable
class HasScreen(Protocol):
    async def screen_socket(self, guest_id: str) -> str:
        """Path of the unix socket where the guest's screen speaks RFB (VNC). Raises Unavailable for one without."""


class GuestStats(msgspec.Struct, frozen=True):
    """Counters since the guest's machine began to run; ``resident_bytes`` is what it has in the node's RAM now."""

    cpu_seconds: float
    resident_bytes: int
    read_bytes: int
    written_bytes: int


@runtime_checkable
class HasStats(Protocol):
    async def stats(self, guest_id: str, *, disks: bool = True) -> GuestStats:
        """``disks`` False leaves out what was read and written, which takes asking the machine. Raises NotFound, Unavailable
        for a guest that doesn't run."""
