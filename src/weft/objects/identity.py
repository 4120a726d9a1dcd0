"""Names, uids, short ids, references and store keys. Pure."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping
from functools import lru_cache

import msgspec

from weft.objects.errors import InvalidInput

MAX_NAME = 63
SHORT_ID = 10  # characters
METRICS_NAME = "weft-metrics"  # in the certificate of the server's own database for metrics, and in no other
MEMBER_NAME = "weft-store"  # in the certificate of each member of the store, and in no other
SERVER_NAME = "weft-server"  # in every server certificate: clients may connect to any address
NODE_PREFIX = "node:"  # a node's certificate has the common name ``node:<uid>``
SERVER_PREFIX = (
    "server:"  # what a server shows the others has the common name ``server:<uid>``, and its name as the unit
)
CLUSTER_PREFIX = "cluster:"  # what a linked cluster does, and makes, is by ``cluster:<its name here>``
FABRIC = "-"  # stands where the project would, in the key of a fabric-wide object
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
OWN_LABELS = "weft/"  # labels that begin so are set by weft alone
_LABEL_KEY = re.compile(r"([a-z0-9.-]{1,200}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


class Ref(msgspec.Struct, frozen=True):
    """A stored reference: the name for people, the uid for truth."""

    kind: str
    name: str
    uid: str
    project: str | None = None


class ServerIdentity(msgspec.Struct, frozen=True):
    """A server of the fabric: its name, and the uid of its state folder."""

    name: str
    uid: str


def read_node_uid(certificate: Mapping[str, object] | None) -> str | None:
    """The uid in the peer's certificate, which TLS has verified; None if it is no node's."""
    name = _read_subject(certificate).get("commonName", "")
    return name[len(NODE_PREFIX) :] if name.startswith(NODE_PREFIX) else None


def read_server_identity(certificate: Mapping[str, object] | None) -> ServerIdentity | None:
    """The server in the peer's certificate, which TLS has verified; None if it is no server's."""
    subject = _read_subject(certificate)
    uid, name = subject.get("commonName", ""), subject.get("organizationalUnitName", "")
    return ServerIdentity(name, uid[len(SERVER_PREFIX) :]) if uid.startswith(SERVER_PREFIX) else None


def _read_subject(certificate: Mapping[str, object] | None) -> dict[str, str]:
    subject = (certificate or {}).get("subject")
    return {name: str(value) for parts in (subject if isinstance(subject, tuple) else ()) for name, value in parts}


def is_name(text: str) -> bool:
    """Whether it is a DNS label (RFC 1123)."""
    return len(text) <= MAX_NAME and _NAME.fullmatch(text) is not None


def check_name(name: object, field: str = "name") -> str:
    """Return ``name`` if it is a DNS label (RFC 1123), else raise InvalidInput naming ``field``."""
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"{field} is missing", field=field, hint="give a name like web-1")
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        elsewhere = "; PROJECT/NAME is only for what projects can share, like images" if "/" in name else ""
        raise InvalidInput(
            f"{field} {name!r:.80} is not a valid name",
            field=field,
            hint=f"use a-z, 0-9 and -, at most {MAX_NAME} characters, no - at either end{elsewhere}",
        )
    return name


def cut_name(head: str, tail: str = "", *, most: int = MAX_NAME) -> str:
    """``head`` and ``tail`` as one name of at most ``most`` characters, for names that weft makes. A head that is too long is cut
    and ends in eight digits of its SHA-256, so that names differ wherever their heads or tails do; a tail is never cut."""
    if len(head) + len(tail) <= most:
        return head + tail
    digits = hashlib.sha256(head.encode()).hexdigest()[:8]
    return f"{head[: most - len(tail) - 9].rstrip('-')}-{digits}{tail}"


def check_shared_name(text: object, field: str = "name") -> str:
    """``check_name`` for NAME, or PROJECT/NAME of an object that another project shares. Raises InvalidInput."""
    if not isinstance(text, str) or "/" not in text:
        return check_name(text, field)
    parts = text.split("/")
    hint = "write NAME, or PROJECT/NAME of an object that another project shares"
    if len(parts) > 2:
        raise InvalidInput(f"{field} {text!r:.80} has more than one /", field=field, hint=hint)
    try:
        return f"{check_name(parts[0], field)}/{check_name(parts[1], field)}"
    except InvalidInput:
        raise InvalidInput(f"{field} {text!r:.80} is not PROJECT/NAME", field=field, hint=hint) from None


def check_labels(labels: dict[str, str], field: str = "labels") -> None:
    """Raise InvalidInput for a label key or value that is no label (letters, digits, ``._-``, ≤ 63)."""
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise InvalidInput(
                f"{field}: {key[:80]!r} is not a label key",
                field=f"{field}.{key[:80]}",
                hint="use letters, digits, . _ and -, at most 63 characters",
            )
        if not _LABEL_VALUE.fullmatch(value):
            raise InvalidInput(
                f"{field}.{key}: {value[:80]!r} is not a label value",
                field=f"{field}.{key}",
                hint="use letters, digits, . _ and -, at most 63 characters",
            )


def new_uid() -> str:
    """A fresh random uid (UUID4 text), never reused."""
    return _as_uid(os.urandom(16).hex())  # as uuid.uuid4 does, in less than half the time


def new_uids(count: int) -> list[str]:
    """``count`` uids, drawn together: each draw lets other threads run, and waits for them."""
    text = os.urandom(16 * count).hex()
    return [_as_uid(text[start : start + 32]) for start in range(0, len(text), 32)]


def derive_uid(text: str) -> str:
    """The uid that is always this one for ``text``."""
    return _as_uid(hashlib.sha256(text.encode()).hexdigest()[:32])


def _as_uid(text: str) -> str:
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{'89ab'[int(text[16], 16) & 3]}{text[17:20]}-{text[20:]}"


@lru_cache(maxsize=4096)  # a node uses those of its own guests again and again
def short_id(uid: str) -> str:
    """Ten lower-case base32 characters that stand for ``uid`` in names on a host (links, sockets, cgroups, folders)."""
    digest = hashlib.sha256(uid.encode()).digest()
    return base64.b32encode(digest)[:SHORT_ID].decode().lower()


def object_key(kind: str, project: str | None, name: str) -> str:
    """The store key ``/<kind>/<project or ->/<name>``."""
    return f"/{kind}/{project or FABRIC}/{name}"


def split_named(project: str | None, text: str) -> tuple[str | None, str]:
    """Project and name of what a spec in ``project`` names: NAME, or PROJECT/NAME of another project."""
    other, slash, name = text.rpartition("/")
    return (other, name) if slash else (project, text)


def named_key(kind: str, project: str | None, text: str) -> str:
    """The store key of what a spec in ``project`` names, see ``split_named``."""
    return object_key(kind, *split_named(project, text))


def kind_prefix(kind: str, project: str | None = None) -> str:
    """The prefix of all objects of a kind, or of those in one project."""
    return f"/{kind}/" if project is None else f"/{kind}/{project}/"
