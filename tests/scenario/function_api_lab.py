"""The function gateway over real TLS, on a gateway whose agents only pretend; callers are boto3 and plain HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from tests.scenario.functions_lab import FunctionsLab, functions_lab

from weft.contracts.store import Delete
from weft.kinds.token import TokenMarks, TokenSpec
from weft.launch.gateway.function_api import serve_function_api
from weft.objects.envelope import Envelope, merge_part
from weft.objects.identity import Ref, new_uid, object_key
from weft.trust.access_keys import derive_secret, make_key_id
from weft.trust.seal import open_seal_keys
from weft.trust.tokens import make_token

T = TypeVar("T")


class ApiLab:
    """``lab`` is what stands behind the API servers."""

    def __init__(self, lab: FunctionsLab) -> None:
        self.lab, self.folder = lab, lab.folder
        self.port = 0
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        api = serve_function_api([f"127.0.0.1:{self.port}"], self.folder, self.lab.parts, self.lab.clock)
        server = await self._stack.enter_async_context(api)
        self.server = server
        self.port = server.ports[0]

    async def close(self) -> None:
        await self._stack.aclose()

    async def restart(self) -> None:
        """As after kill -9 of the gateway, but for the goodbyes."""
        await self.close()
        await self.lab.restart()
        await self.open()

    async def key(
        self,
        name: str = "ci",
        project: str = "default",
        owner: Ref | None = None,
        key_id: str = "",
        sealed: str = "",
        **spec: Any,
    ) -> tuple[str, str]:
        """A new access key, of a user if it has an ``owner``: its id and its secret, which is ``sealed`` or follows from the id."""
        key_id = key_id or make_key_id()
        secret = derive_secret(open_seal_keys(self.folder).keys[0], key_id)
        given = {"use": "access-key", "role": "invoker", "project": project, **spec}
        await self._token(name, TokenSpec(**given), TokenMarks(key_id=key_id, sealed=sealed), owner)
        return key_id, secret

    async def token(self, name: str = "eve", **spec: Any) -> str:
        text, sha256 = make_token(name)
        await self._token(name, TokenSpec(**{"use": "access", "role": "invoker", **spec}), TokenMarks(sha256=sha256))
        return text

    async def drop_token(self, name: str) -> None:
        key = object_key("token", None, name)
        await self.lab.store.commit([Delete(key)])
        await self.lab.until(lambda: self.lab.functions.cache.view.get(key) is None)

    async def _token(self, name: str, spec: TokenSpec, marks: TokenMarks, owner: Ref | None = None) -> None:
        envelope = Envelope(kind="token", name=name, uid=new_uid(), owner=owner)
        envelope.spec, envelope.marks = merge_part(envelope.spec, spec), merge_part(envelope.marks, marks)
        await self.lab.put(envelope)
        await self.lab.until(lambda: self.lab.functions.cache.view.get(envelope.key) is not None)

    def boto(self, key: tuple[str, str], region: str = "weft", **config: Any) -> Any:
        config.setdefault("retries", {"max_attempts": 1, "mode": "standard"})
        return boto3.client(
            "lambda",
            endpoint_url=f"https://127.0.0.1:{self.port}",
            region_name=region,
            aws_access_key_id=key[0],
            aws_secret_access_key=key[1],
            verify=str(self.folder / "ca.crt"),
            config=Config(**config),
        )

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """One plain request: status, headers by name in lower case, body."""

        def ask() -> tuple[int, dict[str, str], bytes]:
            tls = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=tls, timeout=60)
            try:
                connection.request(method, path, body or None, {k.replace("_", "-"): v for k, v in headers.items()})
                answer = connection.getresponse()
                return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
            finally:
                connection.close()

        return await asyncio.to_thread(ask)

    async def raw(self, data: bytes, seconds: float = 60.0) -> bytes:
        """All that comes back to ``data`` until the other side hangs up."""
        reader, writer = await self.dial()
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.read(-1), seconds)
        finally:
            writer.transport.abort()

    async def dial(self, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that comes from the address ``source``."""
        tls = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=tls, local_addr=(source, 0))


def read(answer: dict[str, Any]) -> Any:
    """The payload of what boto3's invoke gave."""
    return json.loads(answer["Payload"].read())


async def do(work: Callable[[], T]) -> T:
    """``work`` in a thread, as boto3 blocks."""
    return await asyncio.to_thread(work)


@asynccontextmanager
async def api_lab(folder: Path) -> AsyncIterator[ApiLab]:
    async with functions_lab(folder) as lab:
        await lab.base()
        api = ApiLab(lab)
        await api.open()
        try:
            yield api
        finally:
            await api.close()
