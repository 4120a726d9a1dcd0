"""Holders, which keep containers while agents come and go: one has an OCI runtime create them, keeps what they print, and waits
for their end. Either conmon, a process for each (``conmon/``), or the containerd of the node (``containerd/``), which may have
another runtime make a machine of its own for each (``kata/``). A container stays with its holder."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar, runtime_checkable

from weft.contracts.driver.runtime import Counters, ExecRequest, ExecSession, GuestStats
from weft.drivers.runtime.oci.translate import OciHostFacts

C = TypeVar("C", contravariant=True)  # a container, as the driver keeps it


class Holder(Protocol[C]):
    async def launch(self, container: C, facts: OciHostFacts, recorded: Awaitable[None]) -> None:
        """Returns when its process runs, and records which process that is; nothing runs before ``recorded``, that the start is
        on disk. Raises WeftError; what was made by then stays, for ``release``."""

    async def adopt(self, container: C) -> bool:
        """Fill its record with what is found of it: the process, its shim, and whether it was started. True: it runs, or that
        can't be ruled out."""

    def has_ended(self, container: C) -> bool:
        """Whether a started one is known to have ended, settled or not; False where that can't be seen at once."""

    async def wait_for_end(self, container: C) -> None:
        """Wait for the end of a container that was let go."""

    async def signal(self, container: C, number: int) -> None:
        """Send a signal to the container's first process; one that has ended is fine. Raises DriverFailed, Unavailable."""

    async def freeze(self, container: C, frozen: bool) -> None:
        """Stop giving it CPU, or resume; one that has ended is fine. Raises DriverFailed, Unavailable."""

    async def ran_out_of_memory(self, container: C, exit_code: int | None) -> bool:
        """Whether the kernel ended it by killing one of its processes for lack of memory."""

    async def stats(self, container: C, *, disks: bool) -> GuestStats:
        """Statistics of a running container; see HasStats. Raises DriverFailed, Unavailable."""

    def open_counters(self, container: C) -> list[Counters]:
        """Counters of a running container. Raises OSError."""

    async def exit_code(self, container: C) -> int | None:
        """The exit code of a container whose process has ended; None if it is lost. Waits until it is written down."""

    async def release(self, container: C) -> None:
        """Make sure that nothing starts it any more, and that holder and runtime have forgotten it, however far it came. Raises
        WeftError."""

    async def update(self, container: C, resources: dict[str, Any]) -> None:
        """Set other limits for one that runs; see translate_resources. Raises DriverFailed."""

    async def exec(self, container: C, facts: OciHostFacts, request: ExecRequest) -> ExecSession:
        """Run a command in a running container. Raises InvalidInput, DriverFailed, Unavailable."""

    def turn_log(self, container: C) -> None:
        """Have its log go on in a new file if it is long enough. Raises OSError."""


@runtime_checkable
class CanCheckpoint(Protocol[C]):
    """A holder whose containers can be saved as they run."""

    async def save(self, container: C) -> None:
        """End its processes by saving them. Raises DriverFailed: it runs on."""

    async def resume(self, container: C, facts: OciHostFacts, recorded: Awaitable[None]) -> None:
        """Start the container like ``Holder.launch``, from where it was saved."""
