"""Renewal of a guest that began from a snapshot's memory: randomness and the time, and if it is a copy its own identity.

Its agent is told as soon as it answers, again after each of its boots until it has taken it, and also by the next driver. A copy
has its links down until then; one that doesn't take it is ended, because it may not meet its twin.
"""

from __future__ import annotations

import asyncio
import contextlib

from weft.contracts.driver.runtime import ExecRequest
from weft.drivers.runtime.qemu.guest import Guest
from weft.drivers.runtime.qemu.record import GuestEnd
from weft.drivers.runtime.qemu.saved_memory import set_links
from weft.objects.errors import DriverFailed, Unavailable

RENEW_SECONDS = 120.0
_AGAIN_SECONDS = 0.05
_MOST_SAID = 1000  # bytes of what a setup complained of


async def renew(guest: Guest) -> None:
    """Returns once the record has nothing left to give, or the guest is being ended."""
    record, deadline = guest.record, guest.clock.elapsed() + RENEW_SECONDS
    renewal = record.renewal
    if renewal is None:
        return
    problem: str | None = "its agent didn't answer"
    while guest.clock.elapsed() < deadline:
        with contextlib.suppress(Unavailable, DriverFailed):
            problem = await guest.agents.renew(renewal.identity, renewal.macs)
            if problem == "" and renewal.identity is not None:
                await set_links(guest.monitor(), record.plan, up=True)
            if problem == "" and renewal.setup:
                problem = await _run_setup(guest, renewal.setup)
            break
        await guest.clock.sleep(_AGAIN_SECONDS)
    if problem and renewal.identity is None:
        problem = ""  # it is the guest that it was; its own time is set beside, in any case
    if problem is None:
        problem = "" if renewal.identity is None else "its image's agent is older than this way of copying"
    if problem:
        await _refuse(guest, problem)
        return
    record.renewal = None
    await guest.save_record()
    guest.notify()


async def _run_setup(guest: Guest, script: str) -> str:
    """Run the setup script. Returns what went wrong; "": nothing. Raises Unavailable while the guest's agent doesn't answer."""
    session = await guest.agents.exec(ExecRequest(["sh", "-s"]))
    try:
        await session.write(script.encode())
        await session.close_stdin()
        said, code = b"", None
        async with asyncio.timeout(RENEW_SECONDS):
            async for chunk in session.output():
                if chunk.channel == "exit":
                    code = chunk.code
                elif chunk.channel == "stderr":
                    said = (said + chunk.data)[-_MOST_SAID:]
    except TimeoutError:
        return f"its setup didn't end within {RENEW_SECONDS:g} s"
    finally:
        await session.close()
    last = said.decode(errors="replace").strip().splitlines()[-1:]
    return "" if code == 0 else f"its setup ended with {code}: {''.join(last)}"


async def _refuse(guest: Guest, problem: str) -> None:
    message = f"the copy didn't get its own identity: {problem}; restore it without its memory: --no-memory"
    guest.verdict = GuestEnd("failed", "noIdentity", message)
    await guest.quit()
