"""Calls to a containerd, over the unix socket that it listens on; all in the namespace ``weft`` of that containerd, so that
containers of others there are never met.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator
from typing import Any

import grpc

from weft.drivers.runtime.oci.containerd.messages import messages
from weft.objects.errors import DriverFailed, NotFound, Unavailable, WeftError

NAMESPACE = "weft"
CALL_SECONDS = 30.0
CONNECT_SECONDS = 3.0  # for one that is being started again
_METADATA = (("containerd-namespace", NAMESPACE),)
_OPTIONS = [
    ("grpc.default_authority", "localhost"),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]
_SERVICES = "/containerd.services"
_CALLS = {  # path → request, response
    "version.v1.Version/Version": ("Empty", "VersionResponse"),
    "containers.v1.Containers/Create": ("CreateContainerRequest", "ContainerResponse"),
    "containers.v1.Containers/List": ("ListContainersRequest", "ListContainersResponse"),
    "containers.v1.Containers/Delete": ("ContainerName", "Empty"),
    "tasks.v1.Tasks/Create": ("CreateTaskRequest", "CreateTaskResponse"),
    "tasks.v1.Tasks/Start": ("ProcessName", "StartResponse"),
    "tasks.v1.Tasks/Get": ("ProcessName", "GetResponse"),
    "tasks.v1.Tasks/Delete": ("ProcessName", "Empty"),
    "tasks.v1.Tasks/DeleteProcess": ("ProcessName", "Empty"),
    "tasks.v1.Tasks/Wait": ("ProcessName", "WaitResponse"),
    "tasks.v1.Tasks/Pause": ("ProcessName", "Empty"),
    "tasks.v1.Tasks/Resume": ("ProcessName", "Empty"),
    "tasks.v1.Tasks/Kill": ("KillRequest", "Empty"),
    "tasks.v1.Tasks/Exec": ("ExecProcessRequest", "Empty"),
    "tasks.v1.Tasks/ResizePty": ("ResizePtyRequest", "Empty"),
    "tasks.v1.Tasks/CloseIO": ("CloseIoRequest", "Empty"),
    "tasks.v1.Tasks/Update": ("UpdateTaskRequest", "Empty"),
    "tasks.v1.Tasks/Metrics": ("MetricsRequest", "MetricsResponse"),
    "events.v1.Events/Subscribe": ("SubscribeRequest", "Envelope"),
}


class Client:
    """Made without a call; connects, and connects again, when one is made."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel: grpc.aio.Channel | None = None
        self._calls: dict[str, Any] = {}

    async def call(self, path: str, *, within: float = CALL_SECONDS, **fields: Any) -> Any:
        """``path`` like tasks.v1.Tasks/Get; ``within`` so many seconds. Raises NotFound, DriverFailed, Unavailable
        (``containerdGone``)."""
        channel = await self._connect()
        request, response = (messages[name] for name in _CALLS[path])
        call = self._calls.get(path)
        if call is None:
            call = channel.unary_unary(f"{_SERVICES}.{path}", request.SerializeToString, response.FromString)
            self._calls[path] = call
        try:
            return await call(request(**fields), timeout=within, metadata=_METADATA)
        except grpc.aio.AioRpcError as problem:
            raise self._translate(problem) from None

    async def listen(self, path: str, **fields: Any) -> AsyncGenerator[Any, None]:
        """The answers to one call, for as long as containerd sends some. Raises as ``call`` does."""
        channel = await self._connect()
        request, response = (messages[name] for name in _CALLS[path])
        call = channel.unary_stream(f"{_SERVICES}.{path}", request.SerializeToString, response.FromString)
        try:
            async for message in call(request(**fields), metadata=_METADATA):
                yield message
        except grpc.aio.AioRpcError as problem:
            raise self._translate(problem) from None

    async def _connect(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(f"unix:{self.address}", _OPTIONS)
        if self._channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._channel.channel_ready()
            except TimeoutError:
                raise self._gone("nothing listens there") from None
        return self._channel

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        self._calls.clear()
        if channel is not None:
            await channel.close()

    def find_peer(self) -> int:
        """The number of the process that listens, as this one sees it; 0: in namespaces where it isn't seen. Raises Unavailable."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as line:
            line.settimeout(CALL_SECONDS)
            try:
                line.connect(self.address)
                credentials = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
            except OSError as problem:
                raise self._gone(problem.strerror or str(problem)) from None
        return int(struct.unpack("iII", credentials)[0])

    def _translate(self, problem: grpc.aio.AioRpcError) -> WeftError:
        code, words = problem.code(), (problem.details() or "").removesuffix(": unknown")
        if code is grpc.StatusCode.NOT_FOUND:
            return NotFound(words)
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
            return self._gone(words)
        return DriverFailed(words, details={"step": "containerd", "code": code.name})

    def _gone(self, words: str) -> Unavailable:
        return Unavailable(
            f"containerd doesn't answer at {self.address}: {words}",
            reason="containerdGone",
            hint="start it (systemctl start containerd), or give its address: --container-runtime containerd=ADDRESS",
        )
