"""`weft storage list`, `weft storage metrics --pool fast`: storage pools, how full they are, and what is largest in them.
`weft storage backup --pool fast --destination safe --schedule daily`: backs up all that lies there; `weft storage restore fast`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import click

from weft.cli.backup import storage
from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.grammar import Entry
from weft.cli.command.target import usage
from weft.cli.metrics.samples import COLUMNS, Answer, draw_rows
from weft.cli.metrics.storage_history import OF_OSDS, OF_POOLS, fetch_storage
from weft.cli.output.formats import print_data, print_list, print_rows
from weft.cli.output.table import make_columns
from weft.cli.output.terminal import find_width
from weft.cli.session import Session
from weft.kinds.allocation import LOCAL
from weft.kinds.fields.cells import dig
from weft.kinds.pool import POOL
from weft.kinds.record import Kind, Object
from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_bytes

WIDTH = 80  # where the terminal says none
LARGEST = 5  # volumes and snapshots of a pool that are shown
_NODES = make_columns("POOL!", "NODE!", "CAPACITY>", "USED>", "FREE>", "PROBLEM~")
_OSDS = make_columns(
    "POOL!", "OSD!", "NODE", "CAPACITY>", "USED>", "WRITE>", "READ>", "REPLICA>", "COMMIT>", "PROBLEM~"
)
_DISKS = make_columns("POOL!", "OBJECT!", "PROJECT", "SIZE>", "NODE")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["act"], type=click.Choice(_ACTS), default="list", metavar=f"[{'|'.join(_ACTS)}]"),
        click.Argument(["words"], nargs=-1, metavar="[NAME]"),
        click.Option(["--pool"], metavar="POOL", help="Only this pool.", shell_complete=complete_name(POOL.name)),
        click.Option(["--show-osd-breakdown"], is_flag=True, help="Of Ceph pools: also the metrics of each OSD."),
        click.Option(
            ["--time-range"],
            type=options.Duration(),
            metavar="TIME",
            help="With metrics: also what the pools (and OSDs) held over so long, like 7d, if the server keeps a history.",
        ),
        *storage.backup_options(),
        *storage.restore_options(),
        *options.waits(),
        *options.table(),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}; back up and restore what is in them.", _run, kind, params)


def _run(
    session: Session,
    kind: Kind | None,
    act: str,
    words: tuple[str, ...],
    pool: str | None,
    show_osd_breakdown: bool,
    time_range: float | None,
    **given: Any,
) -> int | None:
    storage.refuse_strange(act, given)
    if time_range is not None and (act != "metrics" or not time_range):
        raise usage(
            "--time-range goes with weft storage metrics, and is longer than 0s", "weft storage metrics --time-range 7d"
        )
    if act == "restore":
        return storage.restore(session, words, pool, given)
    if words:
        raise usage(f"{act} takes no name", f"weft storage {act} --pool NAME")
    if act == "backup":
        return storage.back_up(session, pool, given)
    pools = [session.client.get(POOL.name, pool)] if pool is not None else session.client.list(POOL.name).items
    if show_osd_breakdown:
        pools, act = _choose_ceph(pools, named=pool is not None), "metrics"
    if act == "list":
        print_list(session, pools, [POOL])
        return None
    found = describe(pools, *(session.client.list(name, all_projects=name != "node").items for name in _READ))
    asked = (*OF_POOLS, *OF_OSDS) if show_osd_breakdown else OF_POOLS
    series, step = (
        fetch_storage(session.client, asked, [one["name"] for one in found], time_range, session.clock.now())
        if time_range
        else (list[Answer](), 0.0)
    )
    if session.is_document:
        print_data(session, {"items": found, **({"series": series} if time_range else {})})
        return None
    print_list(session, pools, [POOL])
    if session.is_data:
        return None
    print_rows(session, _NODES, [[one["name"], *_draw_node(node)] for one in found for node in one["nodes"]])
    disks = [[one["name"], *_draw_disk(disk)] for one in found for disk in one["largest"]]
    if disks and not show_osd_breakdown:
        print_rows(session, _DISKS, disks)
    if series:
        print_rows(session, COLUMNS, draw_rows(series, step, find_width(sys.stdout) or WIDTH))
    elif time_range:
        session.notify("nothing was recorded in that time")
    if show_osd_breakdown:
        print_rows(session, _OSDS, [[one["name"], *_draw_osd(osd)] for one in found for osd in one["osds"]])
    return None


_ACTS = ("list", "metrics", "backup", "restore")
_READ = ("node", "volume", "snapshot")


def _choose_ceph(pools: list[dict[str, Any]], *, named: bool) -> list[dict[str, Any]]:
    """Raises InvalidInput where there is none."""
    found = [pool for pool in pools if dig(pool, "marks.driver") == "rbd"]
    if not found:
        what = f"pool/{pools[0]['name']} is a {dig(pools[0], 'marks.driver')}" if named else "there is no Ceph pool"
        raise InvalidInput(f"--show-osd-breakdown: {what}; OSDs exist only in Ceph pools", hint="leave the flag out")
    return found


def describe(
    pools: Iterable[Object], nodes: Iterable[Object], volumes: Iterable[Object], snapshots: Iterable[Object]
) -> list[dict[str, Any]]:
    """Describe each pool: what it holds now, as each of its nodes reports it, and its largest disks."""
    offers: dict[str, list[dict[str, Any]]] = {}
    osds: dict[str, dict[str, dict[str, Any]]] = {}
    by_id: dict[tuple[str, str], str] = {}  # ids by a node's name and what it calls the pool
    for node in nodes:
        for pool in dig(node, "report.pools") or []:
            by_id[str(node["name"]), pool["name"]] = pool["id"]
            used = pool["total"] - pool["free"]
            offer = {"node": node["name"], "capacity": pool["total"], "used": used, "free": pool["free"]}
            offers.setdefault(pool["id"], []).append({**offer, "problem": pool.get("problem", "")})
            for osd in pool.get("osds", []):  # nodes on one machine see the same ones
                osds.setdefault(pool["id"], {}).setdefault(osd["name"], {"node": node["name"], **osd})
    disks: dict[str, list[dict[str, Any]]] = {}
    for item, path in (*((item, "spec.size") for item in volumes), *((item, "status.size") for item in snapshots)):
        where = str(dig(item, "status.node", ""))
        storage = dig(item, "status.pool_id") or by_id.get((where, dig(item, "status.pool") or LOCAL), "")
        size = int(dig(item, path, 0))
        what = {"object": f"{item['kind']}/{item['name']}", "project": item.get("project"), "size": size, "node": where}
        if storage and where:
            disks.setdefault(storage, []).append(what)
    return [
        {
            "name": pool["name"],
            "spec": pool["spec"],
            "status": pool["status"],
            "nodes": sorted(offers.get(pool["spec"]["id"], []), key=lambda one: str(one["node"])),
            "osds": [one for _, one in sorted(osds.get(pool["spec"]["id"], {}).items())],
            "largest": sorted(disks.get(pool["spec"]["id"], []), key=lambda one: -one["size"])[:LARGEST],
        }
        for pool in pools
    ]


def _draw_node(node: dict[str, Any]) -> list[str]:
    return [node["node"], *(format_bytes(node[part]) for part in ("capacity", "used", "free")), node["problem"] or "–"]


def _draw_osd(osd: dict[str, Any]) -> list[str]:
    sizes = [format_bytes(osd["total"]), format_bytes(osd.get("used", 0))] if osd.get("total") else ["–", "–"]
    latency = osd.get("latency_ms", {})
    shown = [f"{latency[what]:g} ms" if what in latency else "–" for what in ("write", "read", "replica", "commit")]
    return [osd["name"], osd["node"], *sizes, *shown, osd.get("problem", "") or "–"]


def _draw_disk(disk: dict[str, Any]) -> list[str]:
    return [disk["object"], disk["project"] or "–", format_bytes(disk["size"]), disk["node"]]
