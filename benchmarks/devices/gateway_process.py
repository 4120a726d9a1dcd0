"""The gateway's heart with its broker in a process of its own, as ``weft edge gateway`` wires it, without a server.

``python -m benchmarks.devices.gateway_process FOLDER PORT DEVICES RULES``. It prints ``ready``; each line of its input begins a
time in which it counts, and the next one ends it with a line of JSON (Outcome).
"""

from __future__ import annotations

import array
import asyncio
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

import weft.launch.edge.main  # noqa: F401  # for what it loads: it is in the memory
from benchmarks.devices.fleet import PASSWORD, Outcome, name_device
from weft.contracts.clock import SystemClock
from weft.contracts.device import Value
from weft.drivers.device.mqtt.client import MqttLogin
from weft.drivers.device.mqtt.driver import MqttDriver
from weft.edge.broker.broker import Broker
from weft.edge.broker.config import GATEWAY, Bounds, Listening, make_username
from weft.edge.device.model import Device, Model, Property, SamplingWindow
from weft.edge.device.store import TwinStore
from weft.edge.gateway import DeviceGateway
from weft.edge.rule.engine import Effect, Rule

MODEL = Model(
    {
        "temperature": Property(minimum=-40, maximum=85, windows=(SamplingWindow(60, ("mean", "max")),)),
        "fan": Property(type="boolean"),
        "sent": Property(),
    }
)


class CountingGateway(DeviceGateway):
    """Notes how old each message is when all was done that it causes."""

    ages = array.array("d")

    def note_values(self, uid: str, values: Mapping[str, Value]) -> None:
        super().note_values(uid, values)
        self.ages.append(time.monotonic() - float(values["sent"]))


def _resident(pid: int) -> int:
    words = Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()
    return int(words[0])


def _cpu(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


async def serve(folder: Path, port: int, count: int, rules: int) -> None:
    clock = SystemClock()
    broker = Broker(folder / "broker", Listening(port=port), Bounds(), clock)
    hashed = broker.renew_hash("", PASSWORD)
    names = [name_device(number) for number in range(count)]
    broker.put_devices(
        [("default", name) for name in names], {make_username("default", name): hashed for name in names}
    )
    driver = MqttDriver(lambda: MqttLogin(broker.path, GATEWAY, broker.password), clock)
    gateway = CountingGateway({"mqtt": driver}, TwinStore(folder), clock)
    devices = {f"uid-{name}": Device(f"uid-{name}", "default", name, "cold") for name in names}
    await gateway.put_devices(devices, {("default", "cold"): MODEL})
    then = (Effect(set={"fan": True}, expires_seconds=60.0),)
    gateway.put_rules(
        {
            f"r{number}": (
                Rule(f"r{number}", "default", f"warm-{number}", f"temperature > {80 + number} and not fan", then=then),
                list(devices),
            )
            for number in range(rules)
        }
    )
    works = [asyncio.create_task(broker.keep()), asyncio.create_task(gateway.run())]
    while gateway.lines.get("mqtt") != "":
        await asyncio.sleep(0.05)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print("ready", flush=True)
    while await lines.readline():
        del gateway.ages[:]
        cpu, broker_cpu = time.process_time(), _cpu(broker.pid)
        print("begun", flush=True)
        await lines.readline()
        ages = sorted(gateway.ages)
        outcome = Outcome(
            len(ages),
            ages[len(ages) // 2],
            ages[len(ages) * 99 // 100],
            ages[-1],
            time.process_time() - cpu,
            _cpu(broker.pid) - broker_cpu,
            _resident(os.getpid()),
            _resident(broker.pid),
            sum(one.count for one in gateway.fired.values()),
            sum(sum(twin.refused.values()) for twin in gateway.twins.values()) + sum(gateway.refused.values()),
        )
        print(msgspec.json.encode(outcome).decode(), flush=True)
    for work in works:
        work.cancel()
    await asyncio.gather(*works, return_exceptions=True)
    await driver.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:])))
