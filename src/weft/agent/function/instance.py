"""One running instance: its Runtime API, its output, its time limits, and its end.

Woken by the instance's calls, its end, and time. Reports to its listener; decides nothing about other instances.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from weft.agent.function.failures import (
    INIT_TIMED_OUT,
    NO_ANSWER,
    TIMED_OUT,
    TOO_LARGE,
    Failure,
    describe_failure,
    explain_end,
    fail,
)
from weft.agent.function.output import OutputReader
from weft.agent.function.runtime_api import Given, RuntimeApi
from weft.contracts.clock import Clock
from weft.contracts.driver.function import Instance, Recipe
from weft.protocol.invocations import InvocationAnswer, Invoke

log = logging.getLogger("weft.agent")
StartKind = Literal["warm", "pool", "clone", "cold"]


class InstanceListener(Protocol):
    """Receives each instance's events."""

    def on_up(self, running: RunningInstance) -> None:
        """It asks for its first invocation."""

    def on_answer(self, running: RunningInstance, answer: InvocationAnswer) -> None:
        """Its invocation has ended, with a result or an error."""

    def on_free(self, running: RunningInstance) -> None:
        """It can serve another invocation."""

    def on_over(self, running: RunningInstance, why: Failure) -> None:
        """It can't serve any more: stop it. Called once."""

    def on_printed(self, running: RunningInstance, text: bytes, invocation: str) -> None: ...


class RunningInstance:
    def __init__(
        self, id: str, recipe: Recipe, instance: Instance, listener: InstanceListener, clock: Clock, began: float
    ) -> None:
        self.id, self.recipe, self.instance = id, recipe, instance
        self.up = self.over = self.ended = False
        self.call: Invoke | None = None  # that it serves, or will serve as soon as it asks
        self.started: StartKind = getattr(instance, "started", "cold")
        self.init_seconds = 0.0
        self.most_memory = 0
        self._listener, self._clock, self._began = listener, clock, began
        self._loop = asyncio.get_running_loop()
        self._api = RuntimeApi(instance.runtime_api, self)
        self._printing = OutputReader(instance.output, self._on_printed)
        self._given_at = 0.0
        self._fresh = True  # the next answer reports how it started
        self._alarm: asyncio.TimerHandle | None = None
        self._held: InvocationAnswer | None = None  # waits for the output before it
        self._sending: asyncio.Task[None] | None = None
        self._asked = False  # for another invocation, while one is held
        self._waiting: asyncio.Task[None] | None = None
        self._init_failure: Failure | None = None

    async def begin(self, init_seconds: float) -> None:
        """Serve its Runtime API; it must ask for its first invocation within ``init_seconds``."""
        await self._api.open()
        self._printing.begin(init_seconds)
        self._waiting = asyncio.ensure_future(self._wait())
        self._alarm = self._loop.call_later(init_seconds, self._on_init_alarm, init_seconds)

    def give(self, call: Invoke) -> None:
        """Serve ``call``, now or when the instance asks."""
        self.call, self._given_at = call, self._clock.elapsed()
        self._printing.begin(call.seconds)
        self._set_alarm(call.seconds, self._on_alarm)
        deadline = self._clock.now() + call.seconds
        given = Given(call.id, call.payload, deadline, call.arn, call.client_context, call.traceparent)
        self._api.give(given)

    @property
    def begun(self) -> bool:
        """Whether the code has seen the invocation."""
        return self.call is not None and self._api.begun

    def end_call(self, failure: Failure) -> None:
        """End the invocation with ``failure``, unless its answer is here already; the caller stops the instance."""
        self._answer(failure.payload, failure.error_type)

    async def stop(self) -> None:
        """Stop it, and close its Runtime API and output."""
        self.over = True
        self._clear_alarm()
        if self._sending is not None:
            self._sending.cancel()
            self._send_held()
        self._printing.close()
        self._api.close()
        if self._waiting is not None:
            self._waiting.cancel()
        await self.instance.stop()

    async def measure(self) -> None:
        """Read its memory peak, for the next answer."""
        with contextlib.suppress(OSError):
            self.most_memory = await self.instance.most_memory()

    # --- the Runtime API's calls -------------------------------------------------------------------------------------

    def on_next(self) -> None:
        if self.over:
            return
        if not self.up:
            self.up, self.init_seconds = True, self._clock.elapsed() - self._began
            self._clear_alarm()
            self._listener.on_up(self)
        elif self._held is not None:
            self._asked = True
        elif self.call is not None:
            self._end(fail(NO_ANSWER, "the runtime asked for another invocation without answering this one"))
        else:
            self._listener.on_free(self)

    def on_answer(self, id: str, body: bytes, error_type: str | None) -> None:
        if self.over:
            return
        if error_type is None:
            self._answer(body, "")
        else:
            failure = describe_failure(body, error_type)
            self._answer(failure.payload, failure.error_type)

    def on_too_large(self, id: str) -> None:
        if not self.over:
            self._end(fail(TOO_LARGE, "the answer is larger than 6 MiB"))

    def on_init_error(self, body: bytes, error_type: str) -> None:
        self._init_failure = describe_failure(body, error_type)
        if not self.over and not self.up:
            self._end(self._init_failure)

    # --- time, output, end -------------------------------------------------------------------------------------------

    def _on_alarm(self) -> None:
        self._alarm = None
        seconds = self.call.seconds if self.call is not None else 0.0
        self._end(fail(TIMED_OUT, f"Task timed out after {seconds:.2f} seconds"))

    def _on_init_alarm(self, seconds: float) -> None:
        self._alarm = None
        self._end(fail(INIT_TIMED_OUT, f"the runtime was not ready within {seconds:g} seconds"))

    def _on_printed(self, text: bytes) -> None:
        self._listener.on_printed(self, text, self.call.id if self.call is not None else "")

    async def _wait(self) -> None:
        ended = await self.instance.wait()
        self.ended = True
        await self._clock.sleep(0)  # its last call may still be on its way through the loop
        if not self.over:
            self._end(self._init_failure or explain_end(ended, self.recipe))

    def _end(self, why: Failure) -> None:
        if self.over:
            return
        self.over = True
        self._clear_alarm()
        self._listener.on_over(self, why)

    def _answer(self, payload: bytes, error_type: str) -> None:
        call = self.call
        if call is None or self._held is not None:
            return
        self._clear_alarm()
        answer = InvocationAnswer(
            call.id,
            payload,
            error="Unhandled" if error_type else "",
            error_type=error_type,
            start=self.started if self._fresh else "warm",
            init_seconds=self.init_seconds if self._fresh else 0.0,
            seconds=self._clock.elapsed() - self._given_at if self._given_at else 0.0,
            most_memory=self.most_memory,
        )
        self._fresh = False
        self._held = answer
        if call.tail and not self.over:
            self._sending = asyncio.ensure_future(self._send_flushed())
        else:
            self._send_held()

    async def _send_flushed(self) -> None:
        await self.instance.flush()
        self._send_held()

    def _send_held(self) -> None:
        call, answer = self.call, self._held
        if call is None or answer is None:
            return
        tail = self._printing.tail()
        self.call = self._held = None
        self._listener.on_answer(self, msgspec.structs.replace(answer, tail=tail) if call.tail else answer)
        if self._asked:
            self._asked = False
            self.on_next()

    def set_used(self) -> None:
        """It started for no invocation: the next one finds it warm."""
        self._fresh = False

    def _set_alarm(self, seconds: float, call: Callable[[], None]) -> None:
        self._clear_alarm()
        self._alarm = self._loop.call_later(max(0.0, seconds), call)

    def _clear_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
