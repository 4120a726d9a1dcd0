"""The bridge network driver: makes one node's bridges, overlays, routers, taps and published ports match what the agent
ensures.

Reads the kernel, decides in ``plan`` and ``rules``, applies in batches. It keeps in memory only what it last applied, so an
unchanged segment costs nothing; the kernel is read anew at a process's first change, when something has changed, and in
``heal``. What it needs to heal after a restart is beside the servers' files in the host's run_dir. Called by the agent. One
change at a time: a lock holds the rest back.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec

from weft.contracts.driver.host import Host
from weft.contracts.driver.network import Filter, Forward, Held, NetworkProbe, NetworkState, Port, Segment
from weft.contracts.network.rules import Opened, RefusedDestinations
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.linux.addresses import read_own_addresses
from weft.drivers.network.bridge import kernel, migration, plan
from weft.drivers.network.bridge.capture.tap import Taps
from weft.drivers.network.bridge.connection_table import ConnectionTable
from weft.drivers.network.bridge.conntrack import BridgeFlows
from weft.drivers.network.bridge.dial import CONNECT_SECONDS, GatewaySockets, dial_inside
from weft.drivers.network.bridge.dnsmasq import Files, choose_resolver, ensure_server, read_resolvers, stop_server
from weft.drivers.network.bridge.flow.reader import SeenFlows
from weft.drivers.network.bridge.kernel import FdbEntry, Link
from weft.drivers.network.bridge.names import Names, port_from_alias
from weft.drivers.network.bridge.netlink import forwarding
from weft.drivers.network.bridge.netlink.digest import digest_state
from weft.drivers.network.bridge.netlink.link_counters import LinkCounters
from weft.drivers.network.bridge.nftables import rules
from weft.drivers.network.bridge.nftables.firewall import Firewall
from weft.drivers.network.bridge.nftables.security_groups import CALL_IPTABLES, COUNTED
from weft.drivers.network.bridge.nftables.tables import Tables
from weft.drivers.network.bridge.probe import probe_kernel
from weft.drivers.network.bridge.published_ports import PublishedPorts
from weft.drivers.network.bridge.service.services import Services, differ_in_services_only
from weft.drivers.network.bridge.validation import (
    check_filters,
    check_forwards,
    check_port,
    check_ranges,
    check_segment,
)
from weft.objects.errors import DriverFailed, InUse, NotFound, WeftError

log = logging.getLogger("weft.agent")
LOOKS = 30  # of a node that looks as it did when it was sound, until everything is read again: no digest is everything


class Sound(msgspec.Struct):
    """A node on which nothing had to be mended, and how often it has looked the same since."""

    digest: bytes
    links: dict[str, Link]
    looks: int = 0


class BridgeNetwork:
    name = "bridge"

    def __init__(self, host: Host, most_connections: int | None = None) -> None:
        self._host = host
        self._names = Names(host.link_prefix)
        self._folder = Path(host.run_dir) / "network"
        self._cgroups = ControlGroups(host.cgroup)
        self._changing = asyncio.Lock()
        self._sound: Sound | None = None
        self._applied: dict[str, Segment] = {}
        self._switched: set[str] = set()  # segments with a port that was switched since they were applied
        self._unfinished: set[str] = set()  # segments that were changed, and could not be applied whole yet
        self._tables = Tables()
        self._guards = Firewall(host, self._names, self._tables)
        self.connections = ConnectionTable(host, self._names, self._tables, most_connections)
        self.flows = BridgeFlows(self._names, self._guards.zone_of)
        self.seen = SeenFlows(self._names, self._guards)
        self.taps = Taps(self._names)
        self.gateways = GatewaySockets(self._names)
        self.nic_counters = LinkCounters(self._names.tap)
        self._services = Services(host, self._names, self._tables)
        self._published = PublishedPorts(host, self._names, self._tables, self._services, self._segment)

    async def probe(self) -> NetworkProbe:
        """Find what works here; every problem names its remedy."""
        found = await probe_kernel(self._host, self._names)
        return NetworkProbe(self.name, not found.problems, found.capabilities, found.problems + found.warnings)

    async def ensure_segment(self, segment: Segment) -> None:
        """Make or mend the segment on this node; raises InvalidInput, InUse (its VNI), DriverFailed."""
        check_segment(segment, self._host.link_prefix)
        async with self._change():
            before = self._applied.get(segment.id)
            if before == segment:
                return
            self._unfinished.add(segment.id)
            if before is not None and differ_in_services_only(before, segment):
                await self._apply_services(segment, before)
            else:
                await self._apply_segment(segment, *await kernel.inspect_node())
            self._unfinished.discard(segment.id)

    async def dial(self, segment_id: str, address: str, port: int, seconds: float = CONNECT_SECONDS) -> socket.socket:
        """A TCP connection to a guest here. Raises OSError."""
        return await dial_inside(self._names.router(segment_id), address, port, seconds)

    async def remove_segment(self, segment_id: str) -> None:
        """Take the segment away; raises InUse while a port is plugged in."""
        async with self._change():
            links = await kernel.inspect_links()
            ports = self._ports(links, segment_id)
            if ports:
                raise InUse(
                    f"network {segment_id} has {len(ports)} ports on node {self._host.node}, {ports[0].id} among them",
                    hint="unplug them first",
                )
            segment = self._segment(segment_id)
            self._applied.pop(segment_id, None)
            self._unfinished.discard(segment_id)
            namespace, files = self._names.router(segment_id), self._files(segment_id)
            await stop_server(files, namespace)
            kernel.clear_namespace_file(namespace)
            has_router = (kernel.NAMESPACES / namespace).exists()
            await kernel.perform_links(plan.plan_removal(self._names, segment_id, links, has_router))
            self._tables.forget(namespace)
            if segment is not None and segment.migrated:
                await self._tables.drop(*rules.name_migrated(self._names, segment.id))
            shutil.rmtree(files.folder, ignore_errors=True)
            left = await kernel.inspect_links()
            await self._services.forget(segment_id)
            await self._published.apply(left)
            await self._guards.follow(frozenset(self._segment_ids(left)))
            await self.connections.limit(self._segments(left))
            if not self._segment_ids(left):
                own = [("ip", self._names.node_table), ("bridge", self._names.bridge_table)]
                await self._tables.drop(*own, *self._guards.unused_tables)
            elif segment is not None and segment.open:
                await self._tables.ensure("", rules.render_node(self._names, self._host, self._opened(left)))
                await self._guards.open(self._opened(left), self._routers(left))

    async def plug(self, port: Port) -> str:
        """Make the port on its segment and return its tap's name or its namespace's path; raises NotFound before the segment is
        made here."""
        check_port(port, self._host.link_prefix)
        tap = self._names.tap(port.id)
        async with self._change():
            links, fdb = await kernel.inspect_node()
            segment = self._segment(port.segment_id)
            if segment is None or self._names.bridge(port.segment_id) not in links:
                raise NotFound(
                    f"port {port.id}: network {port.segment_id} isn't on node {self._host.node}",
                    hint="ensure the segment before its ports",
                )
            ports = [p for p in self._ports(links, port.segment_id) if p.id != port.id] + [port]
            steps = plan.Steps()
            inside = port.inside
            if inside is not None and await kernel.ensure_namespace(
                self._names.guest(inside.guest), own_users=inside.own_users
            ):
                await kernel.attempt("drop a link", ["ip", "link", "del", "dev", tap])  # of a namespace that was lost
                links.pop(tap, None)
            plan.plan_port(steps, self._names, port, segment.mtu, links)
            steps.fdb = plan.plan_fdb(self._names, self._host, segment, ports, fdb)
            await kernel.perform_links(steps.links)
            await kernel.perform_fdb(steps.fdb)
            if port.inside is not None:
                lines, shared = plan.plan_inside(port, port.inside, segment), port.inside.shared
                table = rules.render_shared(port.inside).text if shared else ""
                await kernel.perform_router(self._names.guest(port.inside.guest), lines, shared, table)
            others = [p for p in self._ports(links) if p.id != port.id]
            await self._tables.ensure("", rules.render_taps(self._names, [*others, port]))
            await self._ensure_server(segment, ports, resend=segment.id not in self._applied)
        return tap if port.inside is None else str(kernel.NAMESPACES / self._names.guest(port.inside.guest))

    async def unplug(self, port_id: str) -> None:
        """Take the port away; absent is fine."""
        tap = self._names.tap(port_id)
        async with self._change():
            links = await kernel.inspect_links()
            if tap not in links:
                return
            gone = port_from_alias(port_id, links[tap].ifalias)
            await kernel.perform_links([f"link del dev {tap}"])
            left = [p for p in self._ports(links) if p.id != port_id]
            if gone is None:
                return
            if gone.inside is not None and all(p.inside is None or p.inside.guest != gone.inside.guest for p in left):
                await kernel.drop_namespace(self._names.guest(gone.inside.guest))
            await self._tables.ensure("", rules.render_taps(self._names, left))
            segment = self._segment(gone.segment_id)
            await self.connections.forget(gone, segment, self._guards.zone_of(gone), links)
            if segment is not None and self._names.bridge(segment.id) in links:
                rest = [p for p in left if p.segment_id == segment.id]
                await self._ensure_server(segment, rest, resend=segment.id not in self._applied)

    async def ensure_forwards(self, forwards: list[Forward]) -> None:
        """Publish exactly these; one whose segment isn't here yet joins when the segment is made."""
        check_forwards(forwards, self._host.link_prefix)
        async with self._change():
            before = await self._published.publish(forwards)
            if before is not None:
                await self._guards.publish(self._published.ports)
                await self._published.cut_flows(before)

    async def find_held(self) -> list[Held]:
        """See contracts.driver.network. Raises DriverFailed."""
        async with self._changing:
            return await self._published.find_held()

    async def find_addresses(self) -> list[str]:
        """See contracts.driver.network."""
        return read_own_addresses()

    async def ensure_refused(self, cidrs: list[str], hosts: list[str]) -> None:
        """Refuse exactly these ranges to guests' outbound traffic; raises InvalidInput, DriverFailed."""
        check_ranges([*cidrs, *hosts])
        async with self._change():
            links = await kernel.inspect_links()
            refused = RefusedDestinations(tuple(cidrs), tuple(hosts), self._published.ports)
            await self._guards.refuse(refused, self._opened(links), self._routers(links))

    async def ensure_filters(self, filters: list[Filter]) -> None:
        """Filter exactly these ports in exactly this way; raises InvalidInput, DriverFailed (without br_netfilter)."""
        check_filters(filters, self._host.link_prefix)
        async with self._change():
            if not self._guards.knows_filters:
                await self._guards.follow(frozenset(self._segment_ids(await kernel.inspect_links())))
            await self._guards.filter(filters)

    def switch(self, port: Port, node_address: str) -> None:
        """Send what is for the port's NIC to that node at once. Raises DriverFailed."""
        names, here = self._names, node_address == self._host.underlay_address
        overlay, table = names.overlay(port.segment_id), names.migrated_table(port.segment_id)
        segment = self._segment(port.segment_id)
        if here:
            forwarding.place_mac(names.tap(port.id), port.mac)
            if segment is not None and port.mac in migration.find_passed_on(self._host, segment):
                forwarding.drop_element(table, rules.PASSED_ON, port.mac)  # waits for the kernel's readers, some 15 ms
            forwarding.forget_overlay(overlay, port.mac)  # after it: what is passed on to nowhere known would flood
        else:
            forwarding.point_overlay(overlay, port.mac, node_address)
            forwarding.place_mac(overlay, port.mac)
            forwarding.put_element(table, rules.PASSED_ON, port.mac)
        self._switched.add(port.segment_id)
        self._sound = None
        self._applied.pop(
            port.segment_id, None
        )  # the rest, such as where broadcasts go, is left to the next ensure_segment
        if segment is not None:
            self._keep(migration.readdress(segment, port.mac, node_address))

    async def state(self) -> NetworkState:
        links = await kernel.inspect_links()
        ports = [found for name in links if (found := self._names.id_in(name, "t"))]
        shared = [port.id for port in self._ports(links) if port.inside is not None and port.inside.shared]
        kept = [folder.name for folder in self._folder.glob("*")]  # files outlive their links where a node loses power
        return NetworkState(sorted({*self._segment_ids(links), *kept}), sorted(ports), sorted(shared))

    async def heal(self) -> list[str]:
        """Read everything of ours anew and mend it, even what an earlier process made. Failures go to the log, and the rest is
        still mended. A network that was sound, and whose digest is the same as then, is read again only after LOOKS digests."""
        async with self._changing:
            digest, sound = await self._digest(), self._sound
            if sound is not None and sound.looks < LOOKS and digest == sound.digest:
                sound.looks += 1
                return await self._heal_servers(sound.links)
            self._sound = None
            mended, failed, links = await self._heal_all()
            if digest is not None and not mended and not failed:  # nothing has changed since then, and all was right
                self._sound = Sound(digest, links)
            return mended

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        """The context of each change: ``heal`` reads everything again after it, however it ended."""
        async with self._changing:
            self._sound = None
            yield

    async def _heal_all(self) -> tuple[list[str], bool, dict[str, Link]]:
        """Mend everything. Returns what was mended, whether something failed, and the links in the end."""
        self._tables.forget_all()
        mended: list[str] = []
        failed: list[str] = []
        found = await kernel.inspect_node()
        for segment_id in sorted({*self._segment_ids(found[0]), *self._applied}):
            if (segment := self._segment(segment_id)) is None:
                continue
            done = None
            with _logging_failures(f"network {segment.name}", failed):
                done = await self._apply_segment(segment, *found)
                mended += [f"{what} of network {segment.name}" for what in done]
            if done != []:
                found = await kernel.inspect_node()
        with _logging_failures("published ports", failed):
            if await self._published.apply(found[0]):
                mended.append("published ports")
        with _logging_failures("refused destinations and security groups", failed):
            mended += await self._guards.heal()
        return mended, bool(failed), found[0]

    async def _heal_servers(self, links: Mapping[str, Link]) -> list[str]:
        """Start the servers that have ended: no digest shows them."""
        mended: list[str] = []
        for segment in self._segments(links):
            with _logging_failures(f"network {segment.name}"):
                done = await self._ensure_server(segment, self._ports(links, segment.id), resend=False)
                mended += [f"DHCP and DNS of network {segment.name}"] * (done == "started")
        return mended

    async def _digest(self) -> bytes | None:
        """A digest of all that ``_heal_all`` reads; None where it can't be read: then everything is."""
        routers = [self._names.router(segment_id) for segment_id in sorted(self._applied)]
        loopbacks = (self._host.underlay_link, *map(self._names.uplink, sorted(self._applied)))
        settings = ["net/ipv4/ip_forward", CALL_IPTABLES, *COUNTED]
        settings += [f"net/ipv4/conf/{link}/route_localnet" for link in loopbacks]
        try:
            found = await asyncio.to_thread(digest_state, routers, settings)
        except OSError:
            return None
        resolvers = (choose_resolver(), read_resolvers()) if self._host.dns_upstream else ()
        return found + repr((sorted(self._applied.items()), resolvers)).encode()

    async def close(self) -> None:
        """Close the driver; what it made stays, and is found again."""
        self.seen.close()

    async def _apply_segment(self, segment: Segment, links: Mapping[str, Link], fdb: list[FdbEntry]) -> list[str]:
        """Bring the kernel from what was just read to the segment; returns what had to be made or mended. With a port
        that is switched meanwhile it is done again, since what was read is out of date, and nothing counts as mended; nor
        does a change that was left unfinished. What fails is done once more after another look: a namespace ends some time
        after its name, and takes links along."""
        late, again = segment.id in self._unfinished, False
        mended: list[str] = []
        while True:
            late |= segment.id in self._switched
            self._switched.discard(segment.id)
            try:
                await self._apply_once(segment, links, fdb, mended)
                done = True
            except DriverFailed:
                if again and segment.id not in self._switched:
                    raise
                done, again = False, True
            if done and segment.id not in self._switched:
                self._applied[segment.id] = segment
                self._unfinished.discard(segment.id)
                return [] if late else list(dict.fromkeys(mended))
            if segment.id in self._switched:
                segment = self._segment(segment.id) or segment
            links, fdb = await kernel.inspect_node()

    async def _apply_services(self, segment: Segment, before: Segment) -> None:
        """How new connections to services are split has changed, and nothing else."""
        del self._applied[segment.id]
        await self._services.apply(segment, before)
        self._keep(segment)
        self._applied[segment.id] = segment
        if self._services.lead_to(segment):
            await self._published.apply(await kernel.inspect_links())

    async def _apply_once(
        self, segment: Segment, links: Mapping[str, Link], fdb: list[FdbEntry], mended: list[str]
    ) -> None:
        """Apply the segment; what is made or mended is added to ``mended``, also if something fails after it."""
        names, host = self._names, self._host
        namespace = names.router(segment.id)
        before = self._segment(segment.id)
        was_applied = self._applied.pop(segment.id, None) is not None
        kernel.clear_namespace_file(namespace)
        router = await kernel.inspect_router(namespace)
        uplink = plan.plan_uplink(names, segment.id, links)
        ports = self._ports(links, segment.id)
        steps = plan.plan_segment(names, host, segment, ports, links, fdb, router, uplink)
        self._keep(segment)

        mended += steps.mended
        if any(line.startswith("netns add ") for line in steps.links):
            self._tables.forget(namespace)
        if kernel.write_sysctl("net/ipv4/ip_forward", "1"):
            mended.append("forwarding on the node")
        await kernel.perform_links(steps.links)
        await kernel.perform_fdb(steps.fdb)
        await kernel.perform_router(namespace, steps.router, steps.forward, strict=steps.strict)
        if await self._tables.ensure(namespace, rules.render_router(segment, rules.render_older(host, segment))):
            mended.append("NAT")
        opened = self._opened(links, segment)
        tables = [rules.render_node(names, host, opened), rules.render_taps(names, self._ports(links))]
        if segment.migrated:
            tables += rules.render_migrated(names, host, segment)
        elif before is not None and before.migrated:
            await self._tables.drop(*rules.name_migrated(self._names, segment.id))
        if await self._tables.ensure("", *tables):
            mended.append("filters")
        await self._guards.open(opened, self._routers(links))
        await self._guards.follow(frozenset([*self._segment_ids(links), segment.id]))
        if await self._services.apply(segment, before, self._segments(links, segment)):
            mended.append("services")
        if await self.connections.limit(self._segments(links, segment)):
            mended.append("limits on connections")
        if segment.migrated:
            await asyncio.to_thread(self._pass_on, segment)
        # Lets a process of the node reach published ports at 127.0.0.1; only once the tables guard the loopback.
        kernel.write_sysctl(f"net/ipv4/conf/{names.uplink(segment.id)}/route_localnet", "1")
        if steps.links or steps.router or self._services.lead_to(segment):
            await self._published.apply(await kernel.inspect_links())
        if await self._ensure_server(segment, ports, resend=not was_applied) == "started":
            mended.append("DHCP and DNS")

    async def _ensure_server(self, segment: Segment, ports: list[Port], *, resend: bool) -> str:
        resolver = choose_resolver() if self._host.dns_upstream and segment.nat else None
        return await ensure_server(
            segment,
            ports,
            self._files(segment.id),
            self._names.router(segment.id),
            resolver,
            resend=resend,
            cgroups=self._cgroups,
        )

    def _opened(self, links: Mapping[str, Link], changed: Segment | None = None) -> Opened:
        """The services of the host that the segments here open to their guests; ``changed`` is one of them, as it will be."""
        found = {segment.id: segment.open for segment in self._segments(links, changed) if segment.open}
        return Opened(found, read_resolvers() if self._host.dns_upstream else ())

    def _segments(self, links: Mapping[str, Link], changed: Segment | None = None) -> list[Segment]:
        """Those here; ``changed`` is one of them, as it will be."""
        known = [self._segment(id) for id in self._segment_ids(links) if changed is None or id != changed.id]
        return [segment for segment in (*known, changed) if segment is not None]

    def _routers(self, links: Mapping[str, Link]) -> dict[str, str]:
        """The segments here, by the address of their router towards the node."""
        ids = self._segment_ids(links)
        return {uplink.router: id for id in ids if (uplink := plan.held_uplink(self._names, id, links))}

    def _pass_on(self, segment: Segment) -> None:
        """Make the set of passed-on MACs match the segment, whatever a switch made of it."""
        table, wanted = self._names.migrated_table(segment.id), migration.find_passed_on(self._host, segment)
        for mac in sorted({found.mac for found in segment.migrated}):
            change = forwarding.put_element if mac in wanted else forwarding.drop_element
            change(table, rules.PASSED_ON, mac)

    def _keep(self, segment: Segment) -> None:
        """Save the segment for a driver made anew."""
        kernel.write_file(self._files(segment.id).folder / "segment.json", msgspec.json.encode(segment).decode())

    def _files(self, segment_id: str) -> Files:
        return Files(self._folder / segment_id)

    def _segment(self, segment_id: str) -> Segment | None:
        """The segment as it was last ensured, by this process or the one before it."""
        if segment_id in self._applied:
            return self._applied[segment_id]
        try:
            return msgspec.json.decode((self._files(segment_id).folder / "segment.json").read_bytes(), type=Segment)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _ports(self, links: Mapping[str, Link], segment_id: str | None = None) -> list[Port]:
        """The ports whose taps are here, on one segment or all."""
        found = []
        for name, link in links.items():
            port_id = self._names.id_in(name, "t")
            port = port_from_alias(port_id, link.ifalias) if port_id else None
            if port is not None and segment_id in (None, port.segment_id):
                found.append(port)
        return found

    def _segment_ids(self, links: Mapping[str, Link]) -> list[str]:
        return [found for name in links if (found := self._names.id_in(name, "b"))]


@contextmanager
def _logging_failures(what: str, failed: list[str] | None = None) -> Iterator[None]:
    try:
        yield
    except WeftError as problem:
        if failed is not None:
            failed.append(what)
        log.warning("%s can't be repaired now: %s", what, problem)
