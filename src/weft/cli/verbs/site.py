"""`weft site list`, `weft site describe hamburg`: sites, as a view of the nodes with that label, and of the linked clusters."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.output.formats import print_data, print_items, print_rows
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.kinds.cluster import CLUSTER
from weft.kinds.delegation import DELEGATION
from weft.kinds.fields.cells import dig
from weft.kinds.node import NODE
from weft.kinds.record import Kind
from weft.objects.errors import NotFound
from weft.objects.quantity import format_bytes, format_cpu, format_duration
from weft.objects.schema import suggest

_ACTS = ("list", "describe")
LABEL, DEFAULT = "site", "default"  # the label of its nodes, and the site of those without
_SITES = make_columns("SITE!", "NODES>", "READY>", "AUTONOMOUS>", "NOT READY>", "WORKLOADS>", "CPU>", "MEMORY>")
_CLUSTERS = make_columns("SITE!", "SERVER~", "PHASE!", "DELEGATED>", "RUNNING>", "UNKNOWN>")
_DELEGATED = make_columns("DELEGATION!", "PHASE!", "NODE", "ADDRESS", "MESSAGE~")
_NODES = make_columns("NODE!", "PHASE!", "AUTONOMY>", "WORKLOADS>", "ADDRESS", "MESSAGE~")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["act"], type=click.Choice(_ACTS), default="list", metavar=f"[{'|'.join(_ACTS)}]"),
        click.Argument(["words"], nargs=-1, metavar="[SITE]"),
        *options.table(),
        options.output(),
    ]
    words = "A site is the nodes with its label (site=NAME), or a linked cluster: a site with a server of its own."
    return options.build(verb, f"{entry.summary}. {words}", _run, kind, params)


def _run(session: Session, kind: Kind | None, act: str, words: tuple[str, ...]) -> None:
    if (act == "describe") != (len(words) == 1):
        raise click.UsageError("describe takes one site, list takes none: weft site describe SITE")
    sites = [*list_sites(session.client.list(NODE.name).items), *_list_clusters(session)]
    if act == "list":
        _print_list(session, sites)
        return
    found = [one for one in sites if one["name"] == words[0]]
    if not found:
        meant = suggest(words[0], [one["name"] for one in sites])
        raise NotFound(
            f"site {words[0][:60]!r} has no node, and no linked cluster has that name",
            hint=f"did you mean {meant}?"
            if meant
            else f"weft label node NAME {LABEL}={words[0][:60]} puts a node there",
        )
    if session.is_document:
        print_data(session, found[0] if len(found) == 1 else {"items": found})
        return
    for number, site in enumerate(found):  # of nodes, of a linked cluster, or of both
        if number and not session.is_data:
            print()
        if "server" in site:
            print_rows(session, _DELEGATED, [_row_of_delegation(one) for one in site["delegations"]])
        else:
            print_rows(session, _NODES, [_row_of_node(node) for node in site["nodes"]])


def _print_list(session: Session, sites: list[dict[str, Any]]) -> None:
    here, there = [one for one in sites if "server" not in one], [one for one in sites if "server" in one]
    rows = [_row(site) for site in here]
    names = list(dict.fromkeys(site["name"] for site in sites))
    print_items(session, sites, names, (_SITES, rows), "no site: no node has joined yet")
    if there and not session.is_data:
        print()
        print_rows(session, _CLUSTERS, [_row_of_cluster(site) for site in there])


def _list_clusters(session: Session) -> list[dict[str, Any]]:
    """Sites with a server of their own, with what is delegated to them from the session's project."""
    clusters = session.client.list(CLUSTER.name).items
    if not clusters:
        return []
    delegations: dict[str, list[dict[str, Any]]] = {}
    for one in session.client.list(DELEGATION.name, project=session.project).items:
        delegations.setdefault(str(dig(one, "spec.cluster")), []).append(_read_delegation(one))
    return [sum_up_cluster(one, delegations.get(one["name"], [])) for one in clusters]


def _read_delegation(one: Any) -> dict[str, Any]:
    return {
        "name": one["name"],
        "workload": dig(one, "spec.workload"),
        **{name: dig(one, f"status.{name}", "") for name in ("phase", "node", "address", "message")},
    }


def sum_up_cluster(cluster: Any, delegations: list[dict[str, Any]]) -> dict[str, Any]:
    """A site with a server of its own."""
    phases = [one["phase"] for one in delegations]
    return {
        "name": cluster["name"],
        "server": dig(cluster, "spec.url", ""),
        "phase": dig(cluster, "status.phase", "Pending"),
        "workloads": len(delegations),
        "running": phases.count("Running"),
        "unknown": phases.count("Unknown"),
        "delegations": delegations,
    }


def _row_of_cluster(site: dict[str, Any]) -> list[str]:
    counts = (site["workloads"], site["running"], site["unknown"])
    return [site["name"], site["server"], site["phase"], *map(str, counts)]


def _row_of_delegation(one: dict[str, Any]) -> list[str]:
    return [
        f"{one['workload']}/{one['name']}",
        one["phase"] or "Pending",
        one["node"] or "–",
        one["address"] or "–",
        one["message"],
    ]


def list_sites(nodes: Any) -> list[dict[str, Any]]:
    """The sites by name, each with its nodes and their sums."""
    sites: dict[str, list[dict[str, Any]]] = {}
    for node in nodes:
        sites.setdefault(str(dig(node, f"labels.{LABEL}") or DEFAULT), []).append(_read_node(node))
    return [_sum_up(name, sorted(own, key=lambda one: one["name"])) for name, own in sorted(sites.items())]


def _read_node(node: Any) -> dict[str, Any]:
    return {
        "name": node["name"],
        "phase": dig(node, "status.phase", "Joining"),
        "message": dig(node, "status.message", ""),
        "autonomy_seconds": dig(node, "spec.autonomy_seconds", 0.0),
        "address": dig(node, "report.address", ""),
        "workloads": dig(node, "status.allocations", 0),
        "cpu": dig(node, "report.cpu", 0.0),
        "memory": dig(node, "report.memory", 0),
    }


def _sum_up(name: str, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    phases = [node["phase"] for node in nodes]
    return {
        "name": name,
        "ready": phases.count("Ready"),
        "autonomous": phases.count("Autonomous"),
        "not_ready": len(nodes) - phases.count("Ready") - phases.count("Autonomous"),
        "workloads": sum(node["workloads"] for node in nodes),
        "cpu": sum(node["cpu"] for node in nodes),
        "memory": sum(node["memory"] for node in nodes),
        "nodes": nodes,
    }


def _row(site: dict[str, Any]) -> list[str]:
    counts = (len(site["nodes"]), site["ready"], site["autonomous"], site["not_ready"], site["workloads"])
    return [site["name"], *map(str, counts), format_cpu(site["cpu"]), format_bytes(site["memory"])]


def _row_of_node(node: dict[str, Any]) -> list[str]:
    autonomy = format_duration(node["autonomy_seconds"]) if node["autonomy_seconds"] else "–"
    return [node["name"], node["phase"], autonomy, str(node["workloads"]), node["address"] or "–", node["message"]]
