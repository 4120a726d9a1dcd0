"""Node objects as the scheduler's view has them, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

import msgspec

from weft.informer.view import Item
from weft.kinds.node import NodeActions, NodeReport, NodeSpec, NodeStatus
from weft.objects.envelope import Envelope

GIB = 2**30
REPORT = NodeReport(cpu=4.0, memory=8 * GIB, disk=100 * GIB, machines=["q35"], hypervisor="qemu 7.2.1")


def make_node(
    name: str,
    report: NodeReport = REPORT,
    labels: dict[str, str] | None = None,
    uid: str = "",
    phase: str = "Ready",
    actions: NodeActions | None = None,
    **spec: Any,
) -> Item:
    envelope = Envelope(
        kind="node",
        name=name,
        uid=uid or f"u-{name}",
        project=None,
        labels=labels or {},
        spec=msgspec.Raw(msgspec.json.encode(NodeSpec(**spec))),
        actions=msgspec.Raw(msgspec.json.encode(actions or NodeActions())),
        status=msgspec.Raw(msgspec.json.encode({**msgspec.to_builtins(NodeStatus()), "phase": phase})),
        report=msgspec.Raw(msgspec.json.encode(report)),
    )
    return Item(envelope)
