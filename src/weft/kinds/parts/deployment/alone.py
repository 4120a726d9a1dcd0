"""Reasons that keep a VM from running beside the one that takes its place. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from weft.kinds.parts.nic import read_nic


def describe_alone(volumes: Sequence[str], networks: Sequence[str]) -> str:
    """Why another version of a VM with these can't run beside it; "" if it can."""
    if volumes:
        return (
            f"{'volume' if len(volumes) == 1 else 'volumes'} {', '.join(volumes)} can be attached to one VM at a time"
        )
    addresses = [nic.address for nic in map(read_nic, networks) if nic.address is not None]
    return f"address {addresses[0]} can belong to one VM at a time" if addresses else ""
