"""The addresses of the fabric's nodes, which nothing that people name may lead to."""

from __future__ import annotations

from weft.informer.view import View
from weft.kinds.node import NodeReport


def list_addresses(view: View) -> set[str]:
    reports = [node.report(NodeReport) for node in view.of_kind("node").values()]
    return {address for report in reports for address in (report.address, *report.addresses) if address}
