"""Gives each network its number on the wire (VNI) and gateway, and counts its addresses.

Reads networks and endpoints; writes network.status. Woken by networks, and by endpoints that come or go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from weft.controllers.loop import Plan
from weft.informer.commit import Commit, edit, put, unchanged
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.endpoint import ENDPOINTS_BY_NETWORK, EndpointSpec
from weft.kinds.network import NETWORKS_BY_UID, NetworkSpec, NetworkStatus, gateway_of, read_cidr
from weft.objects.envelope import merge_part

FIRST_VNI, LAST_VNI = 4096, 2**24 - 1
COUNT_EVERY_SECONDS = 1.0


class Networks:
    name = "networks"
    kinds = ("network", "endpoint")

    def __init__(self) -> None:
        self._counted_at: dict[str, float] = {}

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "network":
            return (change.key,)
        if has_changed(change, lambda item: item.uid):
            return [item.key for item in view.find(NETWORKS_BY_UID, change.item.spec(EndpointSpec).network_uid)]
        return ()

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        taken: set[int] | None = None
        for key in keys:
            network = view.get(key)
            if network is None:
                self._counted_at.pop(key, None)
                continue
            status = network.status(NetworkStatus)
            if not status.vni and taken is None:
                taken = {item.status(NetworkStatus).vni for item in view.of_kind("network").values()}
            new = plan_status(network, view.count(ENDPOINTS_BY_NETWORK, network.uid), taken or set())
            if new == status:
                continue
            if msgspec.structs.replace(new, used=status.used) == status:
                # Only the count changed, which it does all the time while many workloads come.
                wait = self._counted_at.get(key, 0.0) + COUNT_EVERY_SECONDS - now
                if wait > 0:
                    plan.later[key] = min(wait, COUNT_EVERY_SECONDS)
                    continue
            self._counted_at[key] = now
            envelope = edit(network)
            envelope.status = merge_part(envelope.status, new)
            plan.commits.append(Commit(key, [put(envelope)], [unchanged(network)]))
        return plan


def plan_status(network: Item, used: int, taken: set[int]) -> NetworkStatus:
    """The status a network should have; a VNI that it gets now is added to ``taken``."""
    cidr = network.spec(NetworkSpec).cidr
    vni = network.status(NetworkStatus).vni
    if not vni:
        vni = choose_vni(network.uid, taken)
        taken.add(vni)
    # Not for guests: the network's own address, the gateway's, the broadcast address.
    size = read_cidr(cidr).num_addresses - 3
    return NetworkStatus(phase="Ready", vni=vni, gateway=gateway_of(cidr), used=used, size=size)


def choose_vni(uid: str, taken: set[int]) -> int:
    """A number that follows from the uid, or the next free one: a network made anew under an old name must not get packets of
    the old one."""
    count = LAST_VNI - FIRST_VNI + 1
    start = int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8], "big") % count
    return next(vni for step in range(count) if (vni := FIRST_VNI + (start + step) % count) not in taken)
