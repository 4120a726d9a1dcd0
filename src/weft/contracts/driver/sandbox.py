"""Code that a node holds behind walls: the same verbs for a container of any runtime and for a function's instance.

A sandbox is made from a plan (``container.ContainerPlan``: layers, mounts, process, limits, users), which its driver *prepares*
(what several share: a root, a template) and *starts*. From then on it is frozen and goes on, is stopped, is counted, and ends. Its
driver *recovers* what an agent before it left: what lasts is found again, what passes is ended. Who keeps it alive is the driver's
choice: conmon, containerd, QEMU or the agent itself.

A container lasts: it is a ``RuntimeDriver``'s, which names it by its id and has a log and commands beside it. An instance passes:
it is an ``InstanceDriver``'s, an object with its Runtime API and its output.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec

SIGNAL_OFFSET = 128  # how a shell, and whatever wraps a command, writes that a signal ended it


class Ended(msgspec.Struct, frozen=True):
    """How the code in a sandbox ended: by a ``code`` or a ``signal``; neither where nobody knows."""

    code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False  # the kernel ended it for want of memory


class Sandbox(Protocol):
    id: str

    async def wait(self) -> Ended:
        """How it ended, once it has."""

    async def freeze(self) -> None:
        """It gets no more CPU, and keeps its memory. May be repeated."""

    async def resume(self) -> None:
        """Undo ``freeze``; for a clone this comes with a fresh clock and randomness, before any of its code runs."""

    async def stop(self, grace_seconds: float = 0.0) -> None:
        """End it, frozen or not, with all that it started. One that can be asked to end by itself is, and forced after the grace;
        0 forces it at once. May be repeated."""

    async def most_memory(self) -> int:
        """The most bytes that it ever had; 0 where nobody counts."""


@runtime_checkable
class CanFreeze(Protocol):
    """A RuntimeDriver whose guests are Sandboxes that can stand still."""

    async def freeze(self, guest_id: str) -> None:
        """See Sandbox. Raises NotFound, Unavailable for one that doesn't run."""

    async def resume(self, guest_id: str) -> None: ...


def read_exit(code: int, *, out_of_memory: bool) -> Ended:
    """Pure. ``code`` as Popen has it (negative for a signal of its own), or as a shell does."""
    if code < 0:
        return Ended(signal=-code, out_of_memory=out_of_memory)
    if code > SIGNAL_OFFSET:
        return Ended(signal=code - SIGNAL_OFFSET, out_of_memory=out_of_memory and code - SIGNAL_OFFSET == 9)
    return Ended(code=code)
