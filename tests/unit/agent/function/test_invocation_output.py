"""What an answer tells of what was printed: all of it that came before, also where that comes another way and later."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from weft.agent.function.failures import MOST_TYPE, Failure, describe_failure, fail
from weft.agent.function.instance import RunningInstance
from weft.contracts.clock import SystemClock
from weft.contracts.driver.function import Recipe
from weft.contracts.driver.sandbox import Ended
from weft.protocol.invocations import InvocationAnswer, Invoke

RECIPE = Recipe(digest="d", function="uid", project="p", name="hello")


class LateInstance:
    """What it prints arrives when ``flush`` says so: once ``late`` is set."""

    def __init__(self) -> None:
        self.id = "one"
        self.runtime_api = socket.create_server(("127.0.0.1", 0))
        self.runtime_api.setblocking(False)
        self.output, self.printing = os.pipe2(os.O_NONBLOCK)
        self.late = asyncio.Event()

    async def wait(self) -> Ended:
        await asyncio.sleep(600)
        return Ended()

    async def freeze(self) -> None: ...

    async def resume(self) -> None: ...

    async def stop(self) -> None: ...

    async def flush(self) -> None:
        await self.late.wait()
        os.write(self.printing, b"the last word\n")

    async def most_memory(self) -> int:
        return 0


class RecordedInvocations:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.answers: list[InvocationAnswer] = []

    def on_up(self, running: RunningInstance) -> None:
        self.told.append("up")

    def on_answer(self, running: RunningInstance, answer: InvocationAnswer) -> None:
        self.told.append("answer")
        self.answers.append(answer)

    def on_free(self, running: RunningInstance) -> None:
        self.told.append("free")

    def on_over(self, running: RunningInstance, why: Failure) -> None:
        self.told.append(f"over {why.error_type}")

    def on_printed(self, running: RunningInstance, text: bytes, invocation: str) -> None:
        self.told.append(f"printed {invocation}")


@asynccontextmanager
async def answered(*, tail: bool) -> AsyncIterator[tuple[RecordedInvocations, LateInstance, RunningInstance]]:
    """An instance that has answered its call, and asked for the next."""
    keeper, instance = RecordedInvocations(), LateInstance()
    running = RunningInstance("one", RECIPE, instance, keeper, SystemClock(), 0.0)
    await running.begin(30.0)
    reader, writer = await asyncio.open_connection(*instance.runtime_api.getsockname())
    asks = b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\n\r\n"
    writer.write(asks)
    while keeper.told != ["up"]:
        await asyncio.sleep(0)
    running.give(Invoke("1", "d", b"{}", 30.0, tail=tail))
    await reader.readuntil(b"{}")
    writer.write(b"POST /2018-06-01/runtime/invocation/1/response HTTP/1.1\r\nContent-Length: 2\r\n\r\n42" + asks)
    await reader.readuntil(b'"OK"}\n')
    try:
        yield keeper, instance, running
    finally:
        await running.stop()
        writer.close()


async def test_an_answer_that_is_to_tell_what_was_printed_waits_for_it_and_no_call_comes_between() -> None:
    async with answered(tail=True) as (keeper, instance, _):
        assert keeper.told == ["up"]
        instance.late.set()
        while keeper.told[-1] != "free":
            await asyncio.sleep(0)
        assert keeper.told == ["up", "printed 1", "answer", "free"]
        (answer,) = keeper.answers
        assert (answer.payload, answer.tail) == (b"42", b"the last word\n")


async def test_nobody_else_waits() -> None:
    async with answered(tail=False) as (keeper, _, _running):
        while keeper.told[-1] != "free":
            await asyncio.sleep(0)
        assert keeper.told == ["up", "answer", "free"]


async def test_an_instance_that_ends_meanwhile_has_answered_all_the_same() -> None:
    async with answered(tail=True) as (keeper, _, running):
        running.over = True
        running.end_call(fail("Function.Reclaimed", "its room was needed"))
        await running.stop()
        (answer,) = keeper.answers
        assert (answer.payload, answer.error, keeper.told) == (b"42", "", ["up", "answer"])


def test_an_error_s_type_is_the_code_s_own_word_and_short() -> None:
    """It becomes the reason of the function, which everybody who watches it gets."""
    assert describe_failure(b'{"errorType": "ValueError"}', "").error_type == "ValueError"
    assert len(describe_failure(b'{"errorType": "%s"}' % (b"x" * 100_000), "").error_type) == MOST_TYPE
    assert describe_failure(b"[" * 100_000, "").error_type == "Runtime.Unknown"
