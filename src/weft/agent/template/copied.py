"""Scripts and facts for a machine that goes on from copied memory instead of booting. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from weft.contracts.driver.runtime import GuestPlan
from weft.kinds.allocation import AllocatedNic
from weft.objects.identity import Ref
from weft.objects.quantity import format_time

_TRIES = 150  # of a tenth of a second, and what looking takes: a busy node takes long over each step of DHCP
# It had another address, or none, and asks for its own once its NICs have a carrier. Who hears that it runs expects a network.
_WAIT = """\
if command -v ip >/dev/null 2>&1; then
    tries=0
    until {has_all}; do
        tries=$((tries + 1))
        [ $tries -lt {tries} ] || break
        sleep 0.1
    done
fi
"""


def write_wait(nics: Sequence[AllocatedNic], plan: GuestPlan) -> str:
    """A shell script that ends once the machine has the addresses of its NICs and a route, or after some seconds."""
    macs = {nic.mac for nic in plan.nics}
    tests = [f"ip -o addr | grep -qF ' {nic.address}/'" for nic in nics if nic.mac in macs]
    if not tests:
        return ""
    return _WAIT.format(has_all=" && ".join([*tests, "ip route | grep -q ^default"]), tries=_TRIES)


def note_copy(workload: Ref, of: str, made_at: float) -> str:
    """A line for the console's log, which has no boot of this machine."""
    at = f", made at {format_time(made_at)}" if made_at else ""
    return f"weft: {workload.kind}/{workload.name} did not boot, it goes on from {of}{at}"
