"""Reads the kernel's networking and applies batches to it, through iproute2 and nft. Decides nothing.

Programs rather than a netlink library: a batch is one process whatever its length, and the agent stays small.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from weft.drivers.linux.programs import run_program
from weft.objects.errors import DriverFailed

ESTABLISHED_SECONDS = 3600  # how long an idle connection is followed; the kernel's own value is five days
_ESTABLISHED = "net/netfilter/nf_conntrack_tcp_timeout_established"
LOOSE = "net/netfilter/nf_conntrack_tcp_loose"
NAMESPACES = Path("/run/netns")
LONGEST_RUN_SECONDS = 30.0


class LinkInfo(msgspec.Struct, frozen=True):
    info_kind: str = ""
    info_data: dict[str, Any] = {}
    info_slave_data: dict[str, Any] = {}


class LinkAddress(msgspec.Struct, frozen=True):
    local: str = ""
    prefixlen: int = 0
    family: str = "inet"


class Link(msgspec.Struct, frozen=True):
    """One interface of ``ip -j -d addr show``; ``link_index`` is a veth's peer in its own namespace."""

    ifname: str = ""
    ifindex: int = 0
    link_index: int = 0
    mtu: int = 0
    master: str = ""
    address: str = ""
    ifalias: str = ""
    flags: list[str] = []
    linkinfo: LinkInfo = LinkInfo()
    addr_info: list[LinkAddress] = []

    @property
    def kind(self) -> str:
        return self.linkinfo.info_kind

    @property
    def up(self) -> bool:
        return "UP" in self.flags

    @property
    def addresses(self) -> list[str]:
        """IPv4 addresses with their prefix length."""
        return [f"{a.local}/{a.prefixlen}" for a in self.addr_info if a.family == "inet"]

    def brport(self, name: str) -> bool:
        """A flag of the link as a bridge's port."""
        return bool(self.linkinfo.info_slave_data.get(name))


class FdbEntry(msgspec.Struct, frozen=True):
    mac: str = ""
    ifname: str = ""
    dst: str = ""
    master: str = ""
    state: str = ""


class Route(msgspec.Struct, frozen=True):
    dst: str = ""
    gateway: str = ""
    dev: str = ""


class Neighbour(msgspec.Struct, frozen=True):
    dst: str = ""
    lladdr: str = ""


class Router(msgspec.Struct, frozen=True):
    """A router's namespace as it stands."""

    links: dict[str, Link]
    routes: list[Route]
    forwarding: bool
    strict: bool  # takes up no TCP connection in mid-stream
    neighbours: dict[str, str]  # permanent ones, not learned: address to MAC


_LINKS = msgspec.json.Decoder(list[Link])
_FDB = msgspec.json.Decoder(list[FdbEntry])
_NEIGHBOURS = msgspec.json.Decoder(list[Neighbour])
_ROUTES = msgspec.json.Decoder(list[Route])


async def run(step: str, argv: Sequence[str], stdin: str = "") -> str:
    """Run a program to its end and return what it printed; raises DriverFailed with the step and its last words."""
    code, out, problem = await attempt(step, argv, stdin)
    if code != 0:
        raise DriverFailed(
            f"network: {step} failed: {problem.strip() or out.strip() or f'exit status {code}'}",
            hint="run `weft doctor` on the node: it names what the kernel or system lacks",
            details={"step": step, "command": " ".join(argv), "input": stdin},
        )
    return out


async def attempt(step: str, argv: Sequence[str], stdin: str = "") -> tuple[int, str, str]:
    """Run a program whose failure is an answer: exit status, output, error output."""
    packages = "iproute2 nftables dnsmasq-base conntrack util-linux"
    done = await run_program(argv, f"network: {step}", packages, seconds=LONGEST_RUN_SECONDS, stdin=stdin)
    return done.code, done.output, done.errors


async def inspect_node() -> tuple[dict[str, Link], list[FdbEntry]]:
    """Interfaces and forwarding entries of the node's namespace, read at the same time."""
    return await asyncio.gather(inspect_links(), inspect_fdb())


async def inspect_links() -> dict[str, Link]:
    """Every interface of the node's namespace, by name."""
    return _links(await run("read links", ["ip", "-j", "-d", "addr", "show"]))


async def inspect_fdb() -> list[FdbEntry]:
    """Every forwarding entry of bridges and overlays."""
    return _FDB.decode(await run("read forwarding entries", ["bridge", "-j", "fdb", "show"]) or "[]")


async def inspect_router(namespace: str) -> Router | None:
    """A router's namespace, or None when there is no namespace of that name."""
    if not is_namespace(NAMESPACES / namespace):
        return None
    script = (
        "ip -j -d addr show; echo; ip -j route show; echo; ip -j -4 neigh show nud permanent; echo;"
        f" cat /proc/sys/net/ipv4/ip_forward /proc/sys/{LOOSE}\n"
    )
    out = await run("read a router", ["nsenter", f"--net={NAMESPACES / namespace}", "sh", "-e"], script)
    links, routes, neighbours, forwarding, loose = [line for line in out.splitlines() if line.strip()]
    known = {found.dst: found.lladdr for found in _NEIGHBOURS.decode(neighbours) if found.lladdr}
    return Router(_links(links), _ROUTES.decode(routes), forwarding.strip() == "1", loose.strip() == "0", known)


async def perform_links(lines: list[str]) -> None:
    if lines:
        await run("change links", ["ip", "-batch", "-"], "\n".join(lines) + "\n")


async def ensure_namespace(namespace: str, *, own_users: bool = False) -> bool:
    """Make a network namespace unless there is one of that name; returns whether it was made. With ``own_users`` it belongs to
    a new user namespace, whose users aren't mapped yet."""
    if is_namespace(NAMESPACES / namespace):
        return False
    clear_namespace_file(namespace)
    if own_users:
        file = NAMESPACES / namespace
        file.parent.mkdir(mode=0o755, exist_ok=True)
        file.touch()
        # with mounts of its own, or it would have no right any more to mount the file here
        await run("make a namespace", ["unshare", "--user", "--mount", f"--net={file}", "true"])
    else:
        await run("make a namespace", ["ip", "netns", "add", namespace])
    return True


async def drop_namespace(namespace: str) -> None:
    """Remove a network namespace's name, so the namespace goes once nothing runs there; absent is fine."""
    if is_namespace(NAMESPACES / namespace):
        await run("remove a namespace", ["ip", "netns", "del", namespace])
    else:
        clear_namespace_file(namespace)


async def perform_fdb(lines: list[str]) -> None:
    if lines:
        await run("change forwarding entries", ["bridge", "-batch", "-"], "\n".join(lines) + "\n")


async def perform_router(
    namespace: str, lines: list[str], forward: bool = False, tables: str = "", strict: bool | None = None
) -> None:
    """Apply a link batch and nft text inside a router's namespace, and let it route if ``forward``; ``strict``: whether it
    refuses connections in mid-stream."""
    script = ""
    if forward:
        script += "echo 1 > /proc/sys/net/ipv4/ip_forward\n"
        script += f"echo {ESTABLISHED_SECONDS} > /proc/sys/{_ESTABLISHED}\n"
        # what goes to a service comes in and leaves by the same link: its client shall not be told to go by another way
        script += "for each in /proc/sys/net/ipv4/conf/*/send_redirects; do echo 0 > $each; done\n"
    if strict is not None:
        script += f"echo {int(not strict)} > /proc/sys/{LOOSE}\n"
    if lines:
        script += "ip -batch - <<'END'\n" + "\n".join(lines) + "\nEND\n"
    if tables:
        script += "nft -f - <<'END'\n" + tables + "\nEND\n"
    if script:
        await run("change a router", ["nsenter", f"--net={NAMESPACES / namespace}", "sh", "-e"], script)


async def perform_tables(text: str) -> None:
    """Apply nft text in the node's namespace, all of it or nothing."""
    if text:
        await run("change nft tables", ["nft", "-f", "-"], text)


async def inspect_table(family: str, table: str, namespace: str = "") -> str | None:
    """An nft table without its elements (its comment is in there), or None when it doesn't exist."""
    argv = ["nft", "-t", "list", "table", family, table]
    if namespace:
        argv = ["nsenter", f"--net={NAMESPACES / namespace}", *argv]
    code, out, _ = await attempt("read nft tables", argv)
    return out if code == 0 else None


async def list_flows(zone: int | None, namespace: str = "") -> list[str]:
    """The IPv4 connections that conntrack follows, of one zone or all, one line each, as ``put_flows`` takes them."""
    argv = ["conntrack", "-L", "-f", "ipv4", "-o", "save", *([] if zone is None else ["-w", str(zone)])]
    if namespace:
        argv = ["nsenter", f"--net={NAMESPACES / namespace}", *argv]
    _, listing, _ = await attempt("read flows", argv)
    return [line for line in listing.splitlines() if line.startswith("-A ")]


async def put_flows(lines: list[str]) -> None:
    """Let conntrack follow these connections too; those it knows already stay as they are."""
    await attempt("put flows", ["conntrack", "-R", "-"], "\n".join(lines) + "\n")


def is_namespace(path: Path) -> bool:
    """Whether a file is a mounted namespace, not what a mount left behind."""
    try:
        return path.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except FileNotFoundError:
        return False


def clear_namespace_file(namespace: str) -> None:
    """Remove a leftover file that blocks a namespace's name; absent is fine."""
    path = NAMESPACES / namespace
    if not is_namespace(path):
        path.unlink(missing_ok=True)


def has_sysctl(path: str) -> bool:
    return (Path("/proc/sys") / path).exists()


def write_sysctl(path: str, value: str) -> bool:
    """Set ``net/…`` below /proc/sys in the node's namespace; says whether it had to change."""
    file = Path("/proc/sys") / path
    try:
        if file.read_text().strip() == value:
            return False
        file.write_text(value)
    except OSError as problem:
        raise DriverFailed(
            f"network: {file} can't be set to {value}: {problem.strerror}",
            hint="the agent needs root and a writable /proc/sys",
            details={"step": "set a sysctl"},
        ) from problem
    return True


def write_file(path: Path, text: str) -> bool:
    """Replace a file whole if its text differs; says whether it did."""
    try:
        if path.read_text() == text:
            return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    os.replace(fresh, path)
    return True


def _links(text: str) -> dict[str, Link]:
    return {link.ifname: link for link in _LINKS.decode(text or "[]") if link.ifname}
