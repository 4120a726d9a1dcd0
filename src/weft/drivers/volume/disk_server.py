"""Disks served over NBD by qemu-nbd, on a Unix socket in a folder that only root can enter; and which parts of a disk hold what."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import shutil
import socket
from collections.abc import AsyncIterator

from weft.contracts.clock import SystemClock
from weft.drivers.linux.programs import run_program
from weft.objects.errors import DriverFailed

_CLOCK = SystemClock()
BEGIN_SECONDS = 30.0
ASK_AGAIN_SECONDS = 0.5
MAP_SECONDS = 600.0


@contextlib.asynccontextmanager
async def serve_disk(name: str, *, read_only: bool) -> AsyncIterator[str]:
    """The socket of a server of this disk, named as qemu-img names it; the server ends with the context. Raises DriverFailed."""
    late = importlib.import_module("tempfile")  # for this alone
    folder = await asyncio.to_thread(late.mkdtemp, prefix="weft-disk-")
    try:
        path = f"{folder}/disk"
        process = await _begin(name, path, read_only)
        try:
            await _await_socket(process, path)
            yield path
        finally:
            await _end(process)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _begin(name: str, path: str, read_only: bool) -> asyncio.subprocess.Process:
    how = ["--read-only"] if read_only else ["--detect-zeroes=on"]
    if shutil.which("qemu-nbd") is None:
        raise DriverFailed("qemu-nbd is not installed", hint="apt-get install qemu-utils", details={"step": "disk"})
    argv = ["qemu-nbd", "--persistent", "--shared=4", f"--socket={path}", "--cache=writeback", *how, name]
    # It goes with the process that it serves, however that ends.
    return await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "KILL", *argv),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    """It writes what it has in memory first. It doesn't hear a signal that comes before its main loop runs, so it is told again."""
    for _ in range(round(BEGIN_SECONDS / ASK_AGAIN_SECONDS)):
        if process.returncode is None:
            process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ASK_AGAIN_SECONDS):
                await process.wait()
                return
    process.kill()
    await process.wait()


def _listens(path: str) -> bool:
    """Whether the server takes connections: its socket is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


async def _await_socket(process: asyncio.subprocess.Process, path: str) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(BEGIN_SECONDS):
            while process.returncode is None:
                if await asyncio.to_thread(_listens, path):
                    return
                await _CLOCK.sleep(0.01)
    said = b""
    if process.returncode is not None and process.stderr is not None:
        said = await process.stderr.read(4096)
    why = " ".join(said.decode(errors="replace").split()) or "it did not begin in time"
    raise DriverFailed(f"qemu-nbd can't open the disk: {why[-400:]}", details={"step": "disk"})


async def map_disk(name: str, above: int) -> list[tuple[int, int, bool]]:
    """Offset, length and whether it is zero, of the parts that the upmost ``above`` files hold; below 0: of those that any file
    holds data for. Raises DriverFailed."""
    argv = ["qemu-img", "map", "--force-share", "--output=json", name]
    done = await run_program(argv, "qemu-img map", "qemu-utils", seconds=MAP_SECONDS)
    if done.code != 0:
        raise DriverFailed(f"qemu-img map failed: {' '.join(done.errors.split())[-400:]}", details={"step": "disk"})
    return [
        (one["start"], one["length"], bool(one["zero"] or not one["data"]))
        for one in json.loads(done.output)
        if (one["depth"] < above if above >= 0 else one["data"] and not one["zero"])
    ]
