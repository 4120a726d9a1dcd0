"""Histories that nobody chose: all that a run is follows from its seed, for who draws fresh ones."""

from __future__ import annotations

import random

from tests.simulation.fate import BEHIND, GIVEN_UP, MISFORTUNES, MOVING, SERVERS, SERVERS_KEPT
from tests.simulation.simulation import Store, Trace, run_simulation

FAULTS = 300


def run_history(seed: int, faults: int = FAULTS) -> Trace:
    """The run that this seed draws: its store, its weather, and what people do in it."""
    draw = random.Random(f"history {seed}")
    store: Store = draw.choice(("memory", "sqlite"))
    match draw.choice(("stay", "stay", "migration", "migration", "migration", "run jobs", "convert", "snapshot")):
        case "stay":
            return run_simulation(seed, faults, store)
        case "migration":
            weather = draw.choice((MISFORTUNES, MISFORTUNES, BEHIND, GIVEN_UP))
            return run_simulation(seed, faults, store, weather, moves=True)
        case "run jobs":
            return run_simulation(seed, faults, store, MOVING, jobs=True)
        case "snapshot":
            return run_simulation(seed, faults, store, MOVING, snapshots=True)
        case _:
            return run_simulation(seed, faults, store, MOVING, converts=True)


def run_history_of_servers(seed: int, faults: int = FAULTS) -> Trace:
    """The run of three servers over one etcd that this seed draws."""
    draw = random.Random(f"servers {seed}")
    match draw.choice(("stay", "stay", "migration", "migration", "run jobs", "convert", "snapshot")):
        case "stay":
            return run_simulation(seed, faults, "etcd", SERVERS, servers=3)
        case "migration":
            return run_simulation(seed, faults, "etcd", SERVERS, servers=3, moves=True)
        case "run jobs":
            return run_simulation(seed, faults, "etcd", SERVERS_KEPT, servers=3, jobs=True)
        case "snapshot":
            return run_simulation(seed, faults, "etcd", SERVERS_KEPT, servers=3, snapshots=True)
        case _:
            return run_simulation(seed, faults, "etcd", SERVERS_KEPT, servers=3, converts=True)
