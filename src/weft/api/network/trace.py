"""Follows a connection from one end to the other, in the order in which packets meet what decides. Pure.

What rules allow is decided by ``contracts/network/rules.py``, as on the nodes.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from weft.api.network import remedy
from weft.api.network.answer import NetworkTrace, Reason, Stage, TraceStep, Verdict
from weft.api.network.facts import (
    EVERYWHERE,
    Anothers,
    Backend,
    Balanced,
    Caller,
    Network,
    NetworkAddress,
    Published,
    ReachabilityFacts,
    Workload,
)
from weft.contracts.network.rules import (
    DNS,
    LINK_LOCAL,
    UPLINKS,
    NewFlow,
    find_group,
    is_closed_host,
    is_refused_network,
    may_enter,
    may_leave,
)
from weft.kinds.allocation import AllocatedNic
from weft.objects.identity import short_id

_CLIENT_PORT = 40000  # of a client: which one it is decides nothing


def trace(facts: ReachabilityFacts) -> NetworkTrace:
    """Follow the connection."""
    path = _Path(facts)
    path.follow()
    return path.report()


class _Path:
    """The steps so far."""

    def __init__(self, facts: ReachabilityFacts) -> None:
        self.facts = facts
        self.steps: list[TraceStep] = []
        self.silent = ""
        self._ways: list[bool] = []  # of a service: which endpoints are reached

    def follow(self) -> None:
        facts, source, target = self.facts, self.facts.source, self.facts.target
        self._note_silent()
        if isinstance(source, Caller):
            self._pass("source", "", f"{source.shown}: a machine outside the fabric")
            if isinstance(target, Published):
                self._published(target, source.address, "")
            else:
                self._block(
                    *("isolation", "", "notPublished", f"nothing from outside opens connections to {target.shown}"),
                    "publish a port of it, like --publish 8080:80",
                )
            return
        pair = self._find_nics(source)
        if pair is None:
            return
        nic, near = pair
        self._pass("source", near.name, f"{source.shown} is {nic.address} there")
        self._pass("spoofGuard", near.name, f"it sends only as {nic.address} with MAC {nic.mac}")
        self._names(source, nic, near)
        match target:
            case Workload():
                self._neighbour(source, nic, near, target)
            case Balanced():
                self._balanced(source, nic, near, target)
            case Published():
                if entry := _find_entry(target):
                    self._leave(source, nic, near, entry, target.port)
                self._published(target, source.node_address, source.node)
            case Anothers():
                self._egress(source, nic, near, target.address, facts.port)
                self._know("ingress", "", "another project's security groups decide; they are not shown")
            case NetworkAddress():
                self._place(source, nic, near, target)

    def report(self) -> NetworkTrace:
        facts = self.facts
        blocking = next((step for step in self.steps if step.passes is False), None)
        unknown = any(step.passes is None and step.stage == "ingress" for step in self.steps)
        verdict: Verdict = "allowed"
        if blocking is not None:
            verdict = "partial" if self._is_partial() else "blocked"
        elif unknown:
            verdict = "unknown"
        else:
            self._pass("reply", "", "answers pass: connections are tracked")
        return NetworkTrace(
            source=facts.source.shown,
            target=facts.target.shown,
            protocol=facts.protocol,
            port=facts.port or None,
            verdict=verdict,
            by=blocking.by if blocking else "",
            reason=blocking.reason if blocking else "",
            message=blocking.message if blocking else "",
            remedy=blocking.remedy if blocking else "",
            silent=self.silent,
            steps=self.steps,
        )

    def _is_partial(self) -> bool:
        """Whether some endpoints of a service are reached, and only others aren't."""
        others = any(step.passes is False and step.stage not in ("egress", "ingress") for step in self.steps)
        return any(self._ways) and not others

    # -- the ends ----------------------------------------------------------------------------------------------------------

    def _note_silent(self) -> None:
        leads_to = self.facts.target.leads_to if isinstance(self.facts.target, Published) else self.facts.target
        for end, does in ((self.facts.source, "sends nothing"), (leads_to, "answers nothing")):
            if isinstance(end, Workload) and end.silent and not self.silent:
                self.silent = f"{end.shown} {end.silent}: it {does}"

    def _find_nics(self, source: Workload) -> tuple[AllocatedNic, Network] | None:
        """The source's NIC that the packets leave by, and its network; None if there is none."""
        nics = [nic for nic in source.nics if self.facts.source_nic in ("", nic.network, nic.address)]
        if not nics:
            where = f" in {self.facts.source_nic}" if self.facts.source_nic else ""
            self._block("source", source.shown, "noAddress", f"{source.shown} has no address{where} yet", "")
            return None
        chosen, target = nics[0], self.facts.target
        if isinstance(target, Workload):
            ends = {nic.network_uid for nic in self._nics_of(target)}
            chosen = next((nic for nic in nics if nic.network_uid in ends), chosen)
        elif isinstance(target, Balanced):
            chosen = next((nic for nic in nics if nic.network_uid == target.network.uid), chosen)
        elif isinstance(target, Anothers) or (isinstance(target, NetworkAddress) and not target.is_all):
            chosen = next((nic for nic in nics if IPv4Address(target.address) in IPv4Network(nic.cidr)), chosen)
        return chosen, self.facts.networks[chosen.network_uid]

    def _nics_of(self, target: Workload) -> list[AllocatedNic]:
        return [nic for nic in target.nics if self.facts.target_nic in ("", nic.network, nic.address)]

    # -- inside a network --------------------------------------------------------------------------------------------------

    def _names(self, source: Workload, nic: AllocatedNic, near: Network) -> None:
        rules = source.filter(nic, near)
        if rules is None or may_leave(NewFlow("udp", nic.address, nic.gateway, _CLIENT_PORT, DNS), rules):
            self._pass("names", near.name, f"its name server, {nic.gateway}, answers whatever security groups say")
        else:
            self._block("names", near.name, "egressDenied", f"its name server, {nic.gateway}, is out of reach", "")

    def _neighbour(self, source: Workload, nic: AllocatedNic, near: Network, target: Workload) -> None:
        nics = self._nics_of(target)
        there = next((one for one in nics if one.network_uid == nic.network_uid), None)
        if there is not None:
            self._egress(source, nic, near, there.address, self.facts.port, target)
            self._pass("isolation", near.name, f"{target.shown} is in it too")
            self._ingress(target, there, near, nic.address, self.facts.port, source)
        elif not nics:
            self._block("isolation", target.shown, "noAddress", f"{target.shown} has no address yet", "")
        else:
            self._egress(source, nic, near, nics[0].address, self.facts.port, target)
            others = self.facts.networks[nics[0].network_uid].name
            self._isolated(source, near, f"{target.shown} is in {others}", nics[0].network, target.project)

    def _isolated(self, source: Workload, near: Network, fact: str, network: str, project: str) -> None:
        may_join = project == source.project or "/" in network
        way = remedy.join_network(source, network) if may_join else ""
        message = f"{source.shown} is in {near.name}, and {fact}: networks reach each other only by published ports"
        self._block("isolation", near.name, "otherNetwork", message, way)

    def _balanced(self, source: Workload, nic: AllocatedNic, near: Network, service: Balanced) -> None:
        if near.uid != service.network.uid:
            fact = f"{service.shown} has its address in {service.network.name}"
            self._isolated(source, near, fact, service.network.name.partition("/")[2], source.project)
            return
        self._pass("egress", near.name, f"a service's address, {service.address}, needs no rule: its endpoints do")
        target_port = self._translate(service, self.facts.protocol, self.facts.port)
        for backend in service.backends if target_port else ():
            before = len(self.steps)
            seen, by = nic.address, source
            if service.http:
                seen = near.egress.get(source.node) or near.cidr
                self._know("service", service.shown, f"the proxy of node {source.node or '–'} asks for it as {seen}")
            elif backend.address == nic.address:
                seen = nic.gateway
            else:
                self._egress(source, nic, near, backend.address, target_port, backend.workload)
            self._backend(backend, near, seen, target_port, seen if service.http or seen == nic.gateway else by)
            self._ways.append(all(step.passes is not False for step in self.steps[before:]))

    def _translate(self, service: Balanced, protocol: str, port: int) -> int:
        """The port of the service's endpoints; 0 if no connection gets there."""
        target_port = service.ports.get((protocol, port), 0)
        has = ", ".join(f"{number}/{transport}" for transport, number in sorted(service.ports))
        if not target_port:
            what = f"{port}/{protocol}" if port else protocol
            self._block("service", service.shown, "noSuchPort", f"it has no port {what}: it has {has}", f"--port {has}")
        elif not service.backends:
            way = f"weft get {service.shown} shows why"
            self._block("service", service.shown, "noEndpoints", "no endpoint is ready, so it refuses connections", way)
            return 0
        else:
            number = len(service.backends)
            ends = f"{number} endpoint{'s' if number > 1 else ''}"
            self._pass("service", service.shown, f"{service.address}:{port} leads to {ends}, port {target_port}")
        return target_port

    def _backend(self, backend: Backend, near: Network, seen: str, port: int, source: str | Workload) -> None:
        there = next((nic for nic in backend.workload.nics if nic.address == backend.address), None)
        if there is None:
            self._block(
                *("service", backend.workload.shown, "noAddress", f"it has no address in {near.name} any more"), ""
            )
        else:
            self._ingress(backend.workload, there, near, seen, port, source)

    # -- out of a network --------------------------------------------------------------------------------------------------

    def _place(self, source: Workload, nic: AllocatedNic, near: Network, place: NetworkAddress) -> None:
        port = self.facts.port
        if not place.is_all and IPv4Address(place.address) in IPv4Network(nic.cidr):
            self._egress(source, nic, near, place.address, port)
            if place.address != nic.gateway:
                self._block(
                    "isolation", near.name, "nothingThere", f"nothing there has the address {place.address}", ""
                )
            elif self.facts.protocol == "icmp" or port == DNS:
                self._pass("gateway", near.name, "the gateway answers")
            else:
                self._block(
                    "gateway", near.name, "nothingThere", "the gateway answers pings and questions for names only", ""
                )
            return
        self._leave(source, nic, near, EVERYWHERE if place.is_all else place.address, port, place.network)

    def _leave(self, source: Workload, nic: AllocatedNic, near: Network, to: str, port: int, of: str = "") -> None:
        """Out through the router and the node, to an address or to all of them."""
        self._egress(source, nic, near, to, port)
        if not near.nat:
            name = near.name.partition("/")[2]
            way = f"weft network set {name} --nat -p {source.project}" if "/" not in name else ""
            self._block("route", near.name, "noNat", "it has no way out: it is a network without NAT", way)
            return
        if to != EVERYWHERE:
            flow = NewFlow(self.facts.protocol, nic.address, to, _CLIENT_PORT, port)
            if IPv4Address(to) in LINK_LOCAL:
                self._block(
                    "route", near.name, "linkLocal", f"{to} is link-local: it means nothing beyond {near.name}", ""
                )
                return
            if is_refused_network(flow, self.facts.refused):
                whose = of or "another project's network"
                self._block("isolation", whose if of else "", "otherNetwork", f"{to} is in {whose}", "")
                return
            if is_closed_host(flow, self.facts.refused, self.facts.opened, short_id(nic.network_uid)):
                way = remedy.open_host(near, self.facts.protocol, port, to, source.project)
                self._block(
                    *("hosts", near.name, "hostClosed", f"{to} is a node or the server, closed to workloads"), way
                )
                return
        node = f"node {source.node}" if source.node else "its node"
        self._pass("route", near.name, f"out through {node}, whose address stands for {nic.address}")

    def _published(self, port: Published, seen: str, node: str) -> None:
        """Follow a connection in by a published port; ``seen`` is who asks, from ``node`` if it is a workload there."""
        target, asked = port.leads_to, f"{port.port}/{port.protocol}"
        if (self.facts.protocol, self.facts.port) != (port.protocol, port.port):
            self._block(
                "published", port.shown, "noSuchPort", f"it is port {asked}", f"leave --port out, or give {asked}"
            )
            return
        if isinstance(target, Balanced):
            self._pass("published", port.shown, f"port {port.port} of every node leads to {target.shown}")
            target_port = self._translate(target, port.protocol, port.target_port)
            for backend in target.backends if target_port else ():
                comes_as = seen
                if target.http:
                    comes_as = target.network.egress.get(backend.workload.node) or target.network.cidr
                elif node and node == backend.workload.node:
                    comes_as = str(UPLINKS)
                before = len(self.steps)
                self._backend(backend, target.network, comes_as, target_port, comes_as)
                self._ways.append(all(step.passes is not False for step in self.steps[before:]))
            return
        if not target.nics:
            self._block("published", port.shown, "noAddress", f"{target.shown} has no address yet", "")
            return
        nic = target.nics[0]
        near = self.facts.networks[nic.network_uid]
        place = f"{target.shown}, {nic.address}:{port.target_port}"
        self._pass("published", port.shown, f"port {port.port} of every node leads to {place}")
        comes_as = str(UPLINKS) if node and node == target.node else seen
        self._ingress(target, nic, near, comes_as, port.target_port, comes_as)

    # -- security groups ---------------------------------------------------------------------------------------------------

    def _egress(
        self, source: Workload, nic: AllocatedNic, near: Network, to: str, port: int, target: Workload | None = None
    ) -> None:
        flow = NewFlow(self.facts.protocol, nic.address, to, _CLIENT_PORT, port)
        self._ask(source, nic, near, flow, to, target or to, out=True)

    def _ingress(
        self, target: Workload, nic: AllocatedNic, near: Network, seen: str, port: int, source: str | Workload
    ) -> None:
        flow = NewFlow(self.facts.protocol, seen, nic.address, _CLIENT_PORT, port)
        self._ask(target, nic, near, flow, seen, source, out=False)

    def _ask(
        self,
        who: Workload,
        nic: AllocatedNic,
        near: Network,
        flow: NewFlow,
        far: str,
        peer: str | Workload,
        *,
        out: bool,
    ) -> None:
        """Ask the security groups of one end."""
        stage: Stage = "egress" if out else "ingress"
        rules = who.filter(nic, near)
        what = flow.protocol + (f"/{flow.port}" if flow.port else "")
        place = "everywhere" if far == EVERYWHERE else far
        other = f"{'to' if out else 'from'} {place if isinstance(peer, str) else f'{peer.shown} ({place})'}"
        if rules is None:
            self._pass(
                stage, who.shown, f"{who.shown} has no security group: it {'sends' if out else 'takes'} everything"
            )
            return
        groups = [group.allocated for group in who.groups]
        if may_leave(flow, rules) if out else may_enter(flow, rules):
            by = find_group(groups, flow, far, near.endpoints, out=out)
            self._pass(stage, f"securitygroup/{by}" if by else near.name, f"{what} {other} is allowed")
            return
        names = ", ".join(f"securitygroup/{group.name}" for group in groups)
        way = remedy.open_group(who, self.facts.protocol, peer, flow.port, out=out)
        message = f"no rule allows {what} {other}"
        self._block(stage, names, "egressDenied" if out else "ingressDenied", message, way)

    # -- steps -------------------------------------------------------------------------------------------------------------

    def _pass(self, stage: Stage, by: str, message: str) -> None:
        self.steps.append(TraceStep(stage, True, by, message))

    def _know(self, stage: Stage, by: str, message: str) -> None:
        self.steps.append(TraceStep(stage, None, by, message))

    def _block(self, stage: Stage, by: str, reason: Reason, message: str, remedy_: str) -> None:
        self.steps.append(TraceStep(stage, False, by, message, reason, remedy_))


def _find_entry(port: Published) -> str:
    """The address of the node that a workload asks for the port: one where the port leads on without another node;
    "" for none."""
    target = port.leads_to
    if isinstance(target, Workload):
        return target.node_address
    return next((backend.workload.node_address for backend in target.backends), "")
