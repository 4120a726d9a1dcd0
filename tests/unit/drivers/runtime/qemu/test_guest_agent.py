"""weft's guest agent, the real C program, on this machine over a socket pair: everything but the virtual machine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.guest_program import Guest

from weft.contracts.driver.runtime import ExecRequest, ProcessFacts
from weft.drivers.runtime.qemu.guest_agent.channel import GuestChannel
from weft.drivers.runtime.qemu.guest_agent.frames import PAYLOAD_BYTES, Hello, encode_frame, encode_request
from weft.drivers.runtime.qemu.guest_agent.session import GuestSession
from weft.objects.errors import InvalidInput, TooLarge, Unavailable

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")


@pytest.fixture
def guest(agent_program: Path) -> Iterator[Guest]:
    guest = Guest(agent_program)
    yield guest
    guest.end()


@pytest.fixture
async def channel(guest: Guest) -> AsyncIterator[GuestChannel]:
    channel = await guest.connect()
    yield channel
    channel.close()


async def collect(session: GuestSession) -> tuple[bytes, bytes, int | None, int | None]:
    out: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    async for chunk in session.output():
        if chunk.channel == "exit":
            return bytes(out["stdout"]), bytes(out["stderr"]), chunk.code, chunk.signal
        out[chunk.channel] += chunk.data
    raise AssertionError("output ended without an exit")


async def run(
    channel: GuestChannel, *argv: str, stdin: bytes = b"", **more: object
) -> tuple[bytes, bytes, int | None, int | None]:
    session = await channel.exec(ExecRequest(argv=list(argv), **more))  # type: ignore[arg-type]

    async def feed() -> None:
        await session.write(stdin)
        await session.close_stdin()

    (result, _) = await asyncio.wait_for(asyncio.gather(collect(session), feed()), 30)
    return result


async def test_a_command_keeps_its_outputs_apart_and_passes_its_code(channel: GuestChannel) -> None:
    assert await run(channel, "sh", "-c", "echo out; echo err >&2; exit 7") == (b"out\n", b"err\n", 7, None)


async def test_a_signal_is_told_as_a_signal(channel: GuestChannel) -> None:
    assert await run(channel, "sh", "-c", "kill -9 $$") == (b"", b"", None, 9)


async def test_arguments_arrive_unchanged(channel: GuestChannel) -> None:
    words = ["", "a b", "$HOME", "'\"\\", "line\nbreak", "ünï", "-x", "*"]
    out, _, code, _ = await run(channel, "printf", "%s\\0", *words)
    assert (out, code) == (b"".join(word.encode() + b"\0" for word in words), 0)


async def test_a_long_argument_list_arrives_whole(channel: GuestChannel) -> None:
    words = [f"word-{i:05}" for i in range(20_000)]
    out, _, code, _ = await run(channel, "printf", "%s ", *words)
    assert (out.split(), code) == ([word.encode() for word in words], 0)


async def test_environment_and_folder_are_those_asked_for(channel: GuestChannel, tmp_path: Path) -> None:
    out, _, _, _ = await run(channel, "sh", "-c", 'echo "$COLOUR"; pwd', env={"COLOUR": "dark blue"}, cwd=str(tmp_path))
    assert out.decode() == f"dark blue\n{tmp_path}\n"


async def test_a_missing_program_gives_127_and_says_so(channel: GuestChannel) -> None:
    out, err, code, _ = await run(channel, "no-such-program")
    assert (out, code) == (b"", 127)
    assert b"no-such-program: not found" in err


async def test_a_missing_folder_gives_126_and_says_so(channel: GuestChannel) -> None:
    _, err, code, _ = await run(channel, "true", cwd="/no/such/folder")
    assert code == 126
    assert b"/no/such/folder" in err


async def test_requests_that_no_program_could_get_are_refused(channel: GuestChannel) -> None:
    with pytest.raises(InvalidInput):
        await channel.exec(ExecRequest(argv=[]))
    with pytest.raises(InvalidInput):
        await channel.exec(ExecRequest(argv=["echo", "nul\0inside"]))
    with pytest.raises(TooLarge):
        await channel.exec(ExecRequest(argv=["echo", *("x" * 100_000 for _ in range(30))]))
    assert (await run(channel, "echo", "ok"))[0] == b"ok\n"


async def test_ten_megabytes_survive_both_directions(channel: GuestChannel) -> None:
    data = os.urandom(10_000_000)
    out, err, code, _ = await run(channel, "cat", stdin=data)
    assert (hashlib.sha256(out).digest(), err, code) == (hashlib.sha256(data).digest(), b"", 0)


async def test_four_commands_run_at_once(channel: GuestChannel) -> None:
    data = [os.urandom(1_500_000) for _ in range(4)]
    results = await asyncio.gather(*(run(channel, "cat", stdin=part) for part in data))
    assert [out for out, _, _, _ in results] == data


async def test_a_reader_that_does_not_read_blocks_nobody_else(channel: GuestChannel) -> None:
    lazy = await channel.exec(ExecRequest(argv=["sh", "-c", "cat /dev/zero"]))
    stuck = await channel.exec(ExecRequest(argv=["sleep", "60"]))
    writing = asyncio.create_task(stuck.write(bytes(1_000_000)))
    assert (await run(channel, "cat", stdin=b"x" * 1_000_000))[0] == b"x" * 1_000_000
    assert not writing.done()  # its window is full, and that is its own trouble only
    writing.cancel()
    await lazy.close()
    await stuck.close()


async def test_stdin_that_nobody_reads_does_not_hang_the_writer(channel: GuestChannel) -> None:
    out, _, code, _ = await run(channel, "sh", "-c", "exec <&-; sleep 0.2; echo done", stdin=bytes(2_000_000))
    assert (out, code) == (b"done\n", 0)


async def test_a_command_ends_although_its_children_live_on(channel: GuestChannel, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 50 & echo $! > {pid_file}; head -c 60000 /dev/zero; exit 3"
    out, _, code, _ = await run(channel, "sh", "-c", script)
    pid = int(pid_file.read_text())
    os.kill(pid, 0)  # it lives
    os.kill(pid, 9)
    assert (len(out), code) == (60000, 3)


async def test_hanging_up_ends_the_command(channel: GuestChannel, tmp_path: Path) -> None:
    mark = tmp_path / "hup"
    session = await channel.exec(
        ExecRequest(argv=["sh", "-c", f"trap 'echo hup > {mark}; exit' HUP; echo on; sleep 50 & wait"])
    )
    assert (await anext(aiter(session.output()))).data == b"on\n"
    await session.close()
    await until(mark.exists)


async def test_a_terminal_is_one(channel: GuestChannel) -> None:
    out, _, code, _ = await run(channel, "sh", "-c", "test -t 0 && test -t 1 && echo tty", tty=True)
    assert (out.strip().splitlines()[-1], code) == (b"tty", 0)


async def test_a_terminal_has_its_size_as_the_command_begins(channel: GuestChannel) -> None:
    out, _, code, _ = await run(channel, "stty", "size", tty=True, rows=33, columns=101)
    assert (out.strip(), code) == (b"33 101", 0)


async def test_a_terminal_takes_its_size(channel: GuestChannel) -> None:
    session = await channel.exec(ExecRequest(argv=["sh", "-c", "read x; stty size"], tty=True))
    await session.resize(33, 101)
    await session.write(b"go\n")
    out, _, _, _ = await asyncio.wait_for(collect(session), 60)
    assert b"33 101" in out


async def test_a_host_killed_in_the_middle_of_a_frame_does_no_harm(guest: Guest, tmp_path: Path) -> None:
    """Cut at every kind of place: what had begun is not obeyed, the old command gets SIGHUP, and the next host works."""
    target = tmp_path / "target"
    whole = encode_frame("D", session=1, payload=b"A" * PAYLOAD_BYTES)
    for cut in (1, 5, 8, 9, 1000, PAYLOAD_BYTES + 8):
        channel = await guest.connect()
        session = await channel.exec(ExecRequest(argv=["sh", "-c", f"exec 3>{target}; echo $$; exec cat >&3"]))
        pid = int((await anext(aiter(session.output()))).data)
        await session.write(b"begin")
        channel.send(whole[:cut])
        channel.close()
        again = await guest.connect()
        await until(lambda pid=pid: not alive(pid))
        assert target.read_bytes() in (b"begin", b"")
        assert (await run(again, "echo", "fine"))[0] == b"fine\n"
        again.close()


async def test_a_half_sent_request_never_runs(guest: Guest, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    arguments, start = encode_request(1, ["touch", str(mark)], {}, "", tty=False)
    channel = await guest.connect()
    channel.send(arguments + start[:6])
    channel.close()
    again = await guest.connect()
    await run(again, "true")
    assert not mark.exists()
    again.close()


async def test_a_host_that_vanishes_while_output_flows_blocks_nothing(guest: Guest) -> None:
    channel = await guest.connect()
    for _ in range(3):
        await channel.exec(ExecRequest(argv=["cat", "/dev/zero"]))
    await asyncio.sleep(0.1)
    channel.close()
    again = await guest.connect()
    assert (await run(again, "echo", "fine"))[0] == b"fine\n"
    again.close()


async def test_sessions_learn_that_the_guest_is_gone(guest: Guest) -> None:
    channel = await guest.connect()
    session = await channel.exec(ExecRequest(argv=["sleep", "50"]))
    guest.process.kill()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(collect(session), 60)
    guest.ours.shutdown(socket.SHUT_RDWR)
    await until(lambda: not channel.ready)
    with pytest.raises(Unavailable):
        await channel.exec(ExecRequest(argv=["true"]))


async def test_noise_before_the_first_hello_is_ignored(guest: Guest) -> None:
    guest.ours.sendall(os.urandom(50_000))
    channel = await guest.connect()
    assert (await run(channel, "echo", "fine"))[0] == b"fine\n"
    channel.close()


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def until(true: object) -> None:
    async with asyncio.timeout(60):
        while not true():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def test_how_its_process_is_is_told_to_whoever_comes_and_once_told_its_end_may_follow(
    agent_program: Path, tmp_path: Path
) -> None:
    """As PID 1 of a VM that stands on an image of containers writes it: RUNS ENDS CODE."""
    file, heard = tmp_path / "process", asyncio.Queue[ProcessFacts]()
    file.write_text("1 0 0\n")
    guest = Guest(agent_program, str(file))

    def make(on_hello: Callable[[Hello], None], on_lost: Callable[[], None]) -> GuestChannel:
        return GuestChannel(on_hello, on_lost, heard.put_nowait)

    async def hear() -> ProcessFacts:
        return await asyncio.wait_for(heard.get(), 60)

    try:
        channel = await guest.connect_as(make)
        assert await hear() == ProcessFacts(True)
        for runs, ends, code in ((0, 1, 3), (1, 1, 3), (0, 2, 137)):
            fresh = tmp_path / "process.new"
            fresh.write_text(f"{runs} {ends} {code}\n")
            fresh.replace(file)
            guest.process.send_signal(signal.SIGUSR1)
            assert await hear() == ProcessFacts(bool(runs), ends, code)
        async with asyncio.timeout(60):
            while list(tmp_path.iterdir()):  # its machine may end now
                await asyncio.sleep(0.01)
        channel.close()
        await guest.connect_as(make)
        assert await hear() == ProcessFacts(False, 2, 137)
    finally:
        guest.end()
