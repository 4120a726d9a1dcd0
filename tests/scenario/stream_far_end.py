"""The far end of an exec stream, for tests: real TLS and frames, the command run on this machine, not in a guest."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from weft.client.context import Context
from weft.contracts.clock import SystemClock
from weft.protocol.frames import Frame, FrameDecoder, FrameType, encode_data, encode_exit, encode_frame
from weft.trust.ca import Authority


@contextmanager
def far_end(state: Path, argv: list[str]) -> Iterator[tuple[Context, dict[str, Any]]]:
    """A gateway that serves one stream with ``argv``; the context and the ticket to reach it with."""
    state.mkdir()
    authority = Authority(state, SystemClock())
    chain, key = authority.renew_server(["127.0.0.1"])
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain, key)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        thread = threading.Thread(target=_serve, args=(server, tls, argv), daemon=True)
        thread.start()
        ticket = {"ticket": "t", "address": address, "server_name": "127.0.0.1"}
        yield Context(server=f"https://{address}", ca=authority.ca), ticket
        thread.join(20)


def _serve(server: socket.socket, tls: ssl.SSLContext, argv: list[str]) -> None:
    """One connection, in a loop of its own: a TLS socket must not be read and written by two threads."""
    asyncio.run(_serve_one(server, tls, argv))


async def _serve_one(server: socket.socket, tls: ssl.SSLContext, argv: list[str]) -> None:
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _carry(reader, writer, argv)
        finally:
            served.set()

    listening = await asyncio.start_server(serve, sock=server, ssl=tls)
    await served.wait()
    listening.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, argv: list[str]) -> None:
    frames = _read_frames(reader)
    hello = await anext(frames)
    assert hello.json() == {"role": "client", "ticket": "t"}
    if argv:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        feeding = asyncio.create_task(_feed(process, frames))
        try:
            await asyncio.gather(
                _pump(process.stdout, FrameType.DATA_OUT, writer), _pump(process.stderr, FrameType.STDERR, writer)
            )
        except OSError:  # the client has gone, as it does from a command that prints without end
            process.kill()
        code = await asyncio.to_thread(process.wait)
        writer.write(encode_exit(code) if code >= 0 else encode_exit(signal=-code))
        writer.write(encode_frame(FrameType.PING))
        await writer.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.wait([feeding]), 5)  # the client closes once it has read the exit
        feeding.cancel()
    writer.close()


async def _read_frames(reader: asyncio.StreamReader) -> AsyncIterator[Frame]:
    decoder = FrameDecoder()
    with suppress(OSError):
        while data := await reader.read(65536):
            for frame in decoder.feed(data):
                yield frame


async def _pump(pipe: Any, type_: int, writer: asyncio.StreamWriter) -> None:
    while data := await asyncio.to_thread(pipe.read1, 65536):
        for frame in encode_data(type_, data):
            writer.write(frame)
            await writer.drain()


async def _feed(process: subprocess.Popen[bytes], frames: AsyncIterator[Frame]) -> None:
    stdin = process.stdin
    assert stdin is not None
    async for frame in frames:
        with suppress(BrokenPipeError, ValueError):  # it reads no more: what still comes is for nobody
            if frame.type == FrameType.END_IN:
                stdin.close()
            if frame.type == FrameType.DATA_IN:
                await asyncio.to_thread(lambda data=frame.payload: (stdin.write(data), stdin.flush()))
    with suppress(BrokenPipeError):  # the connection is lost, or its end was told: so the input ends, as with conmon
        stdin.close()
