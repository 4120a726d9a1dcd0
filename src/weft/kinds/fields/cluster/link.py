"""Terms of a link: what one cluster lets another do, the checks of what both say of themselves, and the witness of the link: the
third place that both ask who is primary. Pure."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args
from urllib.parse import urlsplit

import msgspec

from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name
from weft.objects.schema import field

MOST_PROJECTS = 1_000
MOST_URL, MOST_CA = 300, 8_192
HELLO = "cluster:hello"  # what every linked cluster may do: say that it is there, and ask the same
Word = Literal["replicate", "run", "take-over", "migrate"]
TAKE_OVER = "take-over"
MIGRATE = "migrate"
# The verbs that a grant gives in each of the link's projects, by kind, and there on what that cluster has made itself. With
# ``replicate`` nothing that starts, changes or reads a guest, and nothing that takes away what it has sent; with ``run`` whole
# workloads, but nothing that looks into their guests. With ``take-over`` its replicas may become VMs that start here once the
# witness grants it: no verb of its own, since ``arm`` also says that nothing takes over; ``arm`` and the take-over look for it.
# With ``migrate`` its running VMs may come, and then belong to people here.
GRANTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "replicate": {"replica": ("get", "create", "update", "receive", "renew", "arm")},
    "run": dict.fromkeys(("vm", "container", "job"), ("list", "get", "create", "update", "delete")),
    TAKE_OVER: {},
    MIGRATE: {"arrival": ("list", "get", "create", "cancel", "settle")},
}
VALUE = "witness"  # the key of the sealed token among a link's values
AUTOMATIC = "Automatic"  # the condition of a replication whose replica takes over automatically, or shall
# Its reasons. Only with the first of them does anything take over.
ARMED, PREPARING, RELEASING, OFF, NOT_CONFIRMED = "Armed", "Preparing", "Releasing", "Off", "NotConfirmed"
TURNED_OFF = "turned off"  # how the message begins of one that isn't automatic
NOT_GUARDED, NOT_TAKEN, LEFT, ALONE = "NotGuarded", "NotTaken", "Left", "Alone"
WITNESSED = "Witnessed"  # the condition that says what the witness knows
# Its reasons. Of the side whose VM is replicated, and of one that was promoted: both clusters name it as primary.
CONFIRMED = "Confirmed"
ONLY_HERE = "OnlyHere"  # the other cluster hasn't named the same primary
SUPERSEDED = "Superseded"  # there is a newer generation
CONFLICT = "Conflict"  # there are two primaries of one generation
GRANTED = "Granted"  # the other cluster may take over, and hasn't: nothing is promised to this one
# Of a replica: whether the other cluster's primary has renewed its lease at the witness lately.
PRIMARY_SPEAKS, PRIMARY_SILENT = "PrimarySpeaks", "PrimarySilent"
NO_WITNESS, UNREACHABLE, REFUSED = "NoWitness", "Unreachable", "Refused"
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)\.([0-9a-f]{64})\.([0-9a-f]{64})")
assert set(get_args(Word)) == set(GRANTS)


class LinkTerms(msgspec.Struct, kw_only=True):
    """Rights here of the cluster that uses a link token."""

    name: Annotated[str, field("Name that the other cluster gets here", change="never", name=True)] = ""
    grants: Annotated[
        list[Word] | None,
        field("What the other cluster may do here; null: what it may already, nothing for a new one", change="never"),
    ] = None
    projects: Annotated[
        dict[str, str] | None,
        field(
            "Projects that the link is for: each one here with the one at the other cluster; null: those that it has, none for"
            " a new one",
            change="never",
        ),
    ] = None


def check_terms(grants: Sequence[str], projects: Mapping[str, str], path: str = "spec") -> None:
    """Raises InvalidInput."""
    if len(projects) > MOST_PROJECTS:
        raise InvalidInput(f"{path}.projects: at most {MOST_PROJECTS} projects", field=f"{path}.projects")
    for here, there in projects.items():
        check_name(here, f"{path}.projects")
        check_name(there, f"{path}.projects.{here}")
    if len(set(projects.values())) < len(projects):
        raise InvalidInput(
            f"{path}.projects: two projects here lead to one at the other cluster",
            field=f"{path}.projects",
            hint="give each a project of its own there",
        )
    if grants and not projects:
        raise InvalidInput(
            f"{path}.projects is empty: {', '.join(grants)} is granted in the projects of the link only",
            field=f"{path}.projects",
            hint="give projects, like --projects default=default or --projects lab=lab-west",
        )


def find_project_there(projects: Mapping[str, str], own: str, given: str = "") -> str:
    """The project at the other cluster that the link has for ``own``; "": none, or another than ``given``."""
    there = projects.get(own, "")
    return there if given in ("", there) else ""


def check_url(url: str, path: str) -> str:
    """``url`` without a slash at its end, if it can be a server's. Raises InvalidInput, without it if it may hold credentials."""
    try:
        parts = urlsplit(url)
        good = parts.scheme == "https" and parts.hostname and parts.port != 0 and len(url) <= MOST_URL
        plain = not (parts.query or parts.fragment or parts.path.strip("/") or "@" in parts.netloc)
    except ValueError:
        good = plain = False
    if not good or not plain or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidInput(
            f"{path} is not the address of a server", field=path, hint="write it like https://10.0.0.1:8443"
        )
    return url.rstrip("/")


def check_sha256(text: str, path: str) -> str:
    """Raises InvalidInput, without the text."""
    if not _SHA256.fullmatch(text):
        raise InvalidInput(f"{path} is not a SHA-256 digest: 64 hexadecimal digits", field=path)
    return text


def find_uid(ca: str, path: str = "ca") -> str:
    """The uid of the cluster whose CA has this certificate (PEM): nobody else can prove that it is its own. Raises InvalidInput."""
    if len(ca) > MOST_CA:
        raise InvalidInput(f"{path} is longer than {MOST_CA} characters", field=path)
    try:
        content = _PEM.fullmatch(ca.strip())
        if content is None:
            raise ValueError
        return hashlib.sha256(base64.b64decode("".join(content[1].split()), validate=True)).hexdigest()[:32]
    except ValueError:
        raise InvalidInput(f"{path} is not one certificate in PEM", field=path) from None


class ClusterWitness(msgspec.Struct, kw_only=True, frozen=True):
    url: Annotated[str, field("Where the witness is, as this cluster reaches it", change="live", max_length=MOST_URL)]
    peer: Annotated[str, field("What the witness calls the other cluster", change="live", name=True)]


class WitnessToken(NamedTuple):
    """Access to a witness for a cluster: its own name there, its secret, and the SHA-256 of the witness's CA."""

    site: str
    secret: str
    ca_sha256: str

    def __repr__(self) -> str:
        return f"WitnessToken({self.site!r}, …)"


def read_witnessed(obj: Mapping[str, Any]) -> str:
    """A table's cell: the reason of the object's condition Witnessed."""
    return next((str(one["reason"]) for one in obj.get("conditions") or () if one["type"] == WITNESSED), "–")


def read_automatic(obj: Mapping[str, Any]) -> str:
    """A table's cell: the reason of a replication's condition Automatic. What ``run-alone`` changes is shown before the condition
    says it, since what that says is of the time before."""
    said = next((str(one["reason"]) for one in obj.get("conditions") or () if one["type"] == AUTOMATIC), "–")
    asked, marks = obj.get("actions") or {}, obj.get("marks") or {}
    if asked.get("alone") and said not in (ALONE, RELEASING, GRANTED, LEFT):
        return RELEASING if marks.get("guard") else ALONE
    return said


def write_witness_token(site: str, secret: str, ca_sha256: str) -> str:
    """The text that people carry from the witness to a cluster."""
    return f"{site}.{secret}.{ca_sha256}"


def read_witness_token(text: str) -> WitnessToken | None:
    """None for any other text."""
    match = _TOKEN.fullmatch(text.strip())
    return None if match is None else WitnessToken(*match.groups())
