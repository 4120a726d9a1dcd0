"""The agents inside one guest: weft's own (streams, terminals), qemu-guest-agent (what any distribution ships), or both.

Keeps a connection to each while the guest runs; tells when one introduces itself. A caller who wants a command run gets it
from weft's own where that answers, else from the other.

One that doesn't introduce itself is connected to anew: QEMU passes on nothing any more, in either direction and for good, where a
host went while its guest was writing to it and the write was what found that out. What frees the port is that a host goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from weft.contracts.clock import Clock
from weft.contracts.driver.identity import Identity
from weft.contracts.driver.runtime import ExecRequest, ExecSession, GuestPlan, ProcessFacts, SessionMark
from weft.drivers.runtime.qemu.guest_agent.channel import GuestChannel
from weft.drivers.runtime.qemu.guest_agent.frames import Hello
from weft.drivers.runtime.qemu.guest_agent.qemu_agent import QemuAgent, connect_agent
from weft.drivers.runtime.qemu.guest_agent.question import (
    FREEZE,
    IDENTITY,
    UNUSED,
    describe_failures,
    encode_freeze,
    encode_renewal,
)
from weft.drivers.runtime.qemu.guest_agent.unread_output import Unread
from weft.drivers.runtime.qemu.translate import QEMU_AGENT_ID, WEFT_AGENT_ID, GuestPaths, has_qemu_port
from weft.objects.errors import DriverFailed, Unavailable

RETRY_SECONDS = 0.2
SILENT_SECONDS = (4.0, 60.0)  # for one that doesn't introduce itself: at first, and at most
FREEZE_SECONDS = 10.0
TRIM_SECONDS = 120.0
RENEW_SECONDS = 90.0  # the guest gives up before that
SEED_BYTES = 32


class GuestAgents:
    """``on_hello(boot_id)`` is called whenever one has (again) introduced itself, ``on_process`` with what weft's own says of the
    process that the guest is there for, if it is there for one. ``unread`` counts what waits of all guests' output."""

    def __init__(
        self,
        plan: GuestPlan,
        paths: GuestPaths,
        clock: Clock,
        on_hello: Callable[[str], None],
        on_process: Callable[[ProcessFacts], None],
        unread: Unread,
    ) -> None:
        self._plan, self._paths, self._clock = plan, paths, clock
        self._on_hello, self._on_process = on_hello, on_process if plan.has_process else None
        self._unread = unread
        self._weft: GuestChannel | None = None
        self._qemu: QemuAgent | None = None
        self._qemu_answers = False
        self.power_off_wanted = False  # by a caller who waits for it; an agent gets the request when it connects
        self.clock_stood_still = False  # while the guest was suspended; set when an agent answers
        self.thaw_wanted = False  # the driver that froze it may be gone
        self._freezer: GuestChannel | QemuAgent | None = None  # that froze file systems
        self._frozen_at = 0.0

    @property
    def answer(self) -> bool:
        """Whether one of them is there now."""
        return (self._weft is not None and self._weft.ready) or self._qemu_answers

    def connect_loops(self) -> list[Coroutine[Any, Any, None]]:
        """The loops that keep the connections, to be run for as long as the guest runs."""
        weft = [self._keep_weft()] if self._plan.has_agent else []
        return [*weft, self._keep_qemu()] if has_qemu_port(self._plan) else weft

    async def exec(self, request: ExecRequest, mark: SessionMark | None = None) -> ExecSession:
        """Start a command, or go on with the one that ``mark`` names. Raises Unavailable while none answers, InvalidInput or
        TooLarge for a bad one."""
        if self._weft is not None and self._weft.ready:
            return await (self._weft.exec(request) if mark is None else self._weft.exec_kept(request, mark))
        if mark is not None and mark.run:
            raise Unavailable(f"vm/{self._plan.name}: its agent doesn't answer yet", retry_after_seconds=RETRY_SECONDS)
        if self._qemu is not None and self._qemu_answers:
            return self._qemu.exec(request)
        promised = self._plan.has_agent or self._plan.qemu_agent
        raise Unavailable(
            f"vm/{self._plan.name}: no agent in it answers yet"
            if promised
            else f"vm/{self._plan.name}: no agent in it answers; install qemu-guest-agent",
            retry_after_seconds=RETRY_SECONDS,
        )

    def power_off(self) -> bool:
        """Ask the guest to power off; False when no agent is there to be asked."""
        if self._weft is not None and self._weft.ready:
            self._weft.power()
            return True
        if self._qemu is not None and self._qemu_answers:
            self._qemu.power()
            return True
        return False

    async def set_clock(self) -> None:
        """The guest stood still, and its clock with it: set it now, or when an agent answers."""
        self.clock_stood_still = True
        if self._weft is not None and self._weft.ready:
            self._weft.set_time(self._clock.now())
            self.clock_stood_still = False
        elif self._qemu is not None and self._qemu_answers:
            with contextlib.suppress(Unavailable, DriverFailed):
                await self._qemu.set_time(self._clock.now())
                self.clock_stood_still = False

    async def freeze(self, *, within: float = FREEZE_SECONDS) -> str:
        """Freeze the guest's file systems until ``thaw``, or for FREEZE_SECONDS; "" once they are, else why they aren't."""
        self.thaw_wanted = True
        try:
            async with asyncio.timeout(within):
                answer = None
                if self._weft is not None and self._weft.ready:
                    self._freezer = self._weft
                    answer = await self._weft.ask(FREEZE, encode_freeze(int(FREEZE_SECONDS * 1000)), FREEZE_SECONDS)
                if answer is not None:
                    fine, number = answer
                    if not fine:
                        return f"the guest's agent couldn't freeze its file systems: {os.strerror(min(number, 999))}"
                elif self._qemu is not None and self._qemu_answers:
                    self._freezer = self._qemu
                    await self._qemu.freeze()
                else:
                    self.thaw_wanted, self._freezer = False, None
                    return "no agent in the guest could freeze its file systems"
        except (Unavailable, DriverFailed) as problem:
            return f"its file systems were not frozen: {problem.message}"
        except TimeoutError:
            if self._freezer is self._qemu and self._qemu is not None:
                self._qemu.close()  # its answer would be taken for the next one's
            return f"its file systems were not frozen within {within:g} s"
        self._frozen_at = self._clock.elapsed()
        return ""

    async def thaw(self) -> float | None:
        """Let file systems go that ``freeze`` froze, however far it came: for how many milliseconds they stood still; None: they
        were let go before, or it isn't known that they stood still until now."""
        freezer, self._freezer = self._freezer, None
        lasted = None
        try:
            if isinstance(freezer, GuestChannel):
                self.thaw_wanted = False  # it lets them go by itself
                fine, milliseconds = await freezer.ask(FREEZE, encode_freeze(0), FREEZE_SECONDS) or (False, 0)
                lasted = float(milliseconds) if fine and milliseconds <= FREEZE_SECONDS * 1000 else None
            elif self._qemu is not None and self._qemu_answers and self.thaw_wanted:
                held = await self._qemu.thaw() > 0 and freezer is self._qemu
                self.thaw_wanted = False
                lasted = (self._clock.elapsed() - self._frozen_at) * 1000 if held else None
        except (Unavailable, DriverFailed):
            pass  # an agent that comes again is asked again
        return lasted

    async def trim(self) -> int:
        """Have the guest give back the blocks of its file systems that no file uses: how many bytes, by what it says. Raises
        DriverFailed, Unavailable while no agent answers."""
        name, answer = f"vm/{self._plan.name}", None
        if self._weft is not None and self._weft.ready:
            answer = await self._weft.ask(UNUSED, b"", TRIM_SECONDS)
        if answer is not None:
            fine, number = answer
            if not fine:
                raise DriverFailed(
                    f"{name} couldn't trim its file systems: {os.strerror(min(number, 999))}", reason="notTrimmed"
                )
            return number << 10
        if self._qemu is not None and self._qemu_answers:
            return await self._qemu.trim(TRIM_SECONDS)
        if self._weft is not None and self._weft.ready:
            raise DriverFailed(
                f"{name}: its agent is too old to trim file systems",
                reason="unsupported",
                hint="run fstrim -av in it; a VM of a newer image has an agent that can",
            )
        raise Unavailable(f"{name}: no agent in it answers", retry_after_seconds=RETRY_SECONDS)

    async def renew(self, identity: Identity | None, macs: Mapping[str, str]) -> str | None:
        """Give a guest that began from copied memory randomness, the time, and who it is: "" once it has all of it, else what
        failed; None: its agent is too old for that. Raises Unavailable while it doesn't answer."""
        if self._weft is None or not self._weft.ready:
            raise Unavailable(f"vm/{self._plan.name}: its agent doesn't answer yet", retry_after_seconds=RETRY_SECONDS)
        message = encode_renewal(os.urandom(SEED_BYTES), self._clock.now(), identity, macs)
        answer = await self._weft.ask(IDENTITY, message, RENEW_SECONDS)
        return None if answer is None else describe_failures(answer[1])

    def take_port_change(self, port: str, is_open: bool) -> None:
        """QEMU tells that the guest opened or closed an agent's port: one that ended knows nothing of us any more."""
        if not is_open and port == WEFT_AGENT_ID and self._weft is not None:
            self._weft.close("the guest's agent closed its port")
        if not is_open and port == QEMU_AGENT_ID and self._qemu is not None and self._qemu_answers:
            self._qemu.close()

    def let_go(self) -> None:
        """The guest goes on elsewhere: who waits for it here is to go there."""
        if self._weft is not None:
            self._weft.close()

    def close(self) -> None:
        for agent in (self._weft, self._qemu):
            if agent is not None:
                agent.close()
        self._weft = self._qemu = None
        self._qemu_answers = False

    async def _keep_weft(self) -> None:
        loop = asyncio.get_running_loop()
        patience, longest = SILENT_SECONDS
        while True:
            answered, lost = asyncio.Event(), asyncio.Event()
            make_channel = functools.partial(self._make_channel, answered, lost)
            with contextlib.suppress(OSError):
                _, self._weft = await loop.create_unix_connection(make_channel, str(self._paths.agent))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await answered.wait()
                if answered.is_set():  # also where a busy loop hears of its answer and of the deadline together
                    patience = SILENT_SECONDS[0]
                else:
                    self._weft.close("the guest's agent was silent for too long")
                    patience = min(longest, patience * 2)
                await lost.wait()
            await self._clock.sleep(RETRY_SECONDS)

    def _make_channel(self, answered: asyncio.Event, lost: asyncio.Event) -> GuestChannel:
        """``answered`` is set once something has come of it: a word, or its end."""

        def take_hello(hello: Hello) -> None:
            answered.set()
            self._take_hello(hello)

        def note_lost() -> None:
            answered.set()
            lost.set()

        return GuestChannel(take_hello, note_lost, self._on_process, self._unread, self._plan.id)

    def _take_hello(self, hello: Hello) -> None:
        if self.clock_stood_still and self._weft is not None:
            self._weft.set_time(self._clock.now())
            self.clock_stood_still = False
        self._greet(hello.boot_id)

    async def _keep_qemu(self) -> None:
        patience, longest = SILENT_SECONDS
        while True:
            with contextlib.suppress(OSError, Unavailable, DriverFailed, TimeoutError):
                allowed, patience = patience, min(longest, patience * 2)
                async with asyncio.timeout(allowed):
                    agent = await connect_agent(
                        str(self._paths.qemu_agent), self._clock, self._hold_qemu, self._unread, self._plan.id
                    )
                patience = SILENT_SECONDS[0]
                if self.thaw_wanted and self._freezer is None:  # it refuses all else until then
                    await agent.thaw()
                    self.thaw_wanted = False
                boot_id = await agent.boot_id()
                if self.clock_stood_still:
                    self.clock_stood_still = False
                    await agent.set_time(self._clock.now())
                self._qemu_answers = True
                self._greet(boot_id)
                await agent.lost.wait()
            self._qemu_answers = False
            if self._qemu is not None:
                self._qemu.close()
            await self._clock.sleep(RETRY_SECONDS)

    def _hold_qemu(self, agent: QemuAgent) -> None:
        self._qemu = agent

    def _greet(self, boot_id: str) -> None:
        self._on_hello(boot_id)
        if self.power_off_wanted:
            self.power_off()
