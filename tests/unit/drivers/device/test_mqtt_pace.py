"""How the MQTT client takes messages that come fast: together, so that each costs less, and none waits long."""

from __future__ import annotations

import asyncio

from weft.contracts.clock import SystemClock
from weft.drivers.device.mqtt.client import BUSY_MESSAGES, BUSY_SECONDS, Login, MqttClient, MqttLogin, Pace
from weft.drivers.device.mqtt.packets import Publish, write_puback, write_publish


class _Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_paused = False
        self.resumed = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False
        self.resumed.set()

    def abort(self) -> None: ...


def test_a_pace_is_fast_from_the_message_on_that_is_too_many_until_fewer_come() -> None:
    pace = Pace()
    for number in range(BUSY_MESSAGES - 1):
        pace.note(1, 100 + number / 1e6)
    assert not pace.is_busy
    pace.note(1, 100.001)
    assert pace.is_busy
    pace.note(1, 100 + BUSY_SECONDS)
    assert pace.is_busy  # the time before was full
    pace.note(1, 100 + 2 * BUSY_SECONDS)
    assert not pace.is_busy
    pace.note(BUSY_MESSAGES - 1, 200)  # as many in a second as before in a moment
    pace.note(1, 201)
    assert not pace.is_busy


async def test_messages_that_come_fast_are_acknowledged_in_one_write_and_then_the_client_rests() -> None:
    heard: list[Publish] = []
    client = MqttClient("c", lambda: MqttLogin(("", 0), "u", "p"), [], heard.append, SystemClock())
    login, transport = Login(client), _Transport()
    login.connection_made(transport)
    login.data_received(write_publish("t", b"one", id=1))
    assert not transport.is_paused and transport.written == [write_puback(1)]
    login.data_received(b"".join(write_publish("t", b"x", id=id) for id in range(2, BUSY_MESSAGES + 2)))
    assert transport.written[1:] == [b"".join(map(write_puback, range(2, BUSY_MESSAGES + 2)))]
    assert len(heard) == BUSY_MESSAGES + 1 and transport.is_paused
    async with asyncio.timeout(60):
        await transport.resumed.wait()
    assert not transport.is_paused
    login.end("")
