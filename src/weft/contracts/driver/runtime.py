"""The runtime driver contract: few verbs that start, watch and end guests, plus small optional protocols.

A driver may be killed at any moment and made anew: all it knows of a guest stands in ``Host.run_dir``/``state_dir`` and
in the world. Every verb may be repeated. A driver ends only guests that a caller names.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import msgspec

from weft.contracts.driver.identity import Identity
from weft.contracts.driver.volume import RbdImage

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


class DiskLayer(msgspec.Struct, frozen=True):
    """A file under a disk's own one, with what was written before it was frozen; nbd: one that stands for a served disk."""

    path: str
    format: Literal["qcow2", "raw", "nbd"]
    server: str = ""  # nbd: NAME/EXPORT, a Unix socket's name that is in no folder


class GuestDisk(msgspec.Struct, frozen=True):
    """A disk as the guest sees it."""

    path: str
    format: Literal["qcow2", "raw"]
    serial: str  # ≤ 20 characters, by which the guest can name it
    read_only: bool = False
    size_bytes: int = 0  # the size that the guest sees; 0: the file's
    # The image file it is a clone of. The disk's own header is never trusted for that: the guest's machine can write it.
    base: str | None = None
    base_format: Literal["qcow2", "raw"] = "qcow2"
    cdrom: bool = False
    layers: list[DiskLayer] = []  # the bottom first, between the image and its file
    rbd: RbdImage | None = None  # it is one; ``path`` is its name for people
    key: str = ""  # path of the passphrase of an encrypted one, which is in memory only


class GuestNic(msgspec.Struct, frozen=True):
    """A NIC on tap ``ifname`` that the network driver has made."""

    ifname: str
    mac: str
    mtu: int


class GuestPlan(msgspec.Struct, frozen=True):
    """Everything a runtime needs to start one guest."""

    id: str  # the allocation's 10-character short id
    uid: str
    name: str
    incarnation: int
    machine: Literal["q35", "microvm"]
    cpu: float  # cores; a fraction is a limit
    vcpus: int  # that the guest sees
    memory_bytes: int
    boot: BootKernel | BootDisk
    disks: list[GuestDisk]
    nics: list[GuestNic]
    has_agent: bool = True  # its image has weft's guest agent, for readiness and exec
    qemu_agent: bool = False  # its image has a qemu-guest-agent, for the same
    hostname: str = ""
    screen: bool = False
    devices: list[str] = []  # PCI addresses of the host's devices that the guest gets
    cpu_model: str = ""  # one of the probe's; "" is the first of them
    reboots: bool = True  # False: the machine ends where it would start over, as after a kernel panic
    has_process: bool = (
        False  # it exists for one process, and its agent reports on it; other guests' reports are ignored
    )
    # A guest that isn't known here yet begins from this memory that a snapshot kept, instead of booting. Its disks and NICs are
    # those of the machine then: by serial and MAC, and what is left over in the order of the lists.
    memory: str = ""
    identity: Identity | None = None  # it is a copy, and gets this before anything of it reaches the network
    # The file that its RAM is. A guest that boots writes it; one that begins from a template's ``memory`` has its own copy of each
    # page that it writes, and shares the others.
    ram: str = ""
    setup: str = ""  # a shell script that a copy runs as root before it is ready; it may run twice
    console_note: str = ""  # a line for its console's log, of a guest that begins from memory


class GuestShape(msgspec.Struct, frozen=True):
    """The devices and sizes that a machine has, and the most that it can have while it runs."""

    cpu: float
    memory_bytes: int
    disks: dict[str, int]  # serial → bytes
    nics: list[str]  # MACs
    most_cpu: float
    most_memory_bytes: int
    has_slots: bool = False  # for disks and NICs that come and go
    free_slots: int = 0


class ProcessFacts(msgspec.Struct, frozen=True):
    """State of the one process that a machine exists for, as its agent reports it."""

    runs: bool
    ends: int = 0  # how often it has ended by itself since the boot
    code: int | None = None  # its last exit code (128 + its signal)


class GuestFacts(msgspec.Struct, frozen=True):
    """Facts about one guest now."""

    id: str
    uid: str
    name: str
    incarnation: int
    state: GuestState
    ready: bool | None = None  # True: the agent answered; None: has no agent, can't know
    boot_id: str | None = None  # the guest kernel's own, once its agent has reported it
    pid: int | None = None
    started_at: float | None = None  # unix seconds by this node's clock; for display only
    reason: str | None = None  # why failed or stopped: "guestPoweredOff", "killed", …
    message: str | None = None
    held: bool = False  # its machine stands still, and continues where it was
    accelerator: str | None = None
    shape: GuestShape | None = None  # of a machine that runs; None: unknown
    live_bar: str = ""  # why it can migrate only while it stands still, and what ends that; "" if it can do so live
    outdated: bool = False  # its machine runs in a program of which another version was installed since
    exit_code: int | None = None  # of a container's process, or the one that its machine existed for, once it has ended
    process: ProcessFacts | None = (
        None  # of a machine that runs; None: it doesn't exist for one, or hasn't reported yet
    )


class RuntimeProbe(msgspec.Struct, frozen=True):
    """Abilities of this driver here."""

    driver: str
    usable: bool  # False: no guest starts
    version: str
    accelerator: str
    machines: list[str]  # machine types; TYPE@VERSION is one that can be built as that version did
    capabilities: list[str]  # "gpu-shares": GPUs can be shared
    problems: list[str]  # sentences with a remedy
    kept: dict[str, str] = {}  # PCI address of a GPU that no guest can get → why, and what to do about it
    cpu_models: list[str] = []  # CPUs that guests can have, best first; two of the same name are the same CPU
    kinds: tuple[str, ...] = ("vm",)  # of workload that it runs
    isolations: tuple[str, ...] = ()  # its ways to isolate kinds that have more than one
    checkpoint: str = ""  # "yes": what it has saved can go on elsewhere; else why not; "": it saves nothing


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
        """Find every guest of this node again after a restart of the agent, adopt the live ones, and return the facts of
        all."""

    async def remove(self, guest_id: str) -> None:
        """Forget a guest that does not run: its run files and saved memory. Disks are not the runtime's."""

    async def changed(self) -> None:
        """Return when any guest's facts may have changed (ready, ended, …). Spurious returns are fine."""

    async def close(self) -> None:
        """Close connections; guests go on."""


@runtime_checkable
class TakesNamespace(Protocol):
    """A driver of containers in machines of their own that finds their NICs in a network namespace (``ContainerPlan.netns``)
    and puts them into the machine itself."""

    takes_namespace: Literal[True]


@runtime_checkable
class CanHold(Protocol):
    """A driver of machines that can stand still."""

    async def hold(self, guest_id: str, held: bool) -> None:
        """Stop or continue its processors; its memory stays. Repeated is fine. Raises NotFound, Unavailable for one that doesn't
        run."""


@runtime_checkable
class CanTrim(Protocol):
    """A driver of machines whose guests can give back what their file systems don't use."""

    async def trim(self, guest_id: str) -> int:
        """Have it do so, on all its disks: how many bytes it says. Repeated is fine. Raises NotFound, DriverFailed
        (``notTrimmed``, ``unsupported``), Unavailable for one that doesn't run or whose agent doesn't answer."""


@runtime_checkable
class CanSuspend(Protocol):
    async def suspend(self, guest_id: str) -> None:
        """Save memory and devices durably, then end the machine. Killed half-way: the guest either still runs or is
        fully suspended, never neither."""


class Carries(Protocol):
    """Takes a suspended guest to another node as one file, which holds all of it but its disks and its image."""

    async def pack(self, guest_id: str) -> str:
        """Write that file, and return its path. Raises IllegalTransition for a guest that isn't suspended, DriverFailed."""

    async def expect(self, guest_id: str) -> str:
        """The path where the file of a guest that comes must be written."""

    async def unpack(self, guest_id: str, uid: str, incarnation: int, make_plan: Callable[[], Any]) -> None:
        """Make the file that has come this guest, suspended here; ``make_plan`` gives its plan here. Repeated is fine. Raises
        DriverFailed, InvalidInput for a guest that can't go on here; then none of it is here."""


@runtime_checkable
class CanCarry(CanSuspend, Protocol):
    carrying: Carries


@runtime_checkable
class CanAdjust(Protocol[PlanT_contra]):
    async def adjust(self, plan: PlanT_contra) -> GuestFacts:
        """Give a running guest the CPUs, memory, disks and NICs of ``plan``, and take away those it has too many; what matches
        already stays as it is. Killed half-way: the next call goes on. Raises InvalidInput (``restartNeeded``) for what needs a
        restart, DriverFailed (``guestHolds``) when the guest doesn't release something."""


class ExecRequest(msgspec.Struct, frozen=True):
    argv: list[str]
    env: dict[str, str] = {}
    cwd: str = ""
    tty: bool = False
    rows: int = 0  # of the terminal as the command begins; 0: unknown
    columns: int = 0

    @property
    def has_size(self) -> bool:
        return self.tty and self.rows > 0 and self.columns > 0


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


DETACHED, SESSION_LOST = "sessionDetached", "sessionLost"  # reasons of Unavailable: it can be resumed, or no longer


class SessionMark(msgspec.Struct, frozen=True):
    """How far a caller has come with an exec session that outlives the connection to its guest."""

    key: str  # 32 hexadecimal digits that name the session
    run: str = ""  # of the guest's agent that has it; "" for a session that begins
    stdout: int = 0  # bytes that have arrived
    stderr: int = 0


class SessionStanding(msgspec.Struct, frozen=True):
    """How far the guest has come with a session."""

    run: str = ""  # as in the mark; "" for a guest that keeps no sessions
    received: int = 0  # bytes of stdin that the guest has
    taken: int = 0  # bytes of stdin that the command has read
    ended: bool = False  # whether stdin's end has arrived


@runtime_checkable
class KeptSession(Protocol):
    """An ExecSession that the guest keeps while nobody is connected to it. Its output raises Unavailable (``sessionDetached``)
    when the connection is lost and the session isn't."""

    standing: SessionStanding

    def acknowledge(self, stdout: int, stderr: int) -> None:
        """Acknowledge that so many bytes since its beginning have arrived at the caller: the guest need not keep them."""

    async def let_go(self) -> None:
        """Leave it to the next caller; the guest ends it if none comes."""


@runtime_checkable
class CanExec(Protocol):
    async def exec(self, guest_id: str, request: ExecRequest, mark: SessionMark | None = None) -> ExecSession:
        """Start a command in a ready guest; with ``mark`` start one that is kept if the guest can (a KeptSession), or resume
        it. Raises Unavailable while the guest's agent doesn't answer, and (``sessionLost``) when the guest no longer has it."""


class PrintedBy(msgspec.Struct, frozen=True, array_like=True):
    """The number of bytes that a guest had printed by ``at`` (seconds since 1970), since its first boot."""

    printed: int
    at: float


class Printed(msgspec.Struct, frozen=True):
    """The output of a guest on its console."""

    start: int  # how many bytes it had printed before, on any node
    data: bytes = b""
    times: tuple[PrintedBy, ...] = ()  # when, as far as known


@runtime_checkable
class HasConsole(Protocol):
    def console_log(self, guest_id: str) -> str:
        """Path of the file that keeps what the guest printed."""

    def console_socket(self, guest_id: str) -> str:
        """Path of the unix socket that is the guest's serial line; it serves one client at a time."""


class PrintedBefore(Protocol):
    """The output of guests before the beginning of their console logs: on other nodes, or too long ago."""

    def start(self, guest_id: str) -> int:
        """How many bytes it printed before those in its log. Changes after the log, where both change."""

    def times(self, guest_id: str) -> list[PrintedBy]:
        """When it printed what it did, oldest first, to within some seconds; empty where nothing was recorded."""

    def add(self, guest_id: str, printed: Printed) -> None:
        """Record that it printed that on another node, and skip what its log has of it. Only while the guest stands still here.
        Raises OSError."""


@runtime_checkable
class CountsPrinted(HasConsole, Protocol):
    """A driver whose console logs migrate with their guests."""

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
        """``disks`` False leaves out bytes read and written, for which the machine must be asked. Raises NotFound, Unavailable
        for a guest that doesn't run."""


class Counted(msgspec.Struct, frozen=True):
    """``values`` by name, as they were at ``at`` (elapsed seconds). ``cpu``, ``steal`` and ``throttled`` are the seconds that it
    ran, waited for a CPU of the node, and was kept from running by its own limit; ``memory.…`` are bytes now. Of each disk
    ``disk.NAME.`` (without a name: of all together) ``read`` and ``written`` are bytes, ``reads`` and ``writes`` operations,
    ``read_seconds`` and ``write_seconds`` what these took together. All but memory count up from the run's start."""

    at: float
    values: Mapping[str, float]


class Counters(Protocol):
    """Counters of one run of a guest, kept open: it is read several times a second."""

    names: tuple[str, ...]  # of all values that it may have

    def read(self, at: float, *, often: bool) -> Counted | None:
        """The values at ``at`` (now, in elapsed seconds); None: nothing new is known now. ``often``: somebody watches, so what is
        dear is read each time too. Never waits. Raises OSError when the run has ended, or nothing more can be known of it."""

    def close(self) -> None: ...


@runtime_checkable
class HasCounters(Protocol):
    def open_counters(self, guest_id: str) -> list[Counters]:
        """Each of its own pace; none for a guest that doesn't run. Raises OSError."""
