"""Words about a new network whose range has addresses of another one in its project: each is apart from the other, so that is no
error, but a guest in both reaches such an address in one of them only."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network

from weft.cli.session import Session
from weft.kinds.network import NETWORK
from weft.kinds.record import Object
from weft.objects.errors import Forbidden


def warn_of_ranges(session: Session, made: Sequence[Object]) -> None:
    """Say which networks of ``made``, new objects as the server has them, share addresses with others."""
    networks = [obj for obj in made if obj["kind"] == NETWORK.name]
    for project in sorted({str(one["project"]) for one in networks}):
        try:
            others = session.client.list(NETWORK.name, project=project).items
        except Forbidden:
            continue
        for new in [one for one in networks if one["project"] == project]:
            alike = [one for one in others if one["uid"] != new["uid"] and _read(one).overlaps(_read(new))]
            if alike:
                named = ", ".join(f"network/{one['name']} ({one['spec']['cidr']})" for one in alike[:3])
                session.notify(
                    f"network/{new['name']}: {new['spec']['cidr']} has addresses of {named}, too: "
                    "a workload in both reaches them in one of the two only"
                )


def _read(network: Object) -> IPv4Network:
    return IPv4Network(network["spec"]["cidr"], strict=False)
