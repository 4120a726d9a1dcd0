"""What QEMU answers, and who still waits for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from weft.drivers.runtime.qemu.qmp import Qmp, connect_qmp


@pytest.fixture
async def qmp(tmp_path: Path) -> AsyncIterator[Qmp]:
    """A monitor that answers everything at once."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"QMP": {}}\n')
        while line := await reader.readline():
            writer.write(json.dumps({"return": {}, "id": json.loads(line)["id"]}).encode() + b"\n")
        writer.close()

    server = await asyncio.start_unix_server(answer, tmp_path / "qmp")
    made = await connect_qmp(str(tmp_path / "qmp"))
    yield made
    made.close()
    server.close()


async def test_who_is_cancelled_while_the_answer_comes_is_cancelled(qmp: Qmp) -> None:
    asked = asyncio.ensure_future(qmp.execute("query-migrate"))
    while not any(waiting.done() for waiting in qmp._waiting.values()):
        await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
