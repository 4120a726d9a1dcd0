"""How a trace is told: its steps in the order in which packets meet them, and the verdict."""

from __future__ import annotations

from typing import Literal

import msgspec

Verdict = Literal["allowed", "blocked", "partial", "unknown"]
Stage = Literal[
    "source",
    "spoofGuard",
    "names",
    "egress",
    "isolation",
    "gateway",
    "route",
    "hosts",
    "published",
    "service",
    "ingress",
    "reply",
]


Reason = Literal[
    "",
    "egressDenied",
    "hostClosed",
    "ingressDenied",
    "linkLocal",
    "noAddress",
    "noEndpoints",
    "noNat",
    "noSuchPort",
    "notPublished",
    "nothingThere",
    "otherNetwork",
]


class TraceStep(msgspec.Struct, frozen=True):
    """One decision on the way. ``passes`` is null where it isn't known, or nothing is decided."""

    stage: Stage
    passes: bool | None
    by: str  # the object that decides, like securitygroup/web; "" for none
    message: str
    reason: Reason = ""  # of a step that doesn't pass
    remedy: str = ""  # what would let it pass


class NetworkTrace(msgspec.Struct, frozen=True):
    """Whether connections get from ``source`` to ``target``. ``reason``, ``by``, ``message`` and ``remedy`` are of the first step
    that blocks. The verdict is ``partial`` if some of a service's endpoints are reached, ``unknown`` if another project decides.
    Where rules allow a connection and nothing answers, ``silent`` says why."""

    source: str
    target: str
    protocol: str
    port: int | None
    verdict: Verdict
    by: str
    reason: Reason
    message: str
    remedy: str
    silent: str
    steps: list[TraceStep]
