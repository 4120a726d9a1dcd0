"""Hands messages of devices over to the functions' gateway, in order and in batches: asks the API for a ticket, and shows it there.

A batch that may have arrived is handed over again under the same ids; what is in the gateway's queue by then stays as it is."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from weft.client.answer import raise_problem
from weft.client.api import Client
from weft.client.server.endpoints import CONNECT_SECONDS
from weft.client.tls import make_tls
from weft.objects.errors import Unavailable
from weft.protocol.devices import DeviceMessage, InvocationsInput
from weft.protocol.frames import FrameDecoder, FrameType, encode_data, encode_frame, encode_hello

SECONDS = 20.0
_PIECE_BYTES = 65_536


def ask_ticket(client: Client, node: str, function: str, dropped: int, too_large: int) -> Mapping[str, str]:
    """Ask, in a thread, for a ticket for one batch; ``dropped`` is reported with it. Raises NotFound for a function that no topic
    invokes any more, and what the API answers."""
    asked = msgspec.json.encode(InvocationsInput(function, dropped, too_large))
    answer = client.http.request("POST", f"/v1/nodes/{node}:invocations", asked, timeout_seconds=SECONDS)
    raise_problem(answer)
    return msgspec.json.decode(answer.body, type=dict[str, str])


def send_messages(client: Client, ticket: Mapping[str, str], messages: Sequence[DeviceMessage]) -> None:
    """Send messages, in a thread. Raises Unavailable, and what the functions' gateway answers. If that can't be reached, the next
    ticket is another server's."""
    payload = msgspec.json.encode(messages)
    host, _, port = ticket["address"].rpartition(":")
    host = host.strip("[]")
    unreached = f"the functions' gateway at {ticket['address']} can't be reached"
    try:
        seconds = CONNECT_SECONDS if client.http.endpoints.are_several else SECONDS
        plain = socket.create_connection((host, int(port)), timeout=seconds)
    except OSError as problem:
        client.http.leave_server()
        raise Unavailable(f"{unreached}: {problem}") from None
    try:
        plain.settimeout(SECONDS)
        with make_tls(client.context).wrap_socket(plain, server_hostname=ticket.get("server_name") or host) as sock:
            sock.sendall(encode_hello(role="client", ticket=ticket["ticket"]))
            with contextlib.suppress(OSError):  # a peer that refuses it early has sent the reason
                for piece in encode_data(FrameType.DATA_IN, payload):
                    sock.sendall(piece)
                sock.sendall(encode_frame(FrameType.END_IN))
            _await_end(sock)
    except OSError as problem:
        raise Unavailable(f"{unreached}: {problem}") from None


def _await_end(sock: Any) -> None:
    decoder = FrameDecoder()
    while data := sock.recv(_PIECE_BYTES):
        for frame in decoder.feed(data):
            if frame.type == FrameType.ERROR:
                raise frame.error()
            if frame.type == FrameType.EXIT:
                return
    raise Unavailable("the function gateway closed the connection before it answered")
