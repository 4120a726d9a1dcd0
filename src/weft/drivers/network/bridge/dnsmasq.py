"""A segment's DHCP and DNS server: its command and files (pure), and the process (found, started, reloaded, stopped).

The process outlives the agent. It is known by its pid file, its whole command line and the namespace it lives in.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from weft.contracts.clock import SystemClock
from weft.contracts.driver.network import Port, Segment
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.linux.processes import list_arguments
from weft.drivers.network.bridge.dial import send_inside
from weft.drivers.network.bridge.kernel import NAMESPACES, run, write_file
from weft.drivers.network.bridge.leases import (
    SERVER_PORT,
    DhcpLease,
    list_stale,
    read_leases,
    render_first_lease,
    render_release,
)
from weft.drivers.network.bridge.names import INSIDE
from weft.objects.errors import DriverFailed

LEASE = "12h"
SIDE = "side"  # the tag of NICs that aren't their guest's main one
PATIENCE_SECONDS = 2.0
MOST_SECONDS = 10.0  # until leases are freed: the node's other networks wait meanwhile
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.002, 0.1  # between two looks at whether a lease is gone
GOING_PAUSE_SECONDS = 0.025  # while leases go away
MOST_AT_ONCE = 64  # releases that are sent at one time: a socket's buffer holds some 270
LOG_BYTES, LOG_KEPT_BYTES = 1 << 20, 64 << 10

# Where the server sees its folder. It gives up root once started, and the folder may lie where only root may go:
# a bind mount in a mount namespace of its own keeps the files within its reach, and nothing else.
SEEN_AT = "/mnt"
_PF_EXITING = 0x4
_CLOCK = SystemClock()
_ENTER = '[ -z "$1" ] || echo $$ >"$1"; mount --bind "$2" ' + SEEN_AT + ' && shift 2 && exec "$@"'


@dataclass(frozen=True)
class Files:
    """A segment's folder under the host's run_dir."""

    folder: Path

    @property
    def hosts(self) -> Path:
        return self.folder / "hosts"

    @property
    def names(self) -> Path:
        return self.folder / "names"

    @property
    def own(self) -> Path:
        return self.folder / "own"

    @property
    def leases(self) -> Path:
        """The server's leases, which it rewrites before each answer: it forgets them when it restarts."""
        return self.folder / "leases"

    @property
    def pid(self) -> Path:
        return self.folder / "dnsmasq.pid"

    @property
    def log(self) -> Path:
        return self.folder / "dnsmasq.log"


def plan_command(segment: Segment, files: Files, resolver: str | None, ports: Iterable[Port] = ()) -> list[str]:
    """The server's whole command line; ``resolver`` is a resolv.conf for names outside, None for none."""
    cidr = IPv4Network(segment.cidr)
    return [
        "dnsmasq",
        "--conf-file=/dev/null",
        f"--pid-file={files.pid}",
        f"--log-facility={files.log}",
        "--quiet-dhcp",
        "--user=nobody",
        f"--interface={INSIDE}",
        "--except-interface=lo",
        "--bind-interfaces",
        "--no-hosts",
        f"--addn-hosts={SEEN_AT}/{files.names.name}",
        f"--domain={segment.domain}",
        f"--local=/{segment.domain}/",
        f"--servers-file={SEEN_AT}/{files.own.name}",
        "--domain-needed",
        "--bogus-priv",
        f"--resolv-file={resolver}" if resolver else "--no-resolv",
        f"--dhcp-range={cidr.network_address},static,{cidr.netmask},{LEASE}",
        f"--dhcp-hostsfile={SEEN_AT}/{files.hosts.name}",
        "--dhcp-authoritative",
        "--dhcp-ignore-clid",  # which a guest can choose as another's; each port's MAC is checked on its way
        f"--dhcp-leasefile={SEEN_AT}/{files.leases.name}",
        "--dhcp-ignore-names",  # what guests call themselves: their names are in the file of hosts
        f"--dhcp-option=option:router,{segment.gateway}",
        f"--dhcp-option=option:dns-server,{segment.gateway}",
        f"--dhcp-option=option:mtu,{segment.mtu}",
        # Only the main NIC gets a default route and a name server. (A tag in the file of leases, and dnsmasq 2.90 dies on reload.)
        *(f"--dhcp-mac=set:{SIDE},{mac}" for mac in sorted(port.mac for port in ports if not port.main)),
        *(f"--dhcp-option=tag:{SIDE},option:{what}" for what in ("router", "dns-server", "domain-name")),
    ]


def shorten_log(files: Files) -> None:
    """Keep the end of a log that reloads, and what guests ask for in vain, have made long: the server appends to it, and goes
    on behind that. The folder may be in memory."""
    with contextlib.suppress(FileNotFoundError):
        if files.log.stat().st_size <= LOG_BYTES:
            return
        with open(files.log, "r+b") as file:
            file.seek(-LOG_KEPT_BYTES, os.SEEK_END)
            end = file.read(LOG_KEPT_BYTES)
            file.truncate(0)
            file.seek(0)
            file.write(end[end.find(b"\n") + 1 :])


def render_hosts(ports: Iterable[Port], segment: Segment) -> str:
    """Render the leases of this node's ports only, so that each guest is answered by its own node. A lease makes its name resolve:
    that of a guest of another project has none, nor has one that is a service's, or that the network calls otherwise."""
    taken = {name for service in segment.services for name in service.names}
    called = {endpoint.address: endpoint.name for endpoint in segment.endpoints if endpoint.name}

    def has_name(port: Port) -> bool:
        is_called = called.get(port.address, port.hostname) == port.hostname
        return is_called and "." not in port.hostname and port.hostname not in taken

    return "".join(
        f"{p.mac},{p.address},{f'{p.hostname},' if has_name(p) else ''}{LEASE}\n"
        for p in sorted(ports, key=lambda p: p.mac)
    )


def render_names(segment: Segment) -> str:
    """Render the names: every endpoint of the network, wherever it is, and the aliases. Guests of other projects have only names of
    four parts or more, which no name of the network's own project has, whatever projects, networks and domains are called."""
    domain = segment.domain
    services = {name: service.address for service in segment.services for name in service.names}
    named = sorted({(e.name, e.address) for e in segment.endpoints if e.name and e.name not in services})
    others = sorted({(alias.name, alias.address) for alias in segment.aliases})
    return "".join(
        f"{address} {name}.{segment.name}.{domain}\n"
        if "." in name
        else f"{address} {name}.{domain} {_bare(name)}{name}.{segment.name}.{domain} {name}.{segment.name}\n"
        for name, address in named
    ) + "".join(
        f"{address} {name}.{domain} {_bare(name) if _is_own(name) else ''}".rstrip() + "\n"
        for name, address in [*((one, at) for one, at in others if one not in services), *sorted(services.items())]
    )


def _is_own(alias: str) -> bool:
    """Whether it is NAME.NETWORK, and not NAME.PROJECT.NETWORK."""
    return alias.count(".") < 2


def _bare(name: str) -> str:
    """The name without its domain; ``localhost`` is each guest's own, also of one that asks the server for it."""
    return f"{name} " if name != "localhost" else ""


def render_own(segment: Segment) -> str:
    """Names outside the domain that only this server answers for: for what they don't have (an IPv6 address) no other server is
    asked, which may be out of reach."""
    named = {f"{e.name}.{segment.name}" for e in segment.endpoints if e.name and "." not in e.name} | {
        alias.name for alias in segment.aliases if _is_own(alias.name)
    }
    named |= {name for service in segment.services for name in service.names if "." in name and _is_own(name)}
    return "".join(f"server=/{name}/\n" for name in sorted(named))


async def ensure_server(
    segment: Segment,
    ports: list[Port],
    files: Files,
    namespace: str,
    resolver: str | None,
    resend: bool,
    cgroups: ControlGroups,
) -> str:
    """Make the server run with these files; returns what had to be done: "" (nothing), "reloaded" or "started".

    What changed needs but a signal, given with ``resend`` even if the files are as they were (they may have been written just
    before a crash). The server remembers leases and would refuse an address to its new owner: those that must go are freed,
    while it answers all others. Only where that can't be shown it is started afresh.
    """
    command = plan_command(segment, files, resolver, ports)
    hosts, names = render_hosts(ports, segment), render_names(segment)
    process, exact = inspect_server(files, command, namespace)
    if process is not None and not exact:
        await stop_process(process)
        process = None
    unsure = resend or _drops(files.hosts, hosts)
    files.folder.mkdir(parents=True, exist_ok=True)
    files.folder.chmod(0o755)
    shorten_log(files)
    changed = [
        write_file(files.hosts, hosts),
        write_file(files.names, names),
        write_file(files.own, render_own(segment)),
    ]
    if process is not None:
        if any(changed) or resend:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                signal.pidfd_send_signal(process, signal.SIGHUP)
        try:
            freed = await free_leases(segment, files, namespace, unsure)
        except BaseException:
            os.close(process)
            raise
        if freed:
            os.close(process)
            return "reloaded" if any(changed) else ""
        await stop_process(process)
    await start_server(segment, command, files, namespace, cgroups)
    return "started"


async def free_leases(segment: Segment, files: Files, namespace: str, unsure: bool) -> bool:
    """Free the leases that the files of hosts and names no longer allow; returns whether the server has forgotten them all. If
    ``unsure``, a file of leases that can't be read counts as one with such a lease. It goes on while leases go away, as the server
    syncs its file for each: until none has gone for ``PATIENCE_SECONDS``, and for ``MOST_SECONDS`` in all. A damaged file is
    given up earlier, as guests of an older weft could damage it, by a release in the router's name."""
    hosts, names = files.hosts.read_text(), files.names.read_text()
    pause, before, fewest, asked = FIRST_PAUSE_SECONDS, "", math.inf, frozenset[DhcpLease]()
    began = went = _CLOCK.elapsed()
    while True:
        try:
            text = files.leases.read_text(errors="replace")
        except OSError:
            text = ""
        try:
            leases = read_leases(text, segment.gateway)
            if leases is None and not unsure:
                return True
            if leases is None and pause == LONGEST_PAUSE_SECONDS and text == before:
                return False  # the server isn't writing it
            before = text
            if leases is not None:
                stale = list_stale(leases, hosts, names, segment.domain)
                if not stale:
                    return True
                if len(stale) < fewest:
                    fewest, went, pause = len(stale), _CLOCK.elapsed(), min(pause, GOING_PAUSE_SECONDS)
                if pause == LONGEST_PAUSE_SECONDS or asked.isdisjoint(stale):  # what it was sent may be lost
                    packets = [render_release(lease, segment.gateway) for lease in stale[:MOST_AT_ONCE]]
                    await send_inside(namespace, INSIDE, (segment.gateway, SERVER_PORT), packets)
                    asked = frozenset(stale[:MOST_AT_ONCE])
        except (OSError, ValueError):  # ValueError: a lease that isn't one, which no server has written
            return False
        now = _CLOCK.elapsed()
        if now - went >= PATIENCE_SECONDS or now - began >= MOST_SECONDS:
            return False
        await _CLOCK.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def inspect_server(files: Files, command: list[str], namespace: str) -> tuple[int | None, bool]:
    """A pidfd of the segment's server (the caller closes it), and whether it runs just so; None if it isn't there.

    Holding the process before looking at it makes a reused pid harmless. One that is ending has lost its command line
    but may hold its ports yet: it is still there.
    """
    try:
        pid = int(files.pid.read_text())
        process = os.pidfd_open(pid)
    except (OSError, ValueError):
        return None, False
    if _is_ending(pid):
        return process, False
    try:
        held = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        place = Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:  # gone between two looks, or a zombie, which has no namespaces
        os.close(process)
        return None, False
    if f"--pid-file={files.pid}" not in held:
        os.close(process)
        return None, False
    router = NAMESPACES / namespace
    return process, held == command and router.exists() and place == router.stat().st_ino


async def start_server(
    segment: Segment, command: list[str], files: Files, namespace: str, cgroups: ControlGroups
) -> None:
    """Start the server in the router's namespace, without a lease, out of the agent's control group; returns when it listens."""
    for pid in _servers_in(namespace):  # one whose pid file was lost holds the ports
        with contextlib.suppress(ProcessLookupError):  # it has ended since, as its children for TCP do
            await stop_process(os.pidfd_open(pid))
    write_file(files.leases, render_first_lease(segment.gateway))
    enter = ["nsenter", f"--net={NAMESPACES / namespace}", "unshare", "--mount", "sh", "-c", _ENTER, "sh"]
    group = next(map(str, cgroups.leave_agent()), "")
    await run("start dnsmasq", [*enter, group, str(files.folder), *command])


async def stop_server(files: Files, namespace: str) -> None:
    """Stop the segment's server and wait until it is gone; absent is fine."""
    process, _ = inspect_server(files, [], namespace)
    if process is not None:
        await stop_process(process)


async def stop_process(process: int) -> None:
    """Ask the process behind a pidfd to end, insist after a while, return when it has; closes the pidfd."""
    loop = asyncio.get_running_loop()
    try:
        for order in (signal.SIGTERM, signal.SIGKILL):
            try:
                signal.pidfd_send_signal(process, order)
            except ProcessLookupError:
                return
            ended = asyncio.Event()
            loop.add_reader(process, ended.set)
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await ended.wait()
                return
            except TimeoutError:
                continue
            finally:
                loop.remove_reader(process)
        raise DriverFailed("network: dnsmasq doesn't end, even killed", details={"step": "stop dnsmasq"})
    finally:
        os.close(process)


def choose_resolver() -> str | None:
    """The resolv.conf whose servers a router's namespace can reach; None if all are the node's own loopback."""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        if any(not server.startswith("127.") and server != "::1" for server in _read_servers(path)):
            return path
    return None


def read_resolvers() -> tuple[str, ...]:
    """The IPv4 addresses of the name servers outside a router that its own one asks."""
    path = choose_resolver()
    found = []
    for server in _read_servers(path) if path is not None else ():
        with contextlib.suppress(ValueError):
            found.append(str(IPv4Address(server)))
    return tuple(sorted({server for server in found if not server.startswith("127.")}))


def _read_servers(path: str) -> list[str]:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return []
    return [words[1] for words in map(str.split, lines) if len(words) > 1 and words[0] == "nameserver"]


def _drops(path: Path, text: str) -> bool:
    """Whether a line that the file holds is missing from its next version."""
    try:
        return not set(path.read_text().splitlines()) <= set(text.splitlines())
    except FileNotFoundError:
        return True


def _is_ending(pid: int) -> bool:
    try:
        flags = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6])
    except OSError:
        return False
    return bool(flags & _PF_EXITING)


def _servers_in(namespace: str) -> list[int]:
    router = (NAMESPACES / namespace).stat().st_ino
    found = []
    for pid, words in list_arguments():
        with contextlib.suppress(OSError):
            if words[0] == "dnsmasq" and Path(f"/proc/{pid}/ns/net").stat().st_ino == router:
                found.append(pid)
    return found
