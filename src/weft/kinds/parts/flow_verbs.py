"""Inputs of the verbs that show a workload's traffic."""

from __future__ import annotations

from typing import Annotated

import msgspec

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
MOST_RANGES = 64


class PortRange(msgspec.Struct, frozen=True):
    first: Port
    last: Port


class FlowsInput(msgspec.Struct):
    protocol: Annotated[str, msgspec.Meta(pattern="^([a-z]{0,4}|[0-9]{1,3})$")] = (
        ""  # tcp, udp, icmp or a number; "": any
    )
    ports: Annotated[list[PortRange], msgspec.Meta(max_length=MOST_RANGES)] = []  # of either end; none: any
    watch: bool = False  # an answer every ``interval`` seconds, until the client goes
    interval: Annotated[float, msgspec.Meta(ge=0.5, le=60)] = 2.0
