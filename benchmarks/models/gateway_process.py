"""The gateway's heart with its broker and a model, as ``weft edge gateway`` wires them, without a server.

``python -m benchmarks.models.gateway_process FOLDER PORT``. It prints ``ready`` when the model runs; a line of its input ends the
count with a line of JSON (Outcome).
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec
from tests.onnx_files import digest, linear

import weft.launch.edge.main  # noqa: F401  # for what it loads: it is in the memory
from benchmarks.models.fleet import DEVICE, PASSWORD, Outcome
from weft.contracts.clock import SystemClock
from weft.contracts.edge.model_runner import ModelFile
from weft.drivers.device.mqtt.client import MqttLogin
from weft.drivers.device.mqtt.driver import MqttDriver
from weft.drivers.model.supervisor import ModelSupervisor
from weft.edge.broker.broker import Broker
from weft.edge.broker.config import GATEWAY, Bounds, Listening, make_username
from weft.edge.device.model import Device, Model, Property
from weft.edge.device.store import TwinStore
from weft.edge.gateway import DeviceGateway
from weft.edge.model.engine import DecisionModel, DecisionOutcome, Fallback
from weft.launch.edge.models import make_model_command

MODEL = Model({"temperature": Property(), "setpoint": Property()})


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


async def serve(folder: Path, port: int) -> None:
    clock = SystemClock()
    broker = Broker(folder / "broker", Listening(port=port), Bounds(), clock)
    hashed = broker.renew_hash("", PASSWORD)
    broker.put_devices([("default", DEVICE)], {make_username("default", DEVICE): hashed})
    driver = MqttDriver(lambda: MqttLogin(broker.path, GATEWAY, broker.password), clock)
    supervisor = ModelSupervisor(make_model_command, clock)
    gateway = DeviceGateway({"mqtt": driver}, TwinStore(folder), clock, rate=1000.0, runner=supervisor)
    await gateway.put_devices({"u": Device("u", "default", DEVICE, "cold")}, {("default", "cold"): MODEL})
    path = folder / "double.onnx"
    path.write_bytes(linear([2.0], 1.0))
    file = ModelFile(digest(path.read_bytes()), 1, path=str(path))
    model = DecisionModel("m", "default", "double", file, ("temperature",), DecisionOutcome(set="setpoint"), Fallback())
    gateway.put_models({"m": (model, ["u"])})
    works = [asyncio.create_task(broker.keep()), asyncio.create_task(gateway.run())]
    while gateway.lines.get("mqtt") != "" or not gateway.models.list_ran(clock.elapsed())[0].file:
        await asyncio.sleep(0.05)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print("ready", flush=True)
    await lines.readline()
    [ran] = gateway.models.list_ran(clock.elapsed())
    outcome = Outcome(
        ran.runs, ran.late, ran.nan, ran.dead, ran.p99_ms or 0.0, _resident(os.getpid()), _resident(supervisor.pid)
    )
    print(msgspec.json.encode(outcome).decode(), flush=True)
    for work in works:
        work.cancel()
    await asyncio.gather(*works, return_exceptions=True)
    await driver.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
