"""How a container's process has ended, and what it is asked to end by: the same with the node's kernel and its own. Pure."""

from __future__ import annotations

import signal

import msgspec

from weft.contracts.driver.container import (
    COMPLETED,
    EXITED,
    KILLED,
    NEVER_BEGAN,
    OUT_OF_MEMORY,
    ContainerPlan,
    describe_never_began,
)
from weft.contracts.driver.runtime import GuestState
from weft.contracts.driver.sandbox import SIGNAL_OFFSET


class ContainerEnd(msgspec.Struct, frozen=True):
    state: GuestState
    reason: str
    message: str = ""
    exit_code: int | None = None


def end_of_process(plan: ContainerPlan, exit_code: int, *, out_of_memory: bool) -> ContainerEnd:
    """``exit_code`` as a shell has it; ``out_of_memory``: the kernel has killed a process of the container for want of memory."""
    if exit_code == 0:
        return ContainerEnd("stopped", COMPLETED, "", 0)
    if out_of_memory and exit_code == SIGNAL_OFFSET + signal.SIGKILL:
        message = f"it used more than its {plan.memory_bytes >> 20} MiB of memory"
        return ContainerEnd("failed", OUT_OF_MEMORY, message, exit_code)
    try:  # a shell gives such a code for itself, too, and then means the same
        return ContainerEnd("failed", KILLED, f"ended by {signal.Signals(exit_code - SIGNAL_OFFSET).name}", exit_code)
    except ValueError:
        also = "; the kernel had killed one of its processes for lack of memory" if out_of_memory else ""
        return ContainerEnd("failed", EXITED, f"exit code {exit_code}{also}", exit_code)


def end_of_never_began(plan: ContainerPlan, reason: str) -> ContainerEnd:
    """Its command can't be begun, for a ``reason`` of NEVER_BEGAN."""
    return ContainerEnd("failed", reason, describe_never_began(reason, plan.process.argv[0]), NEVER_BEGAN[reason])


def read_signal(name: str) -> int:
    """SIGTERM, TERM, 15, SIGRTMIN+3. Any other word is SIGTERM: an image's word isn't worth a container that can't be stopped."""
    word = name.strip().upper()
    if word.isdigit():
        return int(word) if 0 < int(word) <= signal.SIGRTMAX else signal.SIGTERM
    base, plus, more = (word if word.startswith("SIG") else f"SIG{word}").partition("+")
    try:
        return int(signal.Signals[base]) + (int(more) if plus else 0)
    except (KeyError, ValueError):
        return signal.SIGTERM
