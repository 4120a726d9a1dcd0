"""CPUs and machines that this node's QEMU can give a guest: QEMU itself lists them, by name, best first.

A model is only named if QEMU lacks nothing of it here: under KVM what the host's CPU has counts, else what is emulated. The
first name stands for everything available, ``host@DIGEST`` or ``max@VERSION``: equal names are equal CPUs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from typing import Any

import msgspec

from weft.objects.errors import DriverFailed

OLDEST = (9, 0, 0)  # before it, the memory of migrating guests could be corrupted
_PATIENCE_SECONDS = 30.0
_VERSIONED = re.compile(r".*-v\d+")
_MACHINE = re.compile(r"pc-q35-(\d+)\.(\d+)")


class Offer(msgspec.Struct, frozen=True):
    """``machines`` as TYPE@VERSION of QEMU, all that this one can build."""

    cpu_models: list[str]
    machines: list[str]


async def inspect_offer(program: str, accelerator: str, version: tuple[int, int, int]) -> Offer:
    """Ask a QEMU without a machine; raises DriverFailed."""
    words = ["-nodefaults", "-no-user-config", "-display", "none", "-machine", "none", "-accel", accelerator]
    process = await asyncio.create_subprocess_exec(
        *[program, *words, "-qmp", "stdio"],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=1 << 22,
    )
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await _ask_all(process, accelerator, version)
    except (TimeoutError, msgspec.DecodeError) as problem:
        raise DriverFailed("QEMU doesn't say which CPUs it has", details={"step": "probe"}) from problem
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _ask_all(process: asyncio.subprocess.Process, accelerator: str, version: tuple[int, int, int]) -> Offer:
    await _ask(process, "qmp_capabilities")
    text = ".".join(map(str, version[:2]))
    whole = "host" if accelerator == "kvm" else "max"
    features = await _expand(process, whole)
    digest = hashlib.sha256(msgspec.json.encode([text, sorted(features.items())])).hexdigest()[:12]
    ranked = []
    for known in await _ask(process, "query-cpu-definitions"):
        name = known["name"]
        if known.get("unavailable-features") == [] and _VERSIONED.fullmatch(name):
            ranked.append((-sum(value is True for value in (await _expand(process, name)).values()), name))
    named = [match for known in await _ask(process, "query-machines") if (match := _MACHINE.fullmatch(known["name"]))]
    built = sorted(pair for match in named if (pair := (int(match[1]), int(match[2]))) >= OLDEST[:2])
    return Offer(
        cpu_models=[f"host@{digest}" if whole == "host" else f"max@{text}", *(name for _, name in sorted(ranked))],
        machines=[*(f"q35@{major}.{minor}" for major, minor in built), f"microvm@{text}"],
    )


async def _expand(process: asyncio.subprocess.Process, name: str) -> dict[str, Any]:
    """All that a model has."""
    answer = await _ask(process, "query-cpu-model-expansion", type="full", model={"name": name})
    return dict(answer["model"]["props"])


async def _ask(process: asyncio.subprocess.Process, command: str, **arguments: Any) -> Any:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(msgspec.json.encode({"execute": command, "arguments": arguments}) + b"\n")
    await process.stdin.drain()
    while line := await process.stdout.readline():
        answer = msgspec.json.decode(line)
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            raise DriverFailed(
                f"QEMU doesn't answer {command}: {answer['error'].get('desc')}", details={"step": "probe"}
            )
    raise DriverFailed(f"QEMU ended before it answered {command}", details={"step": "probe"})
