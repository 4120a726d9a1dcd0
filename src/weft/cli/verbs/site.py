"""`weft site list`, `weft site describe hamburg`: sites, as a view of the nodes with that label."""

from __future__ import annotations

from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.output.formats import print_data, print_items, print_rows
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.kinds.fields.cells import dig
from weft.kinds.node import NODE
from weft.kinds.record import Kind
from weft.objects.errors import NotFound
from weft.objects.quantity import format_bytes, format_cpu, format_duration

_ACTS = ("list", "describe")
LABEL, DEFAULT = "site", "default"  # the label of its nodes, and the site of those without
_SITES = make_columns("SITE!", "NODES>", "READY>", "AUTONOMOUS>", "NOT READY>", "WORKLOADS>", "CPU>", "MEMORY>")
_NODES = make_columns("NODE!", "PHASE!", "AUTONOMY>", "WORKLOADS>", "ADDRESS", "MESSAGE~")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["act"], type=click.Choice(_ACTS), default="list", metavar=f"[{'|'.join(_ACTS)}]"),
        click.Argument(["words"], nargs=-1, metavar="[SITE]"),
        *options.table(),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}. A site is the nodes with its label (site=NAME).", _run, kind, params)


def _run(session: Session, kind: Kind | None, act: str, words: tuple[str, ...]) -> None:
    if (act == "describe") != (len(words) == 1):
        raise click.UsageError("describe takes one site, list takes none: weft site describe SITE")
    sites = list_sites(session.client.list(NODE.name).items)
    if act == "list":
        rows = [_row(site) for site in sites]
        print_items(session, sites, [site["name"] for site in sites], (_SITES, rows), "no site: no node has joined yet")
        return
    site = next((one for one in sites if one["name"] == words[0]), None)
    if site is None:
        raise NotFound(
            f"site {words[0][:60]!r} has no node",
            hint=f"weft label node NAME {LABEL}={words[0][:60]} puts a node there",
        )
    if session.is_document:
        print_data(session, site)
        return
    print_rows(session, _NODES, [_row_of_node(node) for node in site["nodes"]])


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
