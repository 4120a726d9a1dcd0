"""1,000 devices that send 10,000 messages a second to one gateway: whether all come, how soon, and what that costs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import uvloop

from benchmarks.devices.fleet import PASSWORD, Outcome, name_device
from benchmarks.measurement import ROOT, Figure, Measurement
from weft.drivers.device.mqtt.packets import CONNACK, PUBACK, Reader, write_connect, write_publish

DEVICES, RATE, SECONDS = 1000, 10_000, 20.0
WARM_SECONDS = 3.0
STEP_SECONDS = 0.002
TOGETHER = 50  # connections that are made together
PATIENCE_SECONDS = 60.0
GOAL_MS, GOAL_CPU, GOAL_MB = 50.0, 25.0, 60.0


class Sensor(asyncio.Protocol):
    """One device's connection; QoS 1."""

    def __init__(self, number: int) -> None:
        self.name = name_device(number)
        self.topic = f"weft/default/{self.name}/reported"
        self.is_in = asyncio.get_running_loop().create_future()
        self.reader, self.sent, self.acknowledged = Reader(), 0, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport
        self.transport.write(
            write_connect(self.name, f"default.{self.name}", PASSWORD, keep_alive=0, session_seconds=0)
        )

    def data_received(self, data: bytes) -> None:
        for kind, _, body in self.reader.feed(data):
            if kind == CONNACK:
                self.is_in.set_result(body[1])
            elif kind == PUBACK:
                self.acknowledged += 1

    def send(self) -> None:
        self.sent += 1
        heat = 4.0 + self.sent % 10 / 10
        payload = f'{{"temperature":{heat},"fan":false,"sent":{time.monotonic()}}}'.encode()
        self.transport.write(write_publish(self.topic, payload, id=self.sent % 65_535 + 1))


async def send_all(sensors: list[Sensor], seconds: float) -> float:
    """RATE messages a second, in turn; what a step is late is made up at twice the pace: no flood when this process had to wait.
    Returns the seconds that it took."""
    begun, sent, all_of_them = time.monotonic(), 0, int(RATE * seconds)
    while sent < all_of_them:
        due = min(all_of_them, int((time.monotonic() - begun) * RATE), sent + int(2 * RATE * STEP_SECONDS))
        for number in range(sent, due):
            sensors[number % len(sensors)].send()
        sent = due
        await asyncio.sleep(STEP_SECONDS)
    took = time.monotonic() - begun
    async with asyncio.timeout(PATIENCE_SECONDS):
        while any(one.acknowledged < one.sent for one in sensors):
            await asyncio.sleep(0.05)
    return took


async def run(process: subprocess.Popen[bytes], port: int) -> tuple[Outcome, float]:
    assert process.stdin is not None and process.stdout is not None
    loop = asyncio.get_running_loop()
    sensors: list[Sensor] = []
    for first in range(0, DEVICES, TOGETHER):
        made = [
            loop.create_connection(functools.partial(Sensor, n), "127.0.0.1", port)
            for n in range(first, first + TOGETHER)
        ]
        group = [one for _, one in await asyncio.gather(*made)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            if any([await one.is_in for one in group]):
                raise SystemExit("the broker refuses a device")
        sensors += group
    await send_all(sensors, WARM_SECONDS)
    await asyncio.sleep(1.0)
    process.stdin.write(b"begin\n")
    process.stdin.flush()
    if await asyncio.to_thread(process.stdout.readline) != b"begun\n":
        raise SystemExit("the gateway has ended")
    took = await send_all(sensors, SECONDS)
    await asyncio.sleep(1.0)
    process.stdin.write(b"end\n")
    process.stdin.flush()
    outcome = msgspec.json.decode(await asyncio.to_thread(process.stdout.readline), type=Outcome)
    for one in sensors:
        one.transport.close()
    return outcome, took


def run_with(rules: int) -> tuple[Outcome, float]:
    folder = Path(tempfile.mkdtemp(prefix="weft-edge-"))
    folder.chmod(0o711)  # Mosquitto's user goes through it
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    argv = [
        sys.executable,
        "-m",
        "benchmarks.devices.gateway_process",
        str(folder),
        str(port),
        str(DEVICES),
        str(rules),
    ]
    process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise SystemExit("the gateway doesn't start")
        outcome = uvloop.run(run(process, port))
        process.stdin.close()
        process.wait(PATIENCE_SECONDS)
        return outcome
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.terminate()
            process.wait(PATIENCE_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def describe(what: str, one: Outcome, took: float) -> list[Figure]:
    sent = int(RATE * SECONDS)
    cpu, broker_cpu = (100 * used / took for used in (one.cpu, one.broker_cpu))
    resident, broker_resident = one.resident / 1024, one.broker_resident / 1024
    return [
        Figure(
            f"{what}: taken",
            f"{one.messages} of {sent} in {took:.1f} s, {one.refused} refused",
            goal="all",
            kept=one.messages == sent and not one.refused,
        ),
        Figure(
            f"{what}: from device to twin",
            f"p50 {one.middle * 1000:.1f} ms, p99 {one.slow * 1000:.1f} ms, slowest {one.slowest * 1000:.0f} ms",
            goal=f"p99 ≤ {GOAL_MS:.0f} ms",
            kept=one.slow * 1000 <= GOAL_MS,
        ),
        Figure(
            f"{what}: of a core",
            f"gateway {cpu:.0f} %, broker {broker_cpu:.0f} %",
            goal=f"gateway ≤ {GOAL_CPU:.0f} %",
            kept=cpu <= GOAL_CPU,
        ),
        Figure(
            f"{what}: resident",
            f"gateway {resident:.1f} MB, broker {broker_resident:.1f} MB",
            goal=f"gateway ≤ {GOAL_MB:.0f} MB",
            kept=resident <= GOAL_MB,
        ),
    ]


def measure() -> Measurement:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    figures = [*describe("no rules", *run_with(0)), *describe("three rules for each", *run_with(3))]
    return Measurement(
        "devices",
        f"{DEVICES} devices send {RATE} messages a second (QoS 1) for {SECONDS:.0f} s to one gateway, each with three properties,"
        " one of which has a window. Devices, broker and gateway share the machine; without a server.",
        figures,
    )
