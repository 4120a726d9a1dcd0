"""What tests of registries need besides one: certificates, tokens, and a registry of the test's own that hangs, lies and cuts."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import ipaddress
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID
from image_lab import Made, digest

Head = dict[str, str]


class Certificate:
    """Its own issuer's, for 127.0.0.1, in ``folder/NAME.pem`` and ``.key``."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(exist_ok=True)
        self.certificate, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        self.secret = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.secret.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .sign(self.secret, hashes.SHA256())
        )
        self.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        self.der = made.public_bytes(serialization.Encoding.DER)
        self.key.write_bytes(
            self.secret.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def token(signer: Certificate, scope: str, service: str) -> str:
    """A JSON web token that lets do what ``scope`` says, as docker-registry takes it."""
    kind, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")
    now = int(time.time())
    head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(signer.der).decode()]}
    says = {"iss": "issuer", "sub": "", "aud": service, "exp": now + 300, "nbf": now - 10, "iat": now - 10, "jti": "1",
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}]}  # fmt: skip
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (head, says)]
    r, s = utils.decode_dss_signature(signer.secret.sign(b".".join(parts), ec.ECDSA(hashes.SHA256())))
    signature = base64.urlsafe_b64encode(r.to_bytes(32, "big") + s.to_bytes(32, "big")).rstrip(b"=")
    return b".".join([*parts, signature]).decode()


class Request:
    def __init__(self, method: str, path: str, head: Head, writer: asyncio.StreamWriter) -> None:
        self.method, self.path, self.head, self.writer = method, path, head, writer

    async def answer(self, status: int, body: bytes = b"", **head: str) -> None:
        """Content-Length unless ``head`` gives one; __ in a name stands for -."""
        told = {name.replace("__", "-").lower(): value for name, value in head.items()}
        told.setdefault("content-length", str(len(body)))
        lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in told.items()), "", ""]
        self.writer.write("\r\n".join(lines).encode() + (b"" if self.method == "HEAD" else body))
        await self.writer.drain()


class Registry:
    """Serves ``blobs`` and ``tags`` as it should, unless ``spoil`` does something else with a request (then it returns True)."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.kinds: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.seen: list[Request] = []
        self.place = ""  # HOST:PORT, for those who serve it for a whole test
        self.spoil: Callable[[Request], Any] | None = None

    def add(self, tag: str, image: Made) -> Made:
        self.blobs |= image.blobs
        self.kinds[image.manifest] = image.media_type
        self.tags[tag] = image.manifest
        return image

    def asked(self, path: str) -> int:
        return sum(1 for request in self.seen if path in request.path)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                head = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
                method, path, _ = first.split(" ")
                request = Request(method, path, head, writer)
                self.seen.append(request)
                if self.spoil is None or not await self.spoil(request):
                    await self._answer(request)
        writer.close()

    async def _answer(self, request: Request) -> None:
        name = request.path.rpartition("/")[2]
        data = self.blobs.get(self.tags.get(name, name))
        if data is None:
            await request.answer(404, b'{"errors": []}')
        elif "/manifests/" in request.path:
            kind = self.kinds.get(digest(data), "application/vnd.oci.image.index.v1+json")
            await request.answer(200, data, content__type=kind, docker__content__digest=digest(data))
        elif begins := re.fullmatch(r"bytes=(\d+)-", request.head.get("range", "")):
            at = int(begins[1])
            await request.answer(206, data[at:], content__range=f"bytes {at}-{len(data) - 1}/{len(data)}")
        else:
            await request.answer(200, data)


@asynccontextmanager
async def cutting(place: str, every: int) -> AsyncIterator[tuple[str, list[int]]]:
    """A way to ``place`` that breaks after ``every`` bytes of an answer; the list has one number for each connection."""
    host, _, port = place.partition(":")
    carried: list[int] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int) -> int:
        done = 0
        with contextlib.suppress(ConnectionError):
            while done < most and (data := await reader.read(min(1 << 16, most - done))):
                writer.write(data)
                await writer.drain()
                done += len(data)
        writer.close()
        return done

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        upwards = asyncio.create_task(pump(reader, back, 1 << 40))
        carried.append(await pump(there, writer, every))
        back.close()
        upwards.cancel()

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", carried
    finally:
        server.close()
