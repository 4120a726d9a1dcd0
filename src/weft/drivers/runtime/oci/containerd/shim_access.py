"""Mounts that another program enters, and that last as long as a thread stands in them.

containerd's shim starts the OCI runtime in its own mounts, where no root of a container is ever seen. So it starts a small
script instead, which enters the thread's mounts to create the container.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from weft.drivers.linux.namespace_thread import leave_mounts, run_in_own_thread


@asynccontextmanager
async def stand_in_mounts(hidden: Collection[str], prepare: Callable[[], None]) -> AsyncIterator[str]:
    """The path of a mount namespace that ``prepare`` has made ready, there until the end. Raises what that raises."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[str] = loop.create_future()
    over = threading.Event()

    def set_ready(place: str) -> None:
        if not ready.done():
            ready.set_result(place)

    def stand() -> None:
        leave_mounts(hidden)
        prepare()
        place = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/mnt"
        loop.call_soon_threadsafe(set_ready, place)
        over.wait()

    standing = asyncio.ensure_future(run_in_own_thread(stand))
    try:
        await asyncio.wait((standing, ready), return_when=asyncio.FIRST_COMPLETED)
        if standing.done():
            standing.result()
        yield await ready
    finally:
        over.set()
        await asyncio.wait([standing])


def write_entrance(path: Path, runtime: Sequence[str], hidden: Sequence[str], place: str) -> None:
    """A program that is ``runtime``, and creates containers in the mounts at ``place``, their standard input being the null device
    that ``leave_mounts`` protects; all else without the mounts ``hidden``."""
    words = shlex.join(runtime)
    create = f"nsenter --mount={shlex.quote(place)} -- sh -c 'exec \"$@\" </dev/null' sh {words}"
    text = f'for word; do if [ "$word" = create ]; then exec {create} "$@"; fi; done\n'
    if hidden:
        hide = f'umount -l {shlex.join(hidden)}; exec "$@"'
        words = f"unshare --mount --propagation slave -- sh -c {shlex.quote(hide)} sh {words}"
    write_program(path, f'{text}exec {words} "$@"\n')


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o700)
