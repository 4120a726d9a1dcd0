"""Mosquitto's files: its configuration, the devices' passwords as hashes, and who may use which topic. Pure.

A device writes only its own ``reported`` and ``event``, and reads only its own ``desired`` and ``command``. The gateway reads
and writes all. Where devices may announce themselves without a password, they may write announcements and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

CONFIG, PASSWORDS, RIGHTS, DATA = "mosquitto.conf", "passwords", "rights", "data"
GATEWAY = "weft-gateway"  # no device is called so: its name has a dot
ROOT = "weft"
WRITES, READS = ("reported", "event"), ("desired", "command")
BIRTHS = ("homeassistant/+/+/config", "homeassistant/+/+/+/config", "spBv1.0/+/NBIRTH/+", "spBv1.0/+/DBIRTH/+/+")
ITERATIONS = 1000  # half a millisecond: a thousand devices that come back together are let in within a second
_SALT_BYTES = 12


class Bounds(msgspec.Struct, frozen=True):
    """What strangers and devices may make the broker hold."""

    message_bytes: int = 64 << 10
    connections: int = 5000
    queued_messages: int = 10_000  # of one client that is away or slow
    queued_bytes: int = 8 << 20  # the same
    memory_bytes: int = 256 << 20
    session_days: int = 2  # a client that is away longer is forgotten


class Listening(msgspec.Struct, frozen=True):
    """Where the broker listens. ``certificate``, ``key``: paths, both or none."""

    address: str = "127.0.0.1"
    port: int = 1883
    certificate: str = ""
    key: str = ""


def make_username(project: str, name: str) -> str:
    """What a device logs in as."""
    return f"{project}.{name}"


def make_topic(project: str, name: str, leaf: str) -> str:
    return f"{ROOT}/{project}/{name}/{leaf}"


def hash_password(password: str, salt: bytes) -> str:
    """As Mosquitto reads it: PBKDF2 with SHA-512."""
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
    return f"$7${ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def is_of_password(hashed: str, password: str) -> bool:
    """Whether ``hashed``, of ``hash_password``, is that of ``password``."""
    try:
        salt = base64.b64decode(hashed.split("$")[3])
    except (IndexError, ValueError):
        return False
    return hash_password(password, salt) == hashed


def write_config(
    folder: Path, listening: Listening, own: Listening, bounds: Bounds, user: str, *, is_open: bool
) -> str:
    """``own`` is where the gateway connects, on loopback. ``is_open``: devices may announce themselves without a password."""
    lines = [
        "per_listener_settings false",
        f"listener {own.port} {own.address}",
        "socket_domain ipv4" if ":" not in own.address else "socket_domain ipv6",
    ]
    if (listening.address, listening.port) != (own.address, own.port):
        lines += [f"listener {listening.port} {listening.address}"]
        if listening.certificate:
            lines += [f"certfile {listening.certificate}", f"keyfile {listening.key}", "tls_version tlsv1.2"]
    lines += [
        f"user {user}",
        f"allow_anonymous {'true' if is_open else 'false'}",
        f"password_file {folder / PASSWORDS}",
        f"acl_file {folder / RIGHTS}",
        "persistence true",
        f"persistence_location {folder / DATA}/",
        "autosave_interval 30",
        f"persistent_client_expiration {bounds.session_days}d",
        f"max_connections {bounds.connections}",
        f"max_packet_size {bounds.message_bytes + 1024}",
        f"max_queued_messages {bounds.queued_messages}",
        f"max_queued_bytes {bounds.queued_bytes}",
        f"memory_limit {bounds.memory_bytes}",
        "max_inflight_messages 1000",
        "max_keepalive 3600",
        "set_tcp_nodelay true",
        "queue_qos0_messages false",
        "sys_interval 0",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_timestamp false",
        "connection_messages false",
    ]
    return "\n".join(lines) + "\n"


def write_passwords(hashes: Mapping[str, str]) -> str:
    """``hashes`` by username."""
    return "".join(f"{user}:{hashed}\n" for user, hashed in sorted(hashes.items()))


def write_rights(devices: Iterable[tuple[str, str]], *, is_open: bool) -> str:
    """``devices``: their projects and names. Names have no spaces, + or #: they are names of objects."""
    lines = [f"topic write {topic}" for topic in BIRTHS] if is_open else []
    lines += ["", f"user {GATEWAY}", f"topic readwrite {ROOT}/#"]
    lines += [f"topic read {topic}" for topic in BIRTHS]
    for project, name in sorted(devices):
        lines += ["", f"user {make_username(project, name)}"]
        lines += [f"topic write {make_topic(project, name, leaf)}" for leaf in WRITES]
        lines += [f"topic read {make_topic(project, name, leaf)}" for leaf in READS]
        lines += [f"topic write {topic}" for topic in BIRTHS]
    return "\n".join(lines) + "\n"
