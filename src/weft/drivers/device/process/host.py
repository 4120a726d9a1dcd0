"""The driver's side: serves one driver's contract over a socket, and ends with it."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import threading
from collections.abc import Mapping

from weft.contracts.device import DeviceDriver, Value
from weft.drivers.device.process.messages import Call, DriverAnswer, Note, answer_error, frame, read_call, read_frame
from weft.objects.errors import InvalidInput

MOST_MEMORY = 1 << 30  # of the process: what a peer sends can't take the machine's
MOST_UNSENT = 1 << 20
PARENT_SECONDS = 2.0


def confine() -> None:
    """Bound this process' memory, and end it when its parent has ended, also while it is busy."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MOST_MEMORY if hard == resource.RLIM_INFINITY else min(MOST_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    parent = os.getppid()

    pause = threading.Event()

    def watch() -> None:
        while os.getppid() == parent:
            pause.wait(PARENT_SECONDS)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


class _Listener:
    """A listener that passes what the driver hears to the gateway. While that doesn't read, values are dropped: the next ones are
    newer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def note_values(self, uid: str, values: Mapping[str, Value]) -> None:
        self._send(Note("values", uid, dict(values)))

    def note_event(self, uid: str, event: Mapping[str, Value]) -> None:
        self._send(Note("event", uid, dict(event)))

    def note_refused(self, uid: str, reason: str, name: str = "") -> None:
        self._send(Note("refused", uid, words=reason, name=name))

    def note_reach(self, uid: str, problem: str) -> None:
        self._send(Note("reach", uid, words=problem))

    def note_line(self, problem: str) -> None:
        self._send(Note("line", words=problem))

    def _send(self, message: Note) -> None:
        if self._writer.transport.get_write_buffer_size() < MOST_UNSENT or message.about in ("reach", "line"):
            self._writer.write(frame(message))


async def serve(driver: DeviceDriver, descriptor: int) -> None:
    """Serve the driver until the gateway closes the socket."""
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=descriptor))
    tasks: set[asyncio.Task[None]] = set()
    while body := await read_frame(reader):
        call = read_call(body)
        if call.do == "observe":
            driver.observe(_Listener(writer))
        elif call.do in ("connect", "disconnect"):  # in their order
            await _answer(driver, call, writer)
        else:
            task = asyncio.create_task(_answer(driver, call, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    for task in list(tasks):
        task.cancel()
    await driver.close()


async def _answer(driver: DeviceDriver, call: Call, writer: asyncio.StreamWriter) -> None:
    try:
        answer = await _perform(driver, call)
    except Exception as failure:  # what a package raises is its own; the gateway gets words
        answer = answer_error(call.number, failure)
    writer.write(frame(answer))


async def _perform(driver: DeviceDriver, call: Call) -> DriverAnswer:
    match call.do:
        case "probe":
            return DriverAnswer(call.number, await driver.probe())
        case "discover":
            return DriverAnswer(call.number, found=await driver.discover())
        case "connect" if call.thing is not None:
            await driver.connect(call.thing)
        case "disconnect":
            await driver.disconnect(call.uid)
        case "read":
            return DriverAnswer(call.number, values=await driver.read(call.uid, call.names))
        case "write":
            await driver.write(call.uid, call.id, call.values, call.seconds)
        case _:
            raise InvalidInput(f"{call.do[:40]!r} is not a call")
    return DriverAnswer(call.number)
