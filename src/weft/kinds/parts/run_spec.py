"""What every workload may wish of its run, whatever it is: how much it gets, how it is reached, and when it runs."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.objects.schema import field

MIB = 1024 * 1024

Name = Annotated[str, field("", name=True)]


class RunSpec(msgspec.Struct, kw_only=True):
    cpu: Annotated[float, field("Cores; a fraction is a limit", change="plug", quantity="cpu")] = 1.0
    memory: Annotated[int, field("Memory", change="plug", quantity="bytes")] = 256 * MIB
    networks: Annotated[
        list[str], field("Networks to join, one NIC each: NAME, or NAME:ADDRESS for that address", change="plug")
    ] = msgspec.field(default_factory=lambda: ["default"])
    security_groups: Annotated[
        list[Name], field("Security groups; without any, everyone in the same networks may connect", change="live")
    ] = []
    publish: Annotated[list[str], field("Ports to publish: HOST:GUEST or HOST:GUEST/udp", change="live")] = []
    force_publish: Annotated[
        bool,
        field(
            "Publish even ports that are reserved or held by a program of a node, which keeps them there", change="live"
        ),
    ] = False
    restart: Annotated[
        Literal["always", "on-failure", "never"],
        field("When to start again after the workload has ended by itself", change="live"),
    ] = "on-failure"
    on_node_loss: Annotated[Literal["wait", "restart"], field("What to do when the node is lost", change="live")] = (
        "wait"
    )
    grace: Annotated[float, field("Time that the workload has to shut down", change="live", quantity="duration")] = 20.0
    run: Annotated[
        Literal["run", "stop", "suspend"], field("Desired state; the verbs start, stop and suspend set it")
    ] = "run"
    hold: Annotated[bool, field("Do not place yet; the verbs hold and release set it")] = False
    restart_generation: Annotated[int, field("Counter: the workload is started afresh when it grows", ge=0)] = 0
