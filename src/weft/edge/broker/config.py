"""Mosquitto's files: its configuration, the devices' passwords as hashes, and who may use which topic. Pure.

A device writes only its own ``reported`` and ``event``, and reads only its own ``desired`` and ``command``; its username is its
client id, so no device takes another's place. The gateway reads and writes all. Announcements have a broker of their own: nobody
has a password there, and everybody may write announcements and nothing else. It keeps nothing on disk.

The gateway logs in over a Unix socket in a folder that only root and the broker's user enter: a program that has the devices'
port first gets no password of the gateway.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

CONFIG, PASSWORDS, RIGHTS, DATA = "mosquitto.conf", "passwords", "rights", "data"
OWN, SOCKET = "own", "own/socket"  # where the gateway logs in
DATABASE = f"{DATA}/mosquitto.db"
GATEWAY = "weft-gateway"  # no device is called so: its name has a dot
ROOT = "weft"
WRITES, READS = ("reported", "event"), ("desired", "command")
BIRTHS = ("homeassistant/+/+/config", "homeassistant/+/+/+/config", "spBv1.0/+/NBIRTH/+", "spBv1.0/+/DBIRTH/+/+")
ITERATIONS = 1000  # half a millisecond: a thousand devices that come back together are let in within a second
_SALT_BYTES = 12


class Bounds(msgspec.Struct, frozen=True):
    """Bounds of what strangers and devices may make the broker hold."""

    message_bytes: int = 64 << 10
    connections: int = 5000
    queued_messages: int = 10_000  # of one client that is away or slow
    queued_bytes: int = 8 << 20  # the same
    memory_bytes: int = 256 << 20  # what is kept on disk is read again up to half of it
    session_days: int = 2  # a client that is away longer is forgotten


STRANGERS = Bounds(
    message_bytes=16 << 10,
    connections=200,
    queued_messages=500,
    queued_bytes=1 << 20,
    memory_bytes=64 << 20,
    session_days=1,
)


class Listening(msgspec.Struct, frozen=True):
    """The place where the broker listens. ``certificate``, ``key``: paths, both or none."""

    address: str = "127.0.0.1"
    port: int = 1883
    certificate: str = ""
    key: str = ""


def make_username(project: str, name: str) -> str:
    """The name with which a device logs in."""
    return f"{project}.{name}"


def make_topic(project: str, name: str, leaf: str) -> str:
    return f"{ROOT}/{project}/{name}/{leaf}"


def hash_password(password: str, salt: bytes) -> str:
    """Hash the password in Mosquitto's form: PBKDF2 with SHA-512."""
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
    return f"$7${ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def is_of_password(hashed: str, password: str) -> bool:
    """Whether ``hashed``, of ``hash_password``, is that of ``password``."""
    try:
        salt = base64.b64decode(hashed.split("$")[3])
    except (IndexError, ValueError):
        return False
    return hash_password(password, salt) == hashed


def write_config(folder: Path, listening: Listening, bounds: Bounds, user: str, *, is_open: bool) -> str:
    """``is_open``: the broker of announcements. Its working folder is ``folder``."""
    each = [
        "max_qos 1",
        f"max_connections {bounds.connections}",
    ]  # of what is sent with QoS 2 a client could pile up 160 MB
    if not is_open:
        each.append("use_username_as_clientid true")
    lines = ["per_listener_settings false", f"listener 0 {SOCKET}", *each]
    lines += [f"listener {listening.port} {listening.address}", *each]
    if listening.certificate:
        lines += [f"certfile {listening.certificate}", f"keyfile {listening.key}", "tls_version tlsv1.2"]
    lines += [
        f"user {user}",
        f"allow_anonymous {'true' if is_open else 'false'}",
        f"password_file {folder / PASSWORDS}",
        f"acl_file {folder / RIGHTS}",
        f"persistence {'false' if is_open else 'true'}",
        f"persistence_location {folder / DATA}/",
        "autosave_interval 30",
        f"persistent_client_expiration {bounds.session_days}d",
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
        *([] if is_open else ["log_type subscribe", "log_type notice"]),
        "log_timestamp false",
        f"connection_messages {'false' if is_open else 'true'}",
    ]
    return "\n".join(lines) + "\n"


def write_passwords(hashes: Mapping[str, str]) -> str:
    """``hashes`` by username."""
    return "".join(f"{user}:{hashed}\n" for user, hashed in sorted(hashes.items()))


def write_rights(devices: Iterable[tuple[str, str]], *, is_open: bool) -> str:
    """``devices``: their projects and names. Names have no spaces, + or #: they are names of objects."""
    if is_open:
        writes, reads = ([f"topic {right} {topic}" for topic in BIRTHS] for right in ("write", "read"))
        return "\n".join([*writes, "", f"user {GATEWAY}", *reads]) + "\n"
    lines = [f"user {GATEWAY}", f"topic readwrite {ROOT}/#"]
    for project, name in sorted(devices):
        lines += ["", f"user {make_username(project, name)}"]
        lines += [f"topic write {make_topic(project, name, leaf)}" for leaf in WRITES]
        lines += [f"topic read {make_topic(project, name, leaf)}" for leaf in READS]
    return "\n".join(lines) + "\n"
