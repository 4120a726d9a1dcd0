"""What holds containers while agents come and go: has an OCI runtime create them, keeps what they print, waits for their
end. Either conmon, a process for each (``conmon.py``), or the containerd of the node (``containerd/``), which may have another
make a machine of its own for each (``kata/``); which stays with it.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from weft.contracts.driver.runtime import ExecRequest, ExecSession, GuestStats
from weft.drivers.runtime.oci.translate import Facts

if TYPE_CHECKING:
    from weft.drivers.runtime.oci.container import Container


class Holder(Protocol):
    async def launch(self, container: Container, facts: Facts, recorded: Awaitable[None]) -> None:
        """Returns when its process runs, and says in its record who does; nothing runs before ``recorded``, that the start is on
        disk. Raises WeftError; what it has made by then stays, for ``release``."""

    async def adopt(self, container: Container) -> bool:
        """Fill its record with what is found of it: the process, who holds it, and whether that was let go. True: it runs, or
        nobody can say that it doesn't."""

    def has_ended(self, container: Container) -> bool:
        """Whether one that was let go is seen to run no more, settled or not; False where that can't be seen at once."""

    async def wait_for_end(self, container: Container) -> None:
        """Of one that was let go."""

    async def signal(self, container: Container, number: int) -> None:
        """To its first process; one that has ended is fine. Raises DriverFailed, Unavailable."""

    async def ran_out_of_memory(self, container: Container, exit_code: int | None) -> bool:
        """Whether the kernel has killed a process of it, which has ended with that, for want of memory."""

    async def stats(self, container: Container, *, disks: bool) -> GuestStats:
        """Of one that runs; see HasStats. Raises DriverFailed, Unavailable."""

    async def exit_code(self, container: Container) -> int | None:
        """Of a container whose process has ended; None if nobody knows. Waits for whoever writes it down."""

    async def release(self, container: Container) -> None:
        """Nothing starts it any more, and holder and runtime have forgotten it, however far it came. Raises WeftError."""

    async def update(self, container: Container, resources: dict[str, Any]) -> None:
        """Other limits for one that runs; see translate_resources. Raises DriverFailed."""

    async def exec(self, container: Container, facts: Facts, request: ExecRequest) -> ExecSession:
        """Of one that runs. Raises InvalidInput, DriverFailed, Unavailable."""

    def turn_log(self, container: Container) -> None:
        """Have its log go on in a new file if it is long enough. Raises OSError."""


@runtime_checkable
class Saves(Protocol):
    """A holder whose containers can be saved as they run."""

    async def save(self, container: Container) -> None:
        """Have what runs of it end by being saved. Raises DriverFailed: it runs on."""

    async def resume(self, container: Container, facts: Facts, recorded: Awaitable[None]) -> None:
        """As ``Holder.launch``, from where it was saved."""
