"""Nodes by the hundred: each gets its join token, key and certificate through the API, as ``weft agent join`` does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from benchmarks.connection import Connection
from weft.agent.node.enrolment import FILE, Enrolment
from weft.client.context import Context

CONNECTIONS = 8


async def enrol(context: Context, names: list[str], folder: Path) -> list[Path]:
    """The nodes' state folders, one for each name, ready for agents."""
    waiting = list(enumerate(names))
    folders = [folder / name for name in names]

    async def work() -> None:
        admin = await Connection.open(context)
        while waiting:
            number, name = waiting.pop()
            await _enrol_one(admin, msgspec.structs.replace(context), name, number, folders[number])
        admin.close()

    await asyncio.gather(*[work() for _ in range(CONNECTIONS)])
    return folders


async def _enrol_one(admin: Connection, context: Context, name: str, number: int, folder: Path) -> None:
    status, body = await admin.request("POST", "/v1/tokens", {"spec": {"use": "join", "node": name}})
    if status != 201:
        raise SystemExit(f"token: {status} {body[:300]!r}")
    context.token = msgspec.json.decode(body)["secret"]
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    pem = csr.public_bytes(serialization.Encoding.PEM).decode()
    joiner = await Connection.open(context)
    status, body = await joiner.request("POST", "/v1/join", {"node": name, "csr": pem})
    joiner.close()
    if status != 200:
        raise SystemExit(f"join: {status} {body[:300]!r}")
    given = msgspec.json.decode(body)
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_text(given["ca"])
    (folder / "node.crt").write_text(given["certificate"])
    (folder / "node.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    address = f"10.{100 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
    enrolment = Enrolment(context.server, given["gateway"], name, given["node_uid"], address)
    (folder / FILE).write_bytes(msgspec.json.encode(enrolment))
