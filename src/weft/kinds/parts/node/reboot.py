"""Reboot of a node's machine that an Upgrade has emptied."""

from __future__ import annotations

from typing import Literal

import msgspec


class RebootOrder(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Reboot the machine, once, if it needs that."""

    attempt: str  # of an Upgrade and a node's turn in it
    node_uid: str

    @property
    def key(self) -> str:
        return self.attempt


class RebootReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    attempt: str
    phase: Literal["working", "done", "failed"] = "working"
    message: str = ""

    @property
    def key(self) -> str:
        return self.attempt


def describe_need(reboot: str, outdated: int) -> str:
    """Describe why a node should be renewed, from its report; "" if it needn't."""
    runs = "guest runs" if outdated == 1 else "guests run"
    return "; ".join(filter(None, (reboot, f"{outdated} {runs} in an earlier QEMU" if outdated else "")))
