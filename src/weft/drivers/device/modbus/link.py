"""One connection to a Modbus TCP server, which may stand for many devices. Requests go one after another, as the protocol wants."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException

from weft.contracts.clock import Clock
from weft.drivers.device.address import find_address
from weft.drivers.device.modbus.points import BITS, Block
from weft.objects.errors import TimedOut, Unavailable

ANSWER_SECONDS = 3.0
REFUSED_SECONDS = 1.0  # after a connection that failed: who asks meanwhile gets the same answer
ILLEGAL_ADDRESS = 2
_EXCEPTIONS = {
    1: "it doesn't know the request",
    ILLEGAL_ADDRESS: "it has no such register",
    3: "it refuses the value",
    4: "it has failed",
    6: "it is busy",
    10: "its gateway has no way to it",
    11: "it doesn't answer its gateway",
}
# What is wrong with an answer is told to the listener, in words; the package's own lines would fill the log.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)


class ModbusRefused(Unavailable):
    """The device answered with an exception: ``code`` is the protocol's."""

    def __init__(self, code: int) -> None:
        super().__init__(_EXCEPTIONS.get(code, f"it answers with the exception {code}"))
        self.code = code


class ModbusLink:
    """``local``: it may lead to this machine, see ``find_address``."""

    def __init__(
        self, host: str, port: int, clock: Clock, *, local: bool, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        self._answer_seconds = answer_seconds
        self._host, self._port, self._clock, self._local = host, port, clock, local
        self._client: AsyncModbusTcpClient | None = None
        self._lock = asyncio.Lock()
        self._problem = ""
        self._failed_at = 0.0

    async def read(self, block: Block, unit: int) -> list[int]:
        """Read the registers, 0 up to 65535 each, or the bits, 0 or 1. Raises Unavailable, or its subclass ModbusRefused where the
        device refuses."""

        def ask(client: AsyncModbusTcpClient) -> Awaitable[Any]:
            by_table: dict[str, Callable[..., Awaitable[Any]]] = {
                "coil": client.read_coils,
                "discrete": client.read_discrete_inputs,
                "holding": client.read_holding_registers,
                "input": client.read_input_registers,
            }
            return by_table[block.table](block.address, count=block.size, device_id=unit)

        answer = await self._ask(ask, self._answer_seconds)
        found = answer.bits if block.table in BITS else answer.registers
        enough = len(found) >= block.size if block.table in BITS else len(found) == block.size  # bits come in eights
        if not enough:
            await self.drop()
            raise Unavailable(f"it lies: asked for {block.size}, it answers with {len(found)}")
        return [int(one) for one in found[: block.size]]

    async def write(self, table: str, address: int, words: list[int], unit: int, seconds: float) -> None:
        """Write a bit, or registers, not later than ``seconds`` from now. Raises Unavailable, ModbusRefused, TimedOut."""

        def ask(client: AsyncModbusTcpClient) -> Any:
            if table == "coil":
                return client.write_coil(address, bool(words[0]), device_id=unit)
            if len(words) == 1:  # the request that each device knows
                return client.write_register(address, words[0], device_id=unit)
            return client.write_registers(address, words, device_id=unit)

        await self._ask(ask, seconds, is_write=True)

    async def drop(self) -> None:
        """The next request begins with a new connection."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    async def _ask(self, ask: Callable[[AsyncModbusTcpClient], Any], seconds: float, *, is_write: bool = False) -> Any:
        if self._problem and self._clock.elapsed() - self._failed_at < REFUSED_SECONDS:
            raise Unavailable(self._problem)
        until = self._clock.elapsed() + seconds
        try:
            async with asyncio.timeout(seconds if is_write else None):
                await self._lock.acquire()
        except TimeoutError:
            raise TimedOut("its time was up before the device could be asked") from None
        try:
            client = await self._connect()
            left = until - self._clock.elapsed() if is_write else self._answer_seconds
            if left <= 0:
                raise TimedOut("its time was up before the device could be asked")
            async with asyncio.timeout(min(left, self._answer_seconds)):
                answer = await ask(client)
        except BaseException as failure:
            await self.drop()  # what comes late would be taken for the answer of the next one
            if isinstance(failure, TimeoutError):
                raise Unavailable(f"{self._host}:{self._port} doesn't answer in time") from None
            if isinstance(failure, (ModbusException, OSError)):
                raise Unavailable(f"{self._host}:{self._port} doesn't answer: {_first_line(failure)}") from None
            if isinstance(
                failure, (ValueError, IndexError, KeyError, AttributeError, TypeError)
            ):  # the package met nonsense
                raise Unavailable(f"{self._host}:{self._port} answers with something else than Modbus") from None
            raise
        finally:
            self._lock.release()
        if answer.isError():
            raise ModbusRefused(int(getattr(answer, "exception_code", 0)))
        return answer

    async def _connect(self) -> AsyncModbusTcpClient:
        if self._client is not None and self._client.connected:
            return self._client
        try:
            address = await find_address(self._host, self._port, local=self._local)
            client = AsyncModbusTcpClient(
                address, port=self._port, timeout=self._answer_seconds, retries=0, reconnect_delay=0, name=self._host
            )
            if not await client.connect():
                client.close()
                raise Unavailable(f"{self._host}:{self._port} can't be connected to")
        except Unavailable as problem:
            self._problem, self._failed_at = problem.message, self._clock.elapsed()
            raise
        self._problem, self._client = "", client
        return client


def _first_line(failure: BaseException) -> str:
    return str(failure).splitlines()[0][:120] if str(failure) else type(failure).__name__
