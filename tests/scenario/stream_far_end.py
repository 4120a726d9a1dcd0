"""The far end of an exec stream, for tests: real TLS and frames, the command run on this machine, not in a guest."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weft.client.context import Context
from weft.client.frames import Frame, FrameDecoder, FrameType, encode_data, encode_exit, encode_frame
from weft.contracts.clock import SystemClock
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
    plain, _ = server.accept()
    with tls.wrap_socket(plain, server_side=True) as sock:
        frames = _read_frames(sock)
        hello = next(frames)
        assert hello.json() == {"role": "client", "ticket": "t"}
        if not argv:
            return
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        lock = threading.Lock()
        pumps = [
            threading.Thread(target=_pump, args=(process.stdout, FrameType.DATA_OUT, sock, lock)),
            threading.Thread(target=_pump, args=(process.stderr, FrameType.STDERR, sock, lock)),
            threading.Thread(target=_feed, args=(process, frames), daemon=True),
        ]
        for pump in pumps:
            pump.start()
        code = process.wait()
        for pump in pumps[:2]:
            pump.join()
        with lock:
            sock.sendall(encode_exit(code) if code >= 0 else encode_exit(signal=-code))
            sock.sendall(encode_frame(FrameType.PING))


def _read_frames(sock: ssl.SSLSocket) -> Iterator[Frame]:
    decoder = FrameDecoder()
    while data := sock.recv(65536):
        yield from decoder.feed(data)


def _pump(pipe: Any, type_: int, sock: ssl.SSLSocket, lock: threading.Lock) -> None:
    while data := pipe.read1(65536):
        for frame in encode_data(type_, data):
            with lock:
                sock.sendall(frame)


def _feed(process: subprocess.Popen[bytes], frames: Iterator[Frame]) -> None:
    assert process.stdin is not None
    for frame in frames:
        if frame.type == FrameType.END_IN:
            process.stdin.close()
            return
        if frame.type == FrameType.DATA_IN:
            process.stdin.write(frame.payload)
            process.stdin.flush()
