"""Commands over a real qemu-guest-agent, run on this machine instead of in a guest."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.driver.runtime import ExecRequest
from weft.drivers.runtime.qemu.guest_agent.qemu_agent import INPUT_BYTES, QemuAgent, connect_agent
from weft.objects.errors import DriverFailed, InvalidInput, TooLarge, Unavailable

pytestmark = pytest.mark.skipif(shutil.which("qemu-ga") is None, reason="needs qemu-guest-agent")


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[QemuAgent]:
    path = tmp_path / "agent.sock"
    argv = ["qemu-ga", "--method", "unix-listen", "--path", str(path), "--statedir", str(tmp_path)]
    argv += ["--logfile", str(tmp_path / "log"), "--pidfile", str(tmp_path / "pid")]
    process = subprocess.Popen(argv)
    try:
        connected = None
        async with asyncio.timeout(60):
            while connected is None:
                try:
                    connected = await connect_agent(str(path), SystemClock(), lambda agent: None)
                except (FileNotFoundError, ConnectionRefusedError):  # the socket is there before anyone listens
                    await asyncio.sleep(0.02)
        yield connected
        connected.close()
    finally:
        process.kill()
        process.wait()


async def run(
    agent: QemuAgent, *argv: str, stdin: bytes | None = b"", **more: object
) -> tuple[bytes, bytes, int | None, int | None]:
    session = agent.exec(ExecRequest(argv=list(argv), **more))  # type: ignore[arg-type]
    if stdin is not None:
        await session.write(stdin)
        await session.close_stdin()
    out = {"stdout": b"", "stderr": b""}
    async for chunk in session.output():
        if chunk.channel == "exit":
            return out["stdout"], out["stderr"], chunk.code, chunk.signal
        out[chunk.channel] += chunk.data
    raise AssertionError("a session without an end")


async def test_outputs_and_the_code_come_back_apart(agent: QemuAgent) -> None:
    assert await run(agent, "sh", "-c", "echo out; echo err >&2; exit 7") == (b"out\n", b"err\n", 7, None)


async def test_a_signal_is_told_as_a_signal(agent: QemuAgent) -> None:
    _, _, code, signal = await run(agent, "sh", "-c", "kill -9 $$")
    assert (code, signal) == (None, 9)


async def test_a_command_gets_its_input_folder_and_variables(agent: QemuAgent, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4000
    assert (await run(agent, "cat", stdin=data))[0] == data
    out, _, _, _ = await run(agent, "sh", "-c", 'pwd; echo "$COLOUR"', cwd=str(tmp_path), env={"COLOUR": "dark blue"})
    assert out.decode() == f"{tmp_path}\ndark blue\n"


async def test_an_open_keyboard_holds_no_command_up(agent: QemuAgent) -> None:
    assert (await run(agent, "echo", "begun", stdin=None))[0] == b"begun\n"


async def test_what_it_can_not_do_is_refused_by_name(agent: QemuAgent) -> None:
    with pytest.raises(InvalidInput, match="no terminals"):
        agent.exec(ExecRequest(argv=["sh"], tty=True))
    session = agent.exec(ExecRequest(argv=["cat"]))
    with pytest.raises(TooLarge, match="8 MiB"):
        await session.write(bytes(INPUT_BYTES + 1))
    with pytest.raises(DriverFailed, match="no-such-program"):
        await run(agent, "/no-such-program")


async def test_it_tells_which_boot_it_is(agent: QemuAgent) -> None:
    assert await agent.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.mark.parametrize(
    "nonsense",
    [
        b"1\n",
        b'{"return": 1}\n',
        b'{"return": {"pid": "x"}}\n',
        b'{"error": 1}\n',
        b"{\n",
        b"\xff\xff\n",
        b'{"return": {"pid": 1',
        b"",
    ],
)
async def test_a_guest_that_answers_with_nonsense_is_told_as_silent(tmp_path: Path, nonsense: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readline()
        writer.write(b'\xff{"return": %d}\n' % json.loads(request.lstrip(b"\xff"))["arguments"]["id"])
        await reader.readline()
        writer.write(nonsense)
        writer.close()

    path = str(tmp_path / "agent.sock")
    async with await asyncio.start_unix_server(answer, path):
        stranger = await connect_agent(path, SystemClock(), lambda agent: None)
        with pytest.raises(Unavailable):
            await run(stranger, "true")
        assert stranger.lost.is_set()


async def test_an_agent_that_has_gone_is_not_waited_for(agent: QemuAgent) -> None:
    agent.close()
    with pytest.raises(Unavailable):
        await run(agent, "true")
