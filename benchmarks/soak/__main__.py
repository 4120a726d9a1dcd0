"""``python -m benchmarks.soak [NAME …]``: the named long proofs, or all, one after the other."""

from __future__ import annotations

import sys

from benchmarks import soak
from benchmarks.measurement import write_section
from benchmarks.soak import (
    alone,
    autonomy,
    copies,
    department,
    failovers,
    functions,
    histories,
    migrations,
    moments,
    placement,
    plans,
    rollouts,
    simulation,
    sites,
    storm,
    workloads,
)

PROOFS = {
    "simulation": simulation.measure,
    "simulated-servers": simulation.measure_servers,
    "histories": histories.measure,
    "failovers": failovers.measure,
    "autonomy": autonomy.measure,
    "alone": alone.measure,
    "sites": sites.measure,
    "placement": placement.measure,
    "storm": storm.measure,
    "kills": soak.measure,
    "copies": copies.measure,
    "rollouts": rollouts.measure,
    "migrations": migrations.measure,
    "plans": plans.measure,
    "moments": moments.measure,
    "workloads": workloads.measure,
    "functions": functions.measure,
    "department": department.measure,
}
# One name for both: simulated, then with processes.
TOGETHER = {"failovers": ("failovers", "sites"), "autonomy": ("autonomy", "alone")}


def main(names: list[str]) -> int:
    for name in names:
        if name not in PROOFS:
            print(f"no proof {name!r}; there are: {', '.join(PROOFS)}", file=sys.stderr)
            return 2
    wanted = [one for name in names for one in TOGETHER.get(name, (name,))]
    for name in wanted or PROOFS:
        print(write_section(PROOFS[name]()), flush=True)
    return 0


sys.exit(main(sys.argv[1:]))
