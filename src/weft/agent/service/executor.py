"""The proxies of this node: run, changed and ended as the HTTP services of its networks say.

Reads the services of this node's networks and where guests are; woken by them, and twice a second to see that proxies run. A proxy
outlives the agent, and one that died is started again from what stands. Its counts are kept for the heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from weft.agent.function.egress_endpoints import EgressEndpoints
from weft.agent.service.certificates import Certificates
from weft.agent.service.plan import WantedProxy, list_proxied, plan_proxies
from weft.agent.state.service import ServedAddress
from weft.agent.state.table import AllocationTable
from weft.contracts.clock import Clock
from weft.contracts.driver.network import CanListen, GatewayListener, NetworkDriver
from weft.contracts.proxy import EndpointCount, Listener, Proxy, ProxyDriver
from weft.contracts.wakeup import wait_for_event
from weft.kinds.allocation import AllocatedNic
from weft.objects.errors import WeftError
from weft.objects.identity import short_id
from weft.protocol.heartbeat import ANSWERS, RequestCounts

log = logging.getLogger("weft.agent")
LOOK_SECONDS = 0.5
COUNT_SECONDS = 1.0
RECENT_SECONDS = 10.0  # of which the mean time until an answer is: as often as it is recorded
REPORT_SECONDS = 1.0  # between reports while requests fail: rollouts are judged by them
LINGER_SECONDS = 5.0  # of a proxy that nothing needs: a guest that is replaced is soon back


class Proxies:
    """``services``: of this node's networks, by network uid and address. ``driver`` None: this node runs no proxies.
    ``report`` is called when there is something to report: while requests fail, at most every REPORT_SECONDS."""

    def __init__(
        self,
        driver: ProxyDriver | None,
        network: NetworkDriver,
        services: Mapping[str, Mapping[str, ServedAddress]],
        egress: EgressEndpoints,
        table: AllocationTable,
        certificates: Certificates,
        clock: Clock,
        report: Callable[[], None] = lambda: None,
    ) -> None:
        self._driver, self._network, self._services = driver, network, services
        self._report, self._failures, self._failed_at = report, 0, -REPORT_SECONDS
        self._egress, self._table, self._clock = egress, table, clock
        self._certificates = certificates
        self._woken = asyncio.Event()
        self._networks: dict[str, str] = {}  # of proxies that run, by id
        self._idle_since: dict[str, float] = {}
        self._troubles: dict[str, str] = {}
        self._stands: dict[str, tuple[Listener, ...]] = {}  # what the proxies have, by id
        self._counts: dict[str, list[EndpointCount]] = {}  # by the proxy's id
        self._times: dict[tuple[str, str], list[tuple[float, float]]] = {}  # by service and address: when, and seconds

    def wake(self) -> None:
        self._woken.set()

    def recall(self, nics: Mapping[str, AllocatedNic]) -> None:
        """Keep, before anything of an earlier agent is removed, what its proxies stand on. ``nics``: its own, by network uid."""
        if self._driver is None:
            return
        for uid in {uid for uid, _ in list_proxied(self._services, self._guests())} & nics.keys():
            self._egress.recall(uid, nics[uid])

    def has_departed(self, served: ServedAddress) -> bool:
        """Whether no proxy here leads new requests to the targets of a service that leave."""
        every = [one for of in self._stands.values() for one in of if one.service == served.uid]
        return all(one.backends == served.service.targets for one in every)

    @property
    def troubles(self) -> list[str]:
        """Faults of now, for the node's report."""
        return sorted(set(self._troubles.values()))

    def count(self) -> dict[str, dict[str, RequestCounts]]:
        """Count the answers of endpoints, by service uid and address, for the heartbeat."""
        found: dict[str, dict[str, RequestCounts]] = {}
        after = self._clock.elapsed() - RECENT_SECONDS
        self._times = {key: kept for key, of in self._times.items() if (kept := [one for one in of if one[0] > after])}
        for one in (one for of in self._counts.values() for one in of):
            answers = [one.answers.get(name, 0) for name in ANSWERS]
            times = [seconds for _, seconds in self._times.get((one.service, one.address), ())]
            seconds = sum(times) / len(times) if times else -1.0
            found.setdefault(one.service, {})[one.address] = RequestCounts(answers, seconds)
        return found

    async def keep(self) -> None:
        """Follow for ever."""
        if self._driver is None or not isinstance(self._network, CanListen):
            return
        count_at = self._clock.elapsed()
        while True:
            self._woken.clear()
            if self._driver.find_all() or any(s.service.proxied for of in self._services.values() for s in of.values()):
                await self._follow(self._driver, self._network.gateways)
                if self._clock.elapsed() >= count_at:
                    count_at = self._clock.elapsed() + COUNT_SECONDS
                    await self._count(self._driver)
                pause = LOOK_SECONDS
            else:
                pause = 60.0
            await wait_for_event(self._clock, self._woken, pause)

    async def _follow(self, driver: ProxyDriver, gateways: GatewayListener) -> None:
        networks = self._guests() | self._egress.of_functions()
        await self._join(networks)
        pems = await self._open_certificates(networks)
        wanted = {one.id: one for one in plan_proxies(self._services, networks, pems)}
        found = list_proxied(self._services, networks)
        known = {*networks, *wanted, *driver.find_all(), *(one.uid for _, one in found)}
        self._troubles = {key: words for key, words in self._troubles.items() if key in known}
        for one in wanted.values():
            self._idle_since.pop(one.id, None)
            try:
                await self._ensure(driver, gateways, one)
                self._troubles.pop(one.id, None)
                if self._stands.get(one.id) != one.listeners:
                    self._stands[one.id] = one.listeners
                    if any(served.leaving for served in self._services.get(one.network_uid, {}).values()):
                        self._report()
            except (WeftError, OSError) as problem:
                self._log_trouble(one.id, f"HTTP services of project {_name_project(one)}: {problem}")
        now = self._clock.elapsed()
        for id in [id for id in driver.find_all() if id not in wanted]:
            if now - self._idle_since.setdefault(id, now) < LINGER_SECONDS:
                continue
            try:
                await driver.remove(id)
                self._counts.pop(id, None)
                self._stands.pop(id, None)
                uid = self._networks.pop(id, None)
                if uid is not None and uid not in self._networks.values():
                    await self._egress.drop_proxy(uid)
            except (WeftError, OSError) as problem:
                self._log_trouble(id, str(problem))

    async def _join(self, networks: set[str]) -> None:
        """Have an address in each network with HTTP services: the server gives certificates only to nodes that have."""
        for uid, one in list_proxied(self._services, networks):
            try:
                await self._egress.ensure(one.network_project, uid, proxy=True)
                self._troubles.pop(uid, None)
            except (WeftError, OSError) as problem:
                self._log_trouble(uid, f"HTTP services of project {one.project}: {problem}")

    async def _open_certificates(self, networks: set[str]) -> dict[str, str]:
        """Open the certificates that are available, by service uid."""
        pems = {}
        asked = [one for _, one in list_proxied(self._services, networks) if one.certificate]
        for one in asked:
            try:
                pems[one.uid] = await self._certificates.open(one)
                self._troubles.pop(one.uid, None)
            except (WeftError, OSError) as problem:
                self._log_trouble(one.uid, f"service {one.project}/{one.name}: it has no certificate: {problem}")
        await self._certificates.keep_only({one.uid for one in asked})
        return pems

    async def _ensure(self, driver: ProxyDriver, gateways: GatewayListener, wanted: WantedProxy) -> None:
        endpoint = await self._egress.ensure(wanted.network_project, wanted.network_uid, proxy=True)
        self._networks[wanted.id] = wanted.network_uid
        router = gateways.name_router(short_id(wanted.network_uid))
        await driver.ensure(Proxy(wanted.id, endpoint.namespace, router, wanted.listeners))

    async def _count(self, driver: ProxyDriver) -> None:
        for id in self._networks:
            try:
                self._counts[id] = await driver.read(id)
                for one in self._counts[id]:
                    if one.seconds is not None:
                        now = self._clock.elapsed(), one.seconds
                        self._times.setdefault((one.service, one.address), []).append(now)
            except (WeftError, OSError) as problem:
                log.debug("proxy %s: %s", id, problem)
        every = [one for of in self._counts.values() for one in of]
        failures = sum(one.answers.get("5xx", 0) + one.answers.get("none", 0) for one in every)
        if failures > self._failures and self._clock.elapsed() - self._failed_at >= REPORT_SECONDS:
            self._failed_at = self._clock.elapsed()
            self._report()
        self._failures = failures

    def _guests(self) -> set[str]:
        """The networks that guests here are in."""
        return {nic.network_uid for state in self._table for nic in state.local.spec.nics}

    def _log_trouble(self, id: str, words: str) -> None:
        if self._troubles.get(id) != words:
            self._troubles[id] = words
            log.warning("%s", words)


def _name_project(wanted: WantedProxy) -> str:
    return wanted.listeners[0].name.partition("/")[0] if wanted.listeners else wanted.id
