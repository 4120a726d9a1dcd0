"""The traffic between workloads as a matrix: from what each workload's node answers about its flows. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

OUTSIDE = "outside"  # other machines, and peers that are no workload of the network
OTHER_PROJECT = "a workload of another project"


class Traffic(msgspec.Struct, frozen=True):
    """Traffic from ``source`` to ``destination``, each a workload's name, OUTSIDE or OTHER_PROJECT."""

    source: str
    destination: str
    bytes: int
    packets: int


class Matrix(msgspec.Struct, frozen=True):
    workloads: list[str]  # as in rows and columns: by name, then OUTSIDE and OTHER_PROJECT if they have traffic
    traffic: list[Traffic]  # those with most bytes first
    unanswered: list[str] = []  # workloads whose nodes didn't say: of theirs only what their peers saw is here


def make_matrix(
    workloads: Sequence[str], answers: Mapping[str, Iterable[Mapping[str, Any]]], network: str = ""
) -> Matrix:
    """``workloads`` of one project by name; ``answers`` are their folded flows as the verb ``flows`` gives them with ``since``, of
    those whose nodes answered. With ``network``, only of this one. Refused flows reached nobody, and aren't counted.

    Traffic between two workloads is in both their answers, and is taken from the sender's."""
    sent: dict[tuple[str, str], list[int]] = {}
    received: dict[tuple[str, str], list[int]] = {}
    known = set(workloads)
    for name, flows in answers.items():
        for flow in flows:
            if flow["verdict"] == "refused" or network not in ("", flow["network"]):
                continue
            out = flow["direction"] == "out"
            peer = flow["destination_name" if out else "source_name"] or OUTSIDE
            packets = flow["sent_packets"]
            _add(sent, (name, peer), flow["sent_bytes"], packets)
            _add(received, (peer, name), flow["received_bytes"], flow["packets"] - packets)
    found = {ends: counts for ends, counts in received.items() if ends[0] not in answers}
    found |= sent
    rows = sorted(known | {end for ends in found for end in ends if end not in (OUTSIDE, OTHER_PROJECT)})
    also = [end for end in (OUTSIDE, OTHER_PROJECT) if any(end in ends for ends in found)]
    traffic = [Traffic(*ends, *counts) for ends, counts in found.items() if any(counts)]
    return Matrix(
        [*rows, *also],
        sorted(traffic, key=lambda one: (-one.bytes, one.source, one.destination)),
        sorted(known - answers.keys()),
    )


def _add(counts: dict[tuple[str, str], list[int]], ends: tuple[str, str], bytes_: int, packets: int) -> None:
    found = counts.setdefault(ends, [0, 0])
    found[0] += bytes_
    found[1] += packets
