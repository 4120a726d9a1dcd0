"""Keeps a clone's topology: chosen once, then read from `.weft/cluster.json`, so names and ports stay."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path

import msgspec

from weft.launch.local import underlay
from weft.launch.local.daemon import write_whole
from weft.launch.local.processes import inspect_processes, is_weft
from weft.launch.local.topology import ETCD, SQLITE, Topology, find_conflicts, plan_topology
from weft.launch.local.underlay import inspect_taken
from weft.launch.server.configuration import make_parser
from weft.objects.errors import InUse, InvalidInput

FILE = "cluster.json"


def find_topology(clone: str) -> Topology | None:
    """The topology of the cluster this clone has or had: kept, or recognised by its folder in /run; None without one.

    Raises InUse when the kept one was made for another folder (a clone that was copied or renamed).
    """
    kept = _find_kept(clone)
    if kept is None:
        taken = inspect_taken()
        return plan_topology(clone, taken) if clone in taken.owners.values() else None
    return kept


def is_of_this_state(clone: str) -> bool:
    """Whether this clone's running processes were started with its present state folder, not with one that was removed or
    replaced since.

    Raises InUse as ``find_topology``."""
    kept = _find_kept(clone)
    if kept is None:
        return False
    marker = Path(kept.run_dir) / underlay.STATE
    return not marker.exists() or marker.read_text() == kept.state


def check_store(store: str | None, servers: int | None) -> None:
    """Raise InvalidInput for a ``store`` that no cluster has, or none of so many ``servers``."""
    if servers is not None and servers > 1 and store is not None:
        raise InvalidInput(
            f"STORE={store} is for one server: of several, each keeps a member of the store",
            field="store",
            hint=f"make up SERVERS={servers}",
        )
    if store not in (None, SQLITE, ETCD):
        raise InvalidInput(f"STORE={store} is not a store", field="store", hint=f"STORE={SQLITE} or STORE={ETCD}")


def refuse_other(
    topology: Topology,
    store: str | None,
    containerd: tuple[str, ...] | None,
    kata: tuple[str, ...] | None,
    ceph: bool | None,
    servers: int | None,
    server_options: Sequence[str] | None,
) -> None:
    """Raise InUse if the clone's cluster is another than the requested one. Servers that don't run may get other options."""
    count = len(topology.servers) or 1
    if servers not in (None, count):
        have = "one server" if count == 1 else f"{count} servers"
        raise InUse(f"this cluster has {have}", hint=f"make down, then make up SERVERS={servers}")
    if store not in (None, topology.store):
        raise InUse(
            f"this cluster keeps its objects in {topology.store}", hint="make down, then make up STORE=" + store
        )
    if containerd is not None and set(containerd) != set(topology.containerd):
        have = " ".join(topology.containerd) or "no node"
        hint = f"make down, then make up CONTAINERD={' '.join(containerd)}"
        raise InUse(f"this cluster has a containerd on {have}", hint=hint)
    if kata is not None and set(kata) != set(topology.kata):
        have = " ".join(topology.kata) or "no node"
        raise InUse(
            f"this cluster runs isolated containers with Kata on {have}",
            hint=f"make down, then make up KATA={' '.join(kata)}",
        )
    if ceph not in (None, topology.ceph):
        have = "a" if topology.ceph else "no"
        raise InUse(f"this cluster has {have} Ceph cluster", hint=f"make down, then make up CEPH={ceph:d}")
    differing = find_differing(topology.server_options, server_options) if server_options is not None else []
    if differing and _has_server(topology):
        raise InUse(
            f"this cluster's servers run with other options: {', '.join(differing)}",
            hint=f"they have SERVER_OPTIONS='{shlex.join(topology.server_options)}'; make down, then make up with others",
        )


def find_differing(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """Find the flags of `weft server` that differ, whatever their order. Exits with a sentence for words that aren't such."""
    values, others = (vars(make_parser().parse_args(list(words))) for words in (one, other))
    return [f"--{name.replace('_', '-')}" for name in sorted(values) if values[name] != others[name]]


def choose_topology(
    clone: str,
    node_count: int = 3,
    store: str | None = None,
    containerd: tuple[str, ...] | None = None,
    kata: tuple[str, ...] | None = None,
    ceph: bool | None = None,
    servers: int | None = None,
    server_options: Sequence[str] | None = None,
) -> Topology:
    """The kept topology, or a new one that is kept from now on.

    Raises InUse when something took its names or ports, or it keeps its objects in another ``store``, or has a
    ``containerd``, or ``kata``, on other nodes, a Ceph cluster other than ``ceph`` says, another number of ``servers``, or servers
    that run with other ``server_options``."""
    check_store(store, servers)
    topology = find_topology(clone)
    if topology is None:
        topology = plan_topology(
            clone, inspect_taken(), node_count, store or SQLITE, containerd or (), kata or (), bool(ceph), servers or 1
        )
        topology = msgspec.structs.replace(topology, state=secrets.token_hex(8))
        for word, named in (("CONTAINERD", topology.containerd), ("KATA", topology.kata)):
            if unknown := set(named) - {node.name for node in topology.nodes}:
                raise InvalidInput(
                    f"{word}={' '.join(sorted(unknown))} is not a node of this cluster",
                    field=word.lower(),
                    hint=f"{word}=n3",
                )
    else:
        refuse_other(topology, store, containerd, kata, ceph, servers, server_options)
        if conflicts := find_conflicts(topology, inspect_taken()):
            raise InUse("; ".join(conflicts), hint="make down, then make up, which chooses another")
    if server_options is not None:
        topology = msgspec.structs.replace(topology, server_options=tuple(server_options))
    state = Path(topology.state_dir)
    state.mkdir(mode=0o700, exist_ok=True)
    write_whole(state / FILE, msgspec.json.format(msgspec.json.encode(topology)))
    return topology


def _has_server(topology: Topology) -> bool:
    return any("server" in found.argv and is_weft(found, [topology.state_dir]) for found in inspect_processes())


def _find_kept(clone: str) -> Topology | None:
    try:
        kept = msgspec.json.decode((Path(clone) / ".weft" / FILE).read_bytes(), type=Topology)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    if kept.clone != clone:
        raise InUse(
            f"{clone}/.weft belongs to the clone at {kept.clone}",
            hint=f"if {kept.clone} is gone, or this folder is a copy of it: rm -r {clone}/.weft",
        )
    return kept
