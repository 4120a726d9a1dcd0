"""Finds out what this machine's kernel and programs can do for the driver, by trying it in a namespace that goes away
with the try. Changes nothing."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field

import msgspec

from weft.contracts.driver.host import Host
from weft.drivers.network.bridge.dnsmasq import choose_resolver
from weft.drivers.network.bridge.kernel import attempt
from weft.drivers.network.bridge.names import Names
from weft.drivers.network.bridge.nftables.security_groups import CALL_IPTABLES

# Program → the Debian package that has it.
PROGRAMS = {
    "ip": "iproute2",
    "bridge": "iproute2",
    "nft": "nftables",
    "dnsmasq": "dnsmasq-base",
    "conntrack": "conntrack",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
}


@dataclass(frozen=True)
class Trial:
    """A capability, the command that shows it, and what helps where it fails."""

    capability: str
    command: str
    remedy: str
    needed: bool = True  # without it there are no networks at all


TRIALS = [
    Trial("bridge", "ip link add name b0 type bridge", "modprobe bridge"),
    Trial("overlay", "ip link add name x0 type vxlan id 1 dstport 4789 nolearning", "modprobe vxlan"),
    Trial("router", "ip link add name v0 type veth peer name v1", "modprobe veth"),
    Trial("tap", "ip tuntap add dev t0 mode tap", "modprobe tun, and give the agent /dev/net/tun"),
    Trial(
        "nat",
        "nft 'add table ip a; add chain ip a c { type nat hook postrouting priority 100; };"
        " add rule ip a c masquerade'",
        "modprobe nf_tables nft_chain_nat nft_masq",
    ),
    Trial(
        "forwards",
        "nft 'add table ip f; add chain ip f c { type nat hook prerouting priority -100; };"
        " add rule ip f c fib daddr type local dnat to 192.0.2.1'",
        "modprobe nft_fib_ipv4 nft_nat",
    ),
    Trial(
        "antispoof",
        "nft 'add table bridge t; add chain bridge t c { type filter hook forward priority 0; };"
        " add rule bridge t c ether saddr 02:00:00:00:00:01 drop'",
        "build the kernel with NF_TABLES_BRIDGE",
    ),
    Trial(
        "security-groups",
        f"test -e /proc/sys/{CALL_IPTABLES} && nft 'add table ip z; add chain ip z c"
        " { type filter hook prerouting priority -301; }; add rule ip z c ct zone set 1'",
        "modprobe br_netfilter nft_ct; without it, workloads with a security group can't run on this node",
        needed=False,
    ),
]
_VXLAN_BYTES, _LEAST_MTU = 50, 1500
_TRY = 'try() { if message=$(eval "$2" 2>&1); then echo "$1 yes"; else echo "$1 no $message" | head -n 1; fi; }\n'


@dataclass
class Findings:
    """Findings: what was shown to work, what keeps the driver from working, and what will limit it; each with its remedy."""

    capabilities: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


async def probe_kernel(host: Host, names: Names) -> Findings:
    """Try everything the driver needs."""
    found = Findings()
    if os.geteuid() != 0:
        found.problems.append("the agent isn't root: start it as root, since only root may create links")
        return found
    missing = {program: package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        found.problems.append(f"{', '.join(sorted(missing))} not installed: apt-get install {packages}")
        return found
    script = _TRY + "".join(f"try {t.capability} {_quote(t.command)}\n" for t in TRIALS)
    code, out, errors = await attempt("probe the kernel", ["unshare", "--net", "sh"], script)
    if code != 0:
        found.problems.append(
            f"no network namespaces ({errors.strip()}): the kernel needs NET_NS, the agent CAP_SYS_ADMIN"
        )
        return found
    answers = {line.split(" ")[0]: line.split(" ", 2)[1:] for line in out.splitlines()}
    for trial in TRIALS:
        answer = answers.get(trial.capability, ["no", "no answer"])
        if answer[0] == "yes":
            found.capabilities.append(trial.capability)
        else:
            problem = f"no {trial.capability} ({' '.join(answer[1:])}): {trial.remedy}"
            (found.problems if trial.needed else found.warnings).append(problem)
    await _probe_node(found, host, names)
    return found


def find_small_mtu(shown: str, link: str) -> list[str]:
    """Find what is wrong with the MTU of ``link``, as `ip -o link` shows it: networks have 1450 unless they say otherwise, and
    VXLAN takes 50 more. Pure."""
    mtu = re.search(r"\bmtu (\d+)", shown)
    if mtu is None or int(mtu[1]) >= _LEAST_MTU:
        return []
    most = int(mtu[1]) - _VXLAN_BYTES
    return [
        f"link {link} has MTU {mtu[1]}: networks with an --mtu above {most} lose packets between nodes; lower theirs,"
        f" or raise the link's: ip link set {link} mtu {_LEAST_MTU}"
    ]


async def _probe_node(found: Findings, host: Host, names: Names) -> None:
    """Probe the node's own configuration: its address, a resolver, other firewalls."""
    _, links, _ = await attempt("read links", ["ip", "-o", "addr", "show", "dev", host.underlay_link])
    if f"inet {host.underlay_address}/" not in links:
        found.problems.append(
            f"address {host.underlay_address} isn't on link {host.underlay_link}: name the link and the address by"
            " which other nodes reach this node"
        )
    _, shown, _ = await attempt("read the link", ["ip", "-o", "link", "show", "dev", host.underlay_link])
    found.warnings += find_small_mtu(shown, host.underlay_link)
    if host.dns_upstream and choose_resolver() is not None:
        found.capabilities.append("dns-upstream")
    elif host.dns_upstream:
        found.warnings.append(
            "guests can't resolve outside names: /etc/resolv.conf names only this node's loopback; add a server that"
            " routers can reach"
        )
    _, chains, _ = await attempt("read nft chains", ["nft", "-j", "list", "chains"])
    for chain in find_dropping_chains(chains):
        found.warnings.append(
            f"nft chain {chain} drops unknown traffic, and with it guests' traffic to the outside: accept links {names.prefix}u*,"
            f" for example: iptables -I FORWARD -i {names.prefix}u+ -j ACCEPT and with -o"
        )


def find_dropping_chains(listing: str) -> list[str]:
    """Chains in an ``nft -j list chains`` that drop forwarded IPv4 by policy: another firewall's. Pure."""
    try:
        items = msgspec.json.decode(listing)["nftables"]
    except (msgspec.DecodeError, KeyError):
        return []
    chains = [item["chain"] for item in items if "chain" in item]
    return [
        f"{c['family']} {c['table']} {c['name']}"
        for c in chains
        if c.get("hook") == "forward" and c.get("policy") == "drop" and c["family"] in ("ip", "inet")
    ]


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
