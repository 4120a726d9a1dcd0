"""The commands that would let a connection pass. Pure."""

from __future__ import annotations

import shlex

from weft.api.network.facts import EVERYWHERE, Group, Network, Workload


def open_group(workload: Workload, protocol: str, far: str | Workload, port: int, *, out: bool) -> str:
    """Another rule in the workload's first group, to or from ``far``."""
    if not workload.groups:
        return ""
    group = workload.groups[0]
    word = "to" if out else "from"
    whom = _name_peer(workload, far)
    rule = protocol + (f":{port}" if port else "") + (f" {word} {whom}" if whom else "")
    rules = (*(group.egress if out else group.ingress), rule)
    flag = "--egress" if out else "--ingress"
    flags = " ".join(f"{flag} {shlex.quote(one)}" for one in rules)
    return f"weft securitygroup set {group.allocated.name} {flags} -p {workload.project}"


def join_network(source: Workload, network: str) -> str:
    """Let the source join one more network."""
    flags = " ".join(f"--network {shlex.quote(one)}" for one in (*source.networks, network))
    return f"weft {source.kind} set {source.name} {flags} -p {source.project}"


def open_host(near: Network, protocol: str, port: int, address: str, project: str) -> str:
    """Open a service of a host to a network, beside what it opens; "" for another project's network."""
    name = near.name.partition("/")[2]
    rule = protocol + (f":{port}" if port else "") + f" to {address}/32"
    flags = " ".join(f"--open {shlex.quote(one)}" for one in (*near.open, rule))
    return "" if "/" in name else f"weft network set {name} {flags} -p {project}"


def _name_peer(workload: Workload, far: str | Workload) -> str:
    """The other end in a rule; "" for anybody."""
    if isinstance(far, str):
        return "" if far == EVERYWHERE else far if "/" in far else f"{far}/32"
    shared: list[Group] = list(far.groups) if far.project == workload.project else []
    if shared:
        return f"group:{shared[0].allocated.name}"
    return f"{far.nics[0].address}/32" if far.nics else ""
