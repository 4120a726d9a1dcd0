"""Security group: who may open connections to and from the VMs that carry it. Answers on an open connection always pass."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, joined, text
from weft.kinds.record import Access, Admission, Column, Display, Kind, Reference
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name
from weft.objects.schema import field

Protocol = Literal["tcp", "udp", "icmp", "any"]
_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "icmp": "icmp", "any": "any"}
MOST_RULES = 64
SELF = "self"
_RULE = re.compile(r"(?P<protocol>[a-z]+)(?::(?P<ports>[^ ]*))?(?: (?P<word>from|to) (?P<whom>[^ ]+))?")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


class Rule(msgspec.Struct, frozen=True):
    """Allowed connections. Of ``cidr`` and ``group`` at most one is set; without either, every peer is allowed."""

    protocol: Protocol
    first_port: int = 0
    last_port: int = 65535
    cidr: str | None = None
    group: str | None = None  # SELF: the rule's own group


class SecurityGroupSpec(msgspec.Struct, kw_only=True):
    ingress: Annotated[
        list[str],
        field(
            "Incoming connections to allow: PROTOCOL[:PORT[-PORT]] [from CIDR or group:NAME], like tcp:80 or icmp from group:web"
        ),
    ] = []
    egress: Annotated[list[str], field("Outgoing connections to allow, like ingress but with to instead of from")] = (
        msgspec.field(default_factory=lambda: ["any"])
    )


class SecurityGroupStatus(msgspec.Struct, kw_only=True):
    used: int = 0  # workloads that have it


def read_rule(written: str, direction: Literal["ingress", "egress"], field_: str) -> Rule:
    """``tcp:80-443 from 10.0.0.0/8`` and the like. Raises InvalidInput."""
    word = "from" if direction == "ingress" else "to"
    hint = f"write PROTOCOL[:PORT[-PORT]] [{word} CIDR or group:NAME], like tcp:80 {word} 10.0.0.0/8"
    match = _RULE.fullmatch(" ".join(written.split()))

    def refuse(fact: str) -> InvalidInput:
        return InvalidInput(f"{field_}: {written[:80]!r}: {fact}", field=field_, hint=hint)

    if match is None:
        raise refuse("is not a rule")
    protocol, ports, whom = _PROTOCOLS.get(match["protocol"]), match["ports"], match["whom"]
    if protocol is None:
        raise refuse(f"{match['protocol']} is none of tcp, udp, icmp, any")
    if match["word"] not in (None, word):
        raise refuse(f"{direction} rules say {word}, not {match['word']}")
    first, last = 0, 65535
    if ports is not None:
        if protocol not in ("tcp", "udp"):
            raise refuse(f"{protocol} has no ports")
        range_ = _PORTS.fullmatch(ports)
        if range_ is None:
            raise refuse(f"{ports!r} is not a port or range of ports")
        first, last = int(range_[1]), int(range_[2] or range_[1])
        if not 1 <= first <= last <= 65535:
            raise refuse("ports go from 1 to 65535, the lower one first")
    if whom is None:
        return Rule(protocol, first, last)
    if whom.startswith("group:"):
        return Rule(protocol, first, last, group=check_name(whom.removeprefix("group:"), field_))
    try:
        return Rule(protocol, first, last, cidr=str(ipaddress.IPv4Network(whom)))
    except ValueError as problem:
        raise refuse(f"{problem}") from None


def read_rules(spec: SecurityGroupSpec) -> tuple[list[Rule], list[Rule]]:
    """The rules for incoming and for outgoing connections. Raises InvalidInput."""
    return (
        [read_rule(rule, "ingress", f"spec.ingress[{at}]") for at, rule in enumerate(spec.ingress)],
        [read_rule(rule, "egress", f"spec.egress[{at}]") for at, rule in enumerate(spec.egress)],
    )


def check_security_group(spec: SecurityGroupSpec) -> None:
    ingress, egress = read_rules(spec)
    if len(ingress) + len(egress) > MOST_RULES:
        raise InvalidInput(
            f"spec: {len(ingress) + len(egress)} rules are too many",
            field="spec",
            hint=f"at most {MOST_RULES}; a workload may have several groups",
        )


def _groups_named(rules: Sequence[Rule]) -> list[str]:
    return list(dict.fromkeys(rule.group for rule in rules if rule.group not in (None, SELF)))


SECURITY_GROUP = Kind(
    name="securitygroup",
    plural="securitygroups",
    title="security group",
    summary="Rules for connections to and from workloads",
    spec=SecurityGroupSpec,
    status=SecurityGroupStatus,
    references=(
        Reference("securitygroup", "spec.ingress", lambda spec: _groups_named(read_rules(spec)[0])),
        Reference("securitygroup", "spec.egress", lambda spec: _groups_named(read_rules(spec)[1])),
    ),
    in_backups="kept",
    access=Access(readers="project", status_writer="securitygroups"),
    admission=Admission(check=check_security_group),
    display=Display(
        topic="Storage and networks",
        aliases=("sg",),
        columns=(
            NAME,
            Column("INGRESS", joined("spec.ingress"), flexible=True),
            Column("EGRESS", joined("spec.egress"), flexible=True),
            Column("WORKLOADS", text("status.used", "0"), align="right"),
            AGE,
        ),
    ),
)
