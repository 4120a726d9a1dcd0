"""Runs one program to its end, within a time; a cancelled caller ends it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import msgspec

from weft.contracts.disk_program import NO_SPACE, find_trouble
from weft.objects.errors import DriverFailed


class Finished(msgspec.Struct, frozen=True):
    code: int
    output: str
    errors: str


async def run_program(argv: Sequence[str], what: str, packages: str, *, seconds: float, stdin: str = "") -> Finished:
    """Run a program. ``what`` names the work, ``packages`` are Debian's that have the program. Raises DriverFailed where it isn't
    installed, or took too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except FileNotFoundError as problem:
        raise DriverFailed(
            f"{what}: {argv[0]} is not installed", hint=f"apt-get install {packages}", details={"step": what}
        ) from problem
    try:
        async with asyncio.timeout(seconds):
            output, errors = await process.communicate(stdin.encode())
    except BaseException as problem:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if isinstance(problem, TimeoutError):
            raise DriverFailed(f"{what} did not end within {seconds:g} s", details={"step": what}) from problem
        raise
    assert process.returncode is not None
    return Finished(process.returncode, output.decode(errors="replace"), errors.decode(errors="replace"))


async def run_on_disk(
    argv: Sequence[str], packages: str, *, seconds: float, highest: int = 0, hint: str | None = None
) -> None:
    """Run a program that makes or changes a disk, like ``run_program``. Raises DriverFailed with its own words for an exit code
    above ``highest``; its reason is noSpace where there was none left. ``hint`` is for what is wrong with the disk: it gives way
    where the node failed, or something killed the program."""
    what = argv[0] if argv[1].startswith(("-", "/")) else f"{argv[0]} {argv[1]}"
    done = await run_program(argv, what, packages, seconds=seconds)
    if 0 <= done.code <= highest:
        return
    output = " ".join(f"{done.errors} {done.output}".removeprefix(f"{argv[0]}: ").split())
    for path in sorted((word for word in argv if word.startswith("/")), key=len, reverse=True):
        output = output.replace(path, os.path.basename(path))  # those who read it know nothing of the node's folders
    trouble = find_trouble(output)
    output = output[-400:]
    raise DriverFailed(
        f"{what} failed: {output or f'exit code {done.code}'}",
        reason="noSpace" if trouble == NO_SPACE else None,
        hint=trouble or (hint if done.code > 0 else None),
        details={"step": "disk"},
    )
