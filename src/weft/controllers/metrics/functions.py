"""The samples of functions: what each gateway counted since its start. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weft.contracts.store import Lease
from weft.informer.view import View
from weft.protocol.function_counts import LEASE_PREFIX, LEASE_SECONDS, read_counts
from weft.telemetry.metrics.sample import Sample


def list_functions(view: View, leases: Sequence[Lease], sent: dict[str, int], now: float) -> Iterator[Sample]:
    """Yield the samples that the gateways' ``leases`` brought since the moments (unix ms, by gateway) in ``sent``, which it brings
    up to date.
    """
    functions = {item.uid: item.envelope for item in view.of_kind("function").values()} if leases else {}
    for lease in leases:
        gateway = lease.name.removeprefix(LEASE_PREFIX)
        counted = int(1000 * (now - max(0.0, LEASE_SECONDS - lease.remaining_seconds)))
        if counted <= sent.get(gateway, 0):
            continue
        sent[gateway] = counted
        for uid, counts in read_counts(lease.digest).items():
            if (one := functions.get(uid)) is None:
                continue
            whose = (("project", one.project or ""), ("kind", "function"), ("name", one.name), ("gateway", gateway))
            yield Sample("weft_function_invocations_total", whose, counted, float(counts.invocations))
            yield Sample("weft_function_errors_total", whose, counted, float(counts.errors))
            yield Sample("weft_function_throttles_total", whose, counted, float(counts.throttles))
            yield Sample("weft_function_seconds_total", whose, counted, counts.seconds)
    for gateway in sent.keys() - {lease.name.removeprefix(LEASE_PREFIX) for lease in leases}:
        del sent[gateway]
