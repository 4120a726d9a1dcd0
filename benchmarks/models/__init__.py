"""How soon a device hears what a model decides about what it said: device → broker → gateway, model, gateway → broker → device."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import uvloop

from benchmarks.measurement import ROOT, Figure, Measurement
from benchmarks.models.fleet import DEVICE, PASSWORD, Outcome
from weft.drivers.device.mqtt.packets import (
    CONNACK,
    PUBLISH,
    SUBACK,
    Reader,
    read_publish,
    write_connect,
    write_puback,
    write_publish,
    write_subscribe,
)

TIMES, WARM = 3000, 200
PAUSE_SECONDS = 0.002  # between an answer and the next message
PATIENCE_SECONDS = 60.0
MISS_SECONDS = 1.0  # that the device waits for a command
GOAL_MS = 10.0
BUSY = "while True: pass"


class Fridge(asyncio.Protocol):
    """A device that reports, and hears what it is told."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.is_in: asyncio.Future[int] = loop.create_future()
        self.is_subscribed: asyncio.Future[None] = loop.create_future()
        self.reader, self.heard, self.wanted = Reader(), asyncio.Event(), 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        self.transport.write(write_connect(DEVICE, f"default.{DEVICE}", PASSWORD, keep_alive=0, session_seconds=0))

    def data_received(self, data: bytes) -> None:
        for kind, flags, body in self.reader.feed(data):
            if kind == CONNACK:
                self.is_in.set_result(body[1])
                self.transport.write(write_subscribe(1, [f"weft/default/{DEVICE}/command"]))
            elif kind == SUBACK:
                self.is_subscribed.set_result(None)
            elif kind == PUBLISH:
                message = read_publish(flags, body)
                if message.id:
                    self.transport.write(write_puback(message.id))
                if msgspec.json.decode(message.payload)["set"].get("setpoint") == self.wanted:
                    self.heard.set()

    async def ask(self, number: int) -> float:
        """Report another temperature, beside the setpoint of the last command; the seconds until the command for it is here,
        endless if the model missed its deadline: there is no fallback."""
        heat, before = float(number), self.wanted
        self.wanted = 2 * heat + 1
        self.heard.clear()
        payload = msgspec.json.encode({"temperature": heat, "setpoint": before})
        began = time.monotonic()
        self.transport.write(write_publish(f"weft/default/{DEVICE}/reported", payload, id=number % 65_535 + 1))
        try:
            async with asyncio.timeout(MISS_SECONDS):
                await self.heard.wait()
        except TimeoutError:
            self.wanted = before
            return math.inf
        return time.monotonic() - began


async def run(process: subprocess.Popen[bytes], port: int) -> tuple[list[float], Outcome]:
    assert process.stdin is not None and process.stdout is not None
    _, fridge = await asyncio.get_running_loop().create_connection(functools.partial(Fridge), "127.0.0.1", port)
    async with asyncio.timeout(PATIENCE_SECONDS):
        if await fridge.is_in:
            raise SystemExit("the broker refuses the device")
        await fridge.is_subscribed
    took = []
    for number in range(WARM + TIMES):
        took.append(await fridge.ask(number + 1))
        await asyncio.sleep(PAUSE_SECONDS)
    process.stdin.write(b"end\n")
    process.stdin.flush()
    outcome = msgspec.json.decode(await asyncio.to_thread(process.stdout.readline), type=Outcome)
    fridge.transport.close()
    return sorted(took[WARM:]), outcome


def run_once() -> tuple[list[float], Outcome]:
    folder = Path(tempfile.mkdtemp(prefix="weft-edge-"))
    folder.chmod(0o711)  # Mosquitto's user goes through it
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "benchmarks.models.gateway_process", str(folder), str(port)]
    process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    busy = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise SystemExit("the gateway doesn't start")
        result = uvloop.run(run(process, port))
        process.stdin.close()
        process.wait(PATIENCE_SECONDS)
        return result
    finally:
        busy.kill()
        busy.wait()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.terminate()
            process.wait(PATIENCE_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def measure() -> Measurement:
    took, outcome = run_once()
    middle, slow, slowest = (took[at] * 1000 for at in (len(took) // 2, len(took) * 99 // 100, -1))
    misses = outcome.late + outcome.nan + outcome.dead
    return Measurement(
        "models",
        f"A device reports a value {TIMES} times, one after the other, and waits for the command that a model (ONNX, in its own"
        " process) decides on within 8 ms; over Mosquitto, QoS 1, without a server, beside a process that keeps a core busy.",
        [
            Figure(
                "from the report to the command, both at the device",
                f"p50 {middle:.1f} ms, p99 {slow:.1f} ms, slowest {slowest:.0f} ms",
                goal=f"p99 ≤ {GOAL_MS:.0f} ms",
                kept=slow <= GOAL_MS,
            ),
            Figure("of these, from the values to the answer, in the gateway", f"p99 {outcome.p99_ms:.1f} ms"),
            Figure(
                "decided by the model",
                f"{outcome.runs - misses} of {outcome.runs}; late {outcome.late}, no number {outcome.nan}, dead {outcome.dead}",
            ),
            Figure(
                "resident",
                f"process of models {outcome.runner_resident / 1024:.1f} MB, gateway {outcome.resident / 1024:.1f} MB",
            ),
        ],
    )
