"""The witness of a link: the third place that both clusters ask who is primary, and the token with which one of them asks. Pure."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

import msgspec

from weft.kinds.fields.cluster.link import MOST_URL
from weft.objects.schema import field

VALUE = "witness"  # the key of the sealed token among a link's values
WITNESSED = "Witnessed"  # the condition that says what the witness knows
# Its reasons. Of the side whose VM is replicated, and of one that was promoted: both clusters name it as primary.
CONFIRMED = "Confirmed"
ONLY_HERE = "OnlyHere"  # the other cluster hasn't named the same primary
SUPERSEDED = "Superseded"  # there is a newer generation
CONFLICT = "Conflict"  # there are two primaries of one generation
# Of a replica: whether the other cluster's primary has renewed its lease at the witness lately.
PRIMARY_SPEAKS, PRIMARY_SILENT = "PrimarySpeaks", "PrimarySilent"
NO_WITNESS, UNREACHABLE, REFUSED = "NoWitness", "Unreachable", "Refused"
_TOKEN = re.compile(r"([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)\.([0-9a-f]{64})\.([0-9a-f]{64})")


class ClusterWitness(msgspec.Struct, kw_only=True, frozen=True):
    url: Annotated[str, field("Where the witness is, as this cluster reaches it", change="live", max_length=MOST_URL)]
    peer: Annotated[str, field("What the witness calls the other cluster", change="live", name=True)]


class WitnessToken(NamedTuple):
    """What a cluster needs to ask a witness: its own name there, its secret, and the SHA-256 of the witness's CA."""

    site: str
    secret: str
    ca_sha256: str

    def __repr__(self) -> str:
        return f"WitnessToken({self.site!r}, …)"


def write_witness_token(site: str, secret: str, ca_sha256: str) -> str:
    """The text that people carry from the witness to a cluster."""
    return f"{site}.{secret}.{ca_sha256}"


def read_witness_token(text: str) -> WitnessToken | None:
    """None for any other text."""
    match = _TOKEN.fullmatch(text.strip())
    return None if match is None else WitnessToken(*match.groups())
