"""The plan that a runtime needs to start one container: all decided, nothing left to look up.

Its driver is a ``RuntimeDriver[ContainerPlan]`` (``contracts/driver/runtime.py``) whose probe names the kind ``container``; it
may have the same small protocols as a driver of machines, and has the same facts.

The agent has merged the image's configuration with the container's spec, and restarts what ended: a driver starts, watches and
ends one run. ``GuestFacts.reason`` says why a run ended: COMPLETED (exit code 0), EXITED (another code), KILLED (a signal that
nobody here sent), OUT_OF_MEMORY, or one of NEVER_BEGAN: its command is missing or can't be executed, which no other try would
mend. ``GuestFacts.exit_code`` is the shell's number for it (128 + signal, 127, 126). A container that could not be restored
from its checkpoint runs for the reason BEGUN_AFRESH; the message says why.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal, Protocol, runtime_checkable

import msgspec

COMPLETED, EXITED, KILLED, OUT_OF_MEMORY = "completed", "exited", "killed", "outOfMemory"
NOT_FOUND, NOT_EXECUTABLE = "commandNotFound", "commandNotExecutable"
NEVER_BEGAN = {NOT_FOUND: 127, NOT_EXECUTABLE: 126}  # and the exit codes that a shell has for them
BEGUN_AFRESH = "begunAfresh"


def describe_never_began(reason: str, program: str) -> str:
    """Why one of NEVER_BEGAN is so, in words: ``program`` is the first word of its command."""
    name = repr(program[:200])
    if reason == NOT_EXECUTABLE:
        return f"{name} can't be executed: it is not a program, or the container's user may not run it"
    return f"the container has no file {name}" if "/" in program else f"{name} is not in the container's PATH"


class User(msgspec.Struct, frozen=True):
    """A process's user inside the container, in numbers."""

    uid: int = 0
    gid: int = 0
    groups: list[int] = []  # beside gid
    home: str = "/"


class ContainerProcess(msgspec.Struct, frozen=True):
    argv: list[str]  # the first is searched for in env's PATH
    env: list[str] = []  # NAME=VALUE in order, no name twice
    cwd: str = "/"  # made if the image has none of that name
    user: User = User()
    stop_signal: str = "SIGTERM"


class ContainerMount(msgspec.Struct, frozen=True):
    source: str  # a directory or file of this node; "" for a tmpfs
    target: str  # in the container, made there if need be, never followed out of its root
    read_only: bool = False
    size_bytes: int = 0  # of a tmpfs
    # With one, ``source`` is a raw disk that has it, mounted for this container alone and locked (``contracts.driver.disk_lock``)
    # for as long as anything of the container runs.
    file_system: Literal["", "ext4"] = ""


class ContainerNic(msgspec.Struct, frozen=True):
    """A NIC of a container in a machine of its own."""

    ifname: str  # a link that the network driver has made
    mac: str
    mtu: int
    address: str
    prefix: int
    gateway: str = ""  # "": another NIC has the default route


class ContainerPlan(msgspec.Struct, frozen=True):
    """Everything a runtime needs to start one container, or a function's instance."""

    id: str  # the allocation's 10-character short id
    uid: str
    name: str
    incarnation: int
    layers: list[str]  # directories of this node, the uppermost first; shared, and never written
    process: ContainerProcess
    cpu: float  # cores (a fraction is a limit); 0 is no limit
    memory_bytes: int
    pids: int = 0  # 0 is the driver's own limit
    mounts: list[ContainerMount] = []
    netns: str = ""  # path of a network namespace that the network driver made; "" is one with nothing but a loopback
    nics: list[ContainerNic] = []  # of a container in a machine of its own, which has no netns
    hostname: str = ""
    name_servers: list[str] = []  # these and ``search`` become its resolv.conf
    search: list[str] = []
    read_only_root: bool = False
    capabilities: list[str] = []  # all that it has (CAP_…), bounding and effective
    user_namespace: bool = True  # its ids are a range of the node's that no other has, chosen by the driver
    devices: list[str] = []  # device nodes of this host that it may use
    terminal: bool = False  # its stdio is a terminal, which ``HasConsole`` serves
    disk_bytes: int = 0  # that it may write into its root, kept until ``remove``; 0 is all that the node has


class LogLine(msgspec.Struct, frozen=True):
    """A line, or a piece of a long one (then ``data`` has no newline at its end); ``at`` in unix seconds by this node's clock."""

    at: float
    channel: Literal["stdout", "stderr"]
    data: bytes


class LogPiece(msgspec.Struct, frozen=True):
    """The piece that follows a position in a log. ``position``: where to go on, in the driver's form; ``missed``: some of what
    followed was gone."""

    lines: list[LogLine]
    position: str
    missed: bool = False


@runtime_checkable
class HasLog(Protocol):
    def read_log(self, guest_id: str, *, tail: int = -1, follow: bool = False) -> AsyncGenerator[LogLine, None]:
        """Read what the container printed, as far as it is kept: the last ``tail`` lines (-1: all), then, with ``follow``, on until
        it has ended and all is read. Ends when it is closed. Raises NotFound."""

    def read_log_after(self, guest_id: str, position: str) -> LogPiece:
        """The lines after ``position`` ("": the first that is kept), some 100 KiB of them at most; none: there are no more now. It
        blocks, and may be called from another thread. Raises NotFound, OSError."""
