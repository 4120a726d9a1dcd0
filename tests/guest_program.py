"""weft's guest agent as a process of this machine, and hosts that come to it one after the other over a socket pair."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from weft.drivers.runtime.qemu.guest_agent.channel import GuestChannel
from weft.drivers.runtime.qemu.guest_agent.frames import Hello

C = TypeVar("C", bound=GuestChannel)


class Guest:
    """The agent process and our end of its stream."""

    def __init__(self, program: Path, *more: str) -> None:
        self.ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [program, f"fd:{theirs.fileno()}", *more],
            pass_fds=[theirs.fileno()],
            preexec_fn=lambda: signal.signal(
                signal.SIGHUP, signal.SIG_DFL
            ),  # who runs the tests under nohup ignores it
        )
        theirs.close()
        self.hellos: asyncio.Queue[Hello] = asyncio.Queue()

    async def connect(self) -> GuestChannel:
        """A new host: as after the old one was killed, whose bytes lie in the stream still."""
        return await self.connect_as(GuestChannel)

    async def connect_as(self, make: Callable[[Callable[[Hello], None], Callable[[], None]], C]) -> C:
        copy = self.ours.dup()
        copy.setblocking(False)
        _, channel = await asyncio.get_running_loop().create_connection(
            lambda: make(self.hellos.put_nowait, lambda: None), sock=copy
        )
        await asyncio.wait_for(self.hellos.get(), 10)
        return channel

    def end(self) -> None:
        self.ours.close()
        self.process.kill()
        self.process.wait()
